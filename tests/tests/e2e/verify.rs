//! Memory that is compared before the commit: it is the same there and back, and one other byte is found.

use anyhow::{Context, Result, ensure};
use pclive_tests::Lab;
use pclive_tests::ctl::{FAILED, Report};
use pclive_tests::link::TEN_GIGABIT;
use pclive_tests::workload::redis::{self, Redis};
use pclive_tests::workload::torture;
use pclive_tests::workload::verifier::Verifier;
use std::time::Duration;

use crate::{migrate, ready, runs_only_at};

/// How many bytes a migration says that it has compared.
fn compared(report: &Report) -> Result<u64> {
    let verification = report.verification.as_ref().context("nothing was compared")?;
    let verify_ns = report.ledger.as_ref().map_or(0, |ledger| ledger.verify_ns);
    ensure!(verification.mappings > 0 && verify_ns > 0, "an empty comparison: {report:?}");
    ensure!(verify_ns <= report.downtime_ns, "the comparison is no part of the downtime: {report:?}");
    Ok(verification.bytes)
}

/// Both audit records have the same digest of what was moved by each migration.
fn same_state_by_both_records(lab: &Lab) -> Result<()> {
    lab.a.audit_agrees()?;
    lab.b.audit_agrees()?;
    let (here, there) = (lab.a.audit_lines()?, lab.b.audit_lines()?);
    for line in &here {
        let other =
            there.iter().find(|other| other["id"] == line["id"]).context("no line at the other end")?;
        ensure!(line["state_digest"].is_string(), "no digest: {line}");
        ensure!(line["state_digest"] == other["state_digest"], "{line} and {other}");
    }
    ensure!(!here.is_empty(), "no migration is on record");
    Ok(())
}

#[test]
fn torture_has_the_same_memory_at_both_ends() -> Result<()> {
    if !ready(&[]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    for (seed, strategy) in [(301, "global"), (302, "pipelined"), (303, "one-shot")] {
        let name = format!("torture-{seed}");
        let container = lab.start(&torture::bundle(&name, seed, &["--pause-us", "50"]))?;
        let verifier = Verifier::new(&lab.client, container.v4);
        for (from, to) in [(&lab.a, &lab.b), (&lab.b, &lab.a)] {
            let report = migrate(&container, from, to, &["--strategy", strategy, "--verify"])?;
            ensure!(compared(&report)? > 0, "no contents were compared");
            verifier.check()?;
        }
        container.delete(&lab.a)?;
    }
    same_state_by_both_records(&lab)
}

#[test]
fn redis_under_load_is_compared_by_the_agents_configuration() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let lab = Lab::without_agents(TEN_GIGABIT)?;
    lab.certify()?;
    lab.a.start_agent_with("verify = true\n")?;
    lab.b.start_agent_with("verify = true\n")?;
    let container = lab.start(&redis::bundle("redis-1"))?;
    let redis = Redis::new(&lab.client, container.v4);
    let keys = redis.populate(512 << 20)?;
    let clients = redis.overwriting(2, keys)?;
    clients.wait_for_answers(1000)?;
    let there = migrate(&container, &lab.a, &lab.b, &[])?;
    ensure!(compared(&there)? > 256 << 20, "most of its memory was not compared");
    let back = migrate(&container, &lab.b, &lab.a, &["--verify=false"])?;
    ensure!(back.verification.is_none(), "it was compared all the same");
    clients.wait_for_answers(1000)?;
    clients.stop()?.nothing_lost()
}

#[test]
fn one_other_byte_ends_the_migration_and_the_source_runs_on() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let lab = Lab::without_agents(TEN_GIGABIT)?;
    lab.certify()?;
    lab.a.start_faulty_agent("")?;
    lab.b.start_faulty_agent("")?;
    let container = lab.start(&redis::bundle("redis-1"))?;
    let redis = Redis::new(&lab.client, container.v4);
    redis.populate(8 << 20)?;
    let clients = redis.clients(2, Duration::from_millis(1))?;
    let pid = container.pid(&lab.a)?;
    lab.b.arm("destination-memory:flip")?;
    let refusal = lab.a.migrate_in_vain(&container.name, lab.b.name(), &["--verify"])?;
    let problem = &refusal.problem;
    ensure!((refusal.exit, problem.code.as_str()) == (Some(FAILED), "memory-differs"), "{refusal:?}");
    ensure!(problem.message.contains(&format!("of process {pid} (1 inside the container)")), "{problem:?}");
    ensure!(problem.message.contains(" in 1 of ") && problem.hint.is_some(), "{problem:?}");
    runs_only_at(&container, &lab.a, &lab.b)?;
    ensure!(container.pid(&lab.a)? == pid, "the source is another process");
    clients.wait_for_answers(20)?;
    migrate(&container, &lab.a, &lab.b, &["--verify"])?;
    clients.wait_for_answers(20)?;
    clients.stop()?.nothing_lost()
}

#[test]
fn memory_that_comes_later_is_not_compared_and_the_reason_is_told() -> Result<()> {
    if !ready(&[]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&torture::bundle("torture-304", 304, &["--pause-us", "50"]))?;
    let options = ["--verify", "--policy", "post-copy"];
    let refusal = lab.a.migrate_in_vain(&container.name, lab.b.name(), &options)?;
    ensure!(refusal.problem.code == "invalid-request", "{refusal:?}");
    ensure!(refusal.problem.message.contains("post-copy"), "{refusal:?}");
    runs_only_at(&container, &lab.a, &lab.b)
}
