//! Redis with a gigabyte of data and eight clients that never pause.

use std::time::Duration;

use anyhow::{Result, ensure};
use pclive_tests::ctl::Report;
use pclive_tests::workload::redis::{Redis, bundle};
use pclive_tests::{Container, Lab};

use crate::{migrate, ready};

/// The data set.
const GIB: u64 = 1 << 30;
/// Clients, each on one connection.
const CLIENTS: usize = 8;
/// Answers that show that the clients go on.
const MORE: u64 = 2000;

/// A lab with Redis on host a, filled; the number of its keys.
fn filled(bytes: u64) -> Result<(Lab, Container, u64)> {
    let lab = Lab::new()?;
    let container = lab.start(&bundle("redis-1"))?;
    let keys = Redis::new(&lab.client, container.v4).populate(bytes)?;
    Ok((lab, container, keys))
}

/// One migration under load by `strategy`, then everything that must still work.
fn moves(strategy: &str, bytes: u64) -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    moves_with(&["--strategy", strategy], bytes).map(drop)
}

/// The same with these words for `pclivectl`; the report.
fn moves_with(words: &[&str], bytes: u64) -> Result<Report> {
    let (lab, container, keys) = filled(bytes)?;
    let redis = Redis::new(&lab.client, container.v4);
    let digest = redis.digest(keys)?;
    let clients = redis.clients(CLIENTS, Duration::ZERO)?;
    clients.wait_for_answers(MORE)?;
    let report = migrate(&container, &lab.a, &lab.b, words)?;
    ensure!(report.bytes > bytes / 2, "too little was sent: {report:?}");
    clients.wait_for_answers(MORE)?;
    redis.save_in_background()?;
    redis.expire_a_key()?;
    clients.stop()?.nothing_lost()?;
    ensure!(redis.digest(keys)? == digest, "the untouched keys have changed");
    ensure!(container.exec(&lab.b, &["/usr/bin/redis-server", "--version"])?.contains("Redis server v="));
    container.delete(&lab.b)?;
    Ok(report)
}

#[test]
fn redis_with_clients_moves_by_the_pipelined_strategy_and_little_is_left_for_the_stop() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let bytes = 256 << 20;
    let report = moves_with(&["--strategy", "pipelined", "--max-downtime", "50ms"], bytes)?;
    ensure!(report.staging_peak_bytes > bytes / 2, "round 0 was not staged whole: {report:?}");
    let (rounds, last) = (report.rounds.len(), report.rounds.last());
    ensure!(rounds > 2 && last.is_some_and(|round| round.bytes < bytes / 4), "{report:?}");
    Ok(())
}

#[test]
fn redis_with_clients_moves_when_restorers_live_late() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let bytes = 256 << 20;
    let report = moves_with(&["--strategy", "global", "--restore-after", "1"], bytes)?;
    ensure!(report.staging_peak_bytes > bytes / 2, "round 0 was not staged: {report:?}");
    ensure!(report.rounds.len() > 2, "stopped before restorers lived: {report:?}");
    Ok(())
}

#[test]
fn redis_with_clients_moves_by_the_global_strategy() -> Result<()> {
    moves("global", 256 << 20)
}

#[test]
fn redis_with_clients_moves_by_the_one_shot_strategy() -> Result<()> {
    moves("one-shot", 256 << 20)
}

#[test]
fn redis_with_clients_survives_ten_migrations() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, keys) = filled(GIB)?;
    let redis = Redis::new(&lab.client, container.v4);
    let digest = redis.digest(keys)?;
    let clients = redis.clients(CLIENTS, Duration::ZERO)?;
    for turn in 0..10 {
        let (from, to) = if turn % 2 == 0 { (&lab.a, &lab.b) } else { (&lab.b, &lab.a) };
        clients.take_gap();
        let report = migrate(&container, from, to, &[])?;
        clients.wait_for_answers(MORE)?;
        eprintln!(
            "migration {turn}: downtime {:?}, restore {:?}, client gap {:?}, {} rounds, {} bytes",
            Duration::from_nanos(report.downtime_ns),
            Duration::from_nanos(report.restore_ns),
            clients.take_gap(),
            report.rounds.len(),
            report.bytes
        );
    }
    clients.stop()?.nothing_lost()?;
    ensure!(redis.digest(keys)? == digest, "the untouched keys have changed");
    redis.save_in_background()?;
    redis.expire_a_key()
}

#[test]
fn connections_over_ipv6_survive() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, _) = filled(16 << 20)?;
    let clients = Redis::new(&lab.client, container.v6).clients(4, Duration::ZERO)?;
    migrate(&container, &lab.a, &lab.b, &[])?;
    clients.wait_for_answers(MORE)?;
    clients.stop()?.nothing_lost()
}
