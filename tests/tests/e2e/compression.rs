//! Pages on a slow link.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use pclive_tests::Lab;
use pclive_tests::ctl::{Report, Round};
use pclive_tests::link::GIGABIT;
use pclive_tests::workload::redis::{Redis, bundle};

use crate::{migrate, ready};

const DATA: u64 = 384 << 20;

fn first(report: &Report) -> Result<&Round> {
    report.rounds.first().context("a report without rounds")
}

#[test]
fn pages_are_compressed_on_a_slow_link_if_that_is_asked_for() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let lab = Lab::without_agents(GIGABIT)?;
    lab.certify()?;
    lab.a.start_agent_with("compression = \"auto\"\n")?;
    lab.b.start_agent()?;
    let container = lab.start(&bundle("redis-1"))?;
    let redis = Redis::new(&lab.client, container.v4);
    let keys = redis.populate(DATA)?;
    let digest = redis.digest(keys)?;
    let clients = redis.clients(2, Duration::from_millis(1))?;
    let there = migrate(&container, &lab.a, &lab.b, &[])?;
    ensure!(redis.digest(keys)? == digest, "the data set has changed on the way there");
    let back = migrate(&container, &lab.b, &lab.a, &[])?;
    ensure!(redis.digest(keys)? == digest, "the data set has changed on the way back");
    clients.stop()?.nothing_lost()?;
    let (there, back) = (first(&there)?, first(&back)?);
    // What is in flight is sent before the link is known to be slow.
    ensure!(there.bytes < there.data_pages * 4096 / 2, "compressed: {there:?}");
    ensure!(back.bytes > back.data_pages * 4096, "not compressed: {back:?}");
    lab.b.stop_agent(Signal::SIGTERM)
}
