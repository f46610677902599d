//! Migrations that are ended on purpose: by a user, or because an agent goes down.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use pclive_tests::command::output;
use pclive_tests::ctl::{FAILED, Following};
use pclive_tests::workload::clients::Clients;
use pclive_tests::workload::redis::{Redis, bundle};
use pclive_tests::{Container, Host, Lab};

use crate::{migrate, nothing_left_in_network, ready};

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
