//! Migrations that are ended on purpose: by a user, or because an agent goes down.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use pclive_tests::command::output;
use pclive_tests::ctl::{FAILED, Following};
use pclive_tests::workload::clients::Clients;
use pclive_tests::workload::redis::{Redis, bundle};
use pclive_tests::workload::torture;
use pclive_tests::workload::verifier::Verifier;
use pclive_tests::{Container, Host, Lab};

use crate::{migrate, nothing_left_in_network, ready, runs_only_at};

/// A migration that stays in its rounds: the clients write faster than a downtime of 1 ms allows.
fn in_pre_copy() -> Result<(Lab, Container, Clients, Following, String)> {
    let lab = Lab::new()?;
    let container = lab.start(&bundle("redis-1"))?;
    let redis = Redis::new(&lab.client, container.v4);
    redis.populate(512 << 20)?;
    let clients = redis.clients(4, Duration::ZERO)?;
    let options = ["--max-downtime", "1ms"];
    let mut following = Following::start(&lab.a, &container.name, "host-b", &options)?;
    let line = following.wait_for("pre-copy", |line| line["phase"] == "pre_copy")?;
    let id = line["migration_id"].as_str().context("an event without its migration's id")?.to_owned();
    Ok((lab, container, clients, following, id))
}

fn cancel(host: &Host, id: &str) -> Result<()> {
    output(host.ctl()?.args(["cancel", id])).map(drop)
}

/// The migration has failed for this reason; the source runs, nothing is left of the copy, a second one works.
fn rolled_back(
    lab: &Lab,
    container: &Container,
    clients: Clients,
    following: Following,
    code: &str,
) -> Result<()> {
    let refusal = following.finish()?.err().context("it was migrated all the same")?;
    ensure!(refusal.exit == Some(FAILED) && refusal.problem.code == code, "{refusal:?}");
    ensure!(container.status(&lab.a)?.as_deref() == Some("running"), "the source does not run");
    ensure!(container.status(&lab.b)?.is_none(), "the destination has something left");
    ensure!(!container.has_cgroup(&lab.b), "the destination has a cgroup left");
    nothing_left_in_network(&lab.b)?;
    clients.wait_for_answers(100)?;
    migrate(container, &lab.a, &lab.b, &[])?;
    clients.wait_for_answers(100)?;
    clients.stop()?.nothing_lost()
}

#[test]
fn cancelled_at_the_source_it_runs_on_and_a_second_migration_works() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients, following, id) = in_pre_copy()?;
    cancel(&lab.a, &id)?;
    rolled_back(&lab, &container, clients, following, "cancelled")
}

#[test]
fn cancelled_at_the_destination_it_runs_on_and_a_second_migration_works() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients, following, id) = in_pre_copy()?;
    cancel(&lab.b, &id)?;
    rolled_back(&lab, &container, clients, following, "cancelled")
}

#[test]
fn agent_that_is_told_to_end_lets_its_migration_end_first() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients, following, _) = in_pre_copy()?;
    lab.b.stop_agent(Signal::SIGTERM)?;
    ensure!(following.finish()?.is_ok(), "not migrated: {}", lab.b.agent_log());
    clients.wait_for_answers(100)?;
    ensure!(container.status(&lab.b)?.as_deref() == Some("running"), "it ended with the agent");
    clients.stop()?.nothing_lost()
}

/// A container whose program serves one connection while another waits to be accepted, which no copy can have.
fn with_a_waiting_connection(
    work: impl FnOnce(&Lab, &Container, [TcpStream; 2]) -> Result<()>,
) -> Result<()> {
    if !ready(&[]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&torture::bundle("torture-1", 1, &["--pause-us", "1000"]))?;
    let verifier = Verifier::new(&lab.client, container.v4);
    verifier.check()?;
    let connections = [verifier.occupy()?, verifier.occupy()?];
    work(&lab, &container, connections)?;
    verifier.check().map(drop)
}

#[test]
fn stop_at_a_bad_moment_is_put_off_and_the_next_one_succeeds() -> Result<()> {
    with_a_waiting_connection(|lab, container, [served, waiting]| {
        let mut following = Following::start(&lab.a, &container.name, "host-b", &[])?;
        let warning = following.wait_for("a stop that is put off", |line| line["event"] == "warning")?;
        let message = warning["message"].as_str().unwrap_or_default();
        ensure!(message.contains("tried 1 times") && message.contains("accept"), "{message}");
        drop(served);
        let report = following.finish()?.map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
        let finals = report.rounds.iter().filter(|round| round.r#final).count();
        ensure!(finals == 1 && report.rounds.last().is_some_and(|round| round.r#final), "{report:?}");
        drop(waiting);
        runs_only_at(container, &lab.b, &lab.a)
    })
}

#[test]
fn what_does_not_pass_ends_the_migration_with_its_name() -> Result<()> {
    with_a_waiting_connection(|lab, container, connections| {
        let refusal = lab.a.migrate_in_vain(&container.name, "host-b", &[])?;
        let problem = &refusal.problem;
        ensure!(problem.code == "not-now" && problem.blockers.len() == 1, "{problem:?}");
        ensure!(problem.blockers[0].what.contains("accept"), "{problem:?}");
        ensure!(container.status(&lab.b)?.is_none(), "the destination has something left");
        drop(connections);
        migrate(container, &lab.a, &lab.b, &[]).map(drop)
    })
}
