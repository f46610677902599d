//! A process of thousands of threads, mappings and open files.

use anyhow::{Context, Result};
use pclive_tests::Lab;
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
