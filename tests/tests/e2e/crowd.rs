//! A process of thousands of threads, mappings and open files.

use anyhow::{Context, Result};
use pclive_tests::Lab;
use pclive_tests::link::TEN_GIGABIT;
use pclive_tests::workload::crowd::bundle;
use pclive_tests::workload::verifier::Verifier;

use crate::{migrate, ready};

#[test]
fn thousands_of_threads_mappings_and_files_move_there_and_back() -> Result<()> {
    if !ready(&[]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let options = ["--threads", "2000", "--mappings", "20000", "--files", "5000"];
    let container = lab.start(&bundle("crowd", &options))?;
    let verifier = Verifier::new(&lab.client, container.v4);
    verifier.check().context("before the first migration")?;
    for (from, to) in [(&lab.a, &lab.b), (&lab.b, &lab.a)] {
        let report = migrate(&container, from, to, &["--strategy", "global"])?;
        println!("downtime {} us: {:?}", report.downtime_ns / 1000, report.ledger);
        verifier.check().with_context(|| format!("on {}", to.name()))?;
    }
    Ok(())
}

#[test]
fn open_files_may_be_left_for_the_stop() -> Result<()> {
    if !ready(&[]) {
        return Ok(());
    }
    let lab = Lab::without_agents(TEN_GIGABIT)?;
    lab.certify()?;
    lab.a.start_agent_with("capture_each_round = [\"memory\", \"tree\", \"vmas\"]\n")?;
    lab.b.start_agent_with("")?;
    let container = lab.start(&bundle("crowd", &["--threads", "4", "--mappings", "10", "--files", "600"]))?;
    let verifier = Verifier::new(&lab.client, container.v4);
    for (from, to) in [(&lab.a, &lab.b), (&lab.b, &lab.a)] {
        for strategy in ["global", "pipelined"] {
            migrate(&container, from, to, &["--strategy", strategy])?;
            verifier.check().with_context(|| format!("on {} by {strategy}", to.name()))?;
            migrate(&container, to, from, &["--strategy", strategy])?;
            verifier.check().with_context(|| format!("on {} by {strategy}", from.name()))?;
        }
        migrate(&container, from, to, &["--strategy", "one-shot"])?;
        verifier.check().with_context(|| format!("on {} by one-shot", to.name()))?;
    }
    Ok(())
}
