//! What cannot be done is refused with a clear reason, and the source does not notice.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use pclive_tests::ctl::{FAILED, Following, Refusal};
use pclive_tests::workload::clients::Clients;
use pclive_tests::workload::redis::{Redis, bundle};
use pclive_tests::workload::{http, memcached, pipeline, states, torture};
use pclive_tests::{Bundle, Container, Lab};

use crate::{migrate, nothing_left_in_network, ready};

/// A lab with a small Redis on host a, and a client that must not notice anything.
fn with_client() -> Result<(Lab, Container, Clients)> {
    let lab = Lab::new()?;
    let container = lab.start(&bundle("redis-1"))?;
    let redis = Redis::new(&lab.client, container.v4);
    redis.populate(16 << 20)?;
    let clients = redis.clients(2, Duration::from_millis(1))?;
    Ok((lab, container, clients))
}

/// The reason names what is wrong and what to do, and `pclivectl` says that the source runs on.
fn is_clear(refusal: &Refusal, words: &[&str]) -> Result<()> {
    ensure!(refusal.exit == Some(FAILED), "{refusal:?}");
    let text = refusal.problem.message.to_lowercase();
    ensure!(words.iter().all(|word| text.contains(word)), "the message does not say {words:?}: {refusal:?}");
    ensure!(refusal.problem.hint.as_ref().is_some_and(|hint| !hint.is_empty()), "no hint: {refusal:?}");
    Ok(())
}

/// The container runs at the source with all its connections, the other host is clean, and a migration works.
fn unharmed(lab: &Lab, container: &Container, clients: Clients) -> Result<()> {
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
fn destination_without_the_bundle_is_refused_and_works_once_it_is_there() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = with_client()?;
    lab.b.hide_bundle(&container.name)?;
    let refusal = lab.a.migrate_in_vain(&container.name, "host-b", &[])?;
    is_clear(&refusal, &["bundle"])?;
    lab.b.show_bundle(&container.name)?;
    unharmed(&lab, &container, clients)
}

#[test]
fn destination_without_memory_for_staging_refuses_with_both_figures_and_takes_it_by_global() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = with_client()?;
    lab.b.stop_agent(Signal::SIGTERM)?;
    lab.b.start_agent_with("staging_limit_bytes = 8388608\n")?;
    for words in [
        &["--strategy", "one-shot"][..],
        &["--strategy", "pipelined"],
        &["--strategy", "global", "--restore-after", "1"],
    ] {
        let refusal = lab.a.migrate_in_vain(&container.name, "host-b", words)?;
        is_clear(&refusal, &["it uses ", " mib", "8 mib may wait"])?;
        ensure!(refusal.problem.code == "no-memory", "{refusal:?}");
        ensure!(refusal.problem.hint.as_ref().is_some_and(|hint| hint.contains("--strategy global")));
    }
    unharmed(&lab, &container, clients)
}

#[test]
fn delayed_restoration_that_cannot_be_is_refused() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = with_client()?;
    for words in [
        &["--strategy", "one-shot", "--restore-after", "2"][..],
        &["--strategy", "pipelined", "--restore-after", "3", "--max-rounds", "3"],
    ] {
        is_clear(&lab.a.migrate_in_vain(&container.name, "host-b", words)?, &["cannot restore after round"])?;
    }
    unharmed(&lab, &container, clients)
}

#[test]
fn absent_agent_and_wrong_addresses_are_named() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = with_client()?;
    let unknown = lab.a.migrate_in_vain(&container.name, "host-z", &[])?;
    is_clear(&unknown, &["host-z"])?;
    let nobody = lab.a.migrate_in_vain(&container.name, "host-without-agent", &[])?;
    is_clear(&nobody, &["10.77.0.9"])?;
    let nonsense = lab.a.migrate_in_vain(&container.name, "10.77.0.2:1", &[])?;
    is_clear(&nonsense, &["10.77.0.2:1"])?;
    lab.b.stop_agent(Signal::SIGTERM)?;
    let absent = lab.a.migrate_in_vain(&container.name, "host-b", &[])?;
    is_clear(&absent, &["host-b"])?;
    lab.b.start_agent()?;
    unharmed(&lab, &container, clients)
}

#[test]
fn container_that_does_not_exist_is_named() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = with_client()?;
    let refusal = lab.a.migrate_in_vain("no-such-container", "host-b", &[])?;
    is_clear(&refusal, &["no-such-container"])?;
    unharmed(&lab, &container, clients)
}

#[test]
fn second_migration_of_a_moving_container_is_refused() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&bundle("redis-1"))?;
    let redis = Redis::new(&lab.client, container.v4);
    redis.populate(512 << 20)?;
    let clients = redis.clients(4, Duration::ZERO)?;
    let mut first = Following::start(&lab.a, &container.name, "host-b", &["--max-downtime", "1ms"])?;
    first.wait_for("its first phase", |line| line["event"] == "started")?;
    let second = lab.a.migrate_in_vain(&container.name, "host-b", &[])?;
    is_clear(&second, &["redis-1", "already"])?;
    ensure!(first.finish()?.is_ok(), "the first migration was disturbed");
    clients.wait_for_answers(100)?;
    clients.stop()?.nothing_lost()
}

#[test]
fn destination_agent_killed_in_pre_copy_leaves_the_source_running() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&bundle("redis-1"))?;
    let redis = Redis::new(&lab.client, container.v4);
    redis.populate(512 << 20)?;
    let clients = redis.clients(4, Duration::ZERO)?;
    let mut migration = Following::start(&lab.a, &container.name, "host-b", &["--max-downtime", "1ms"])?;
    migration.wait_for("pre-copy", |line| line["phase"] == "pre_copy")?;
    lab.b.stop_agent(Signal::SIGKILL)?;
    let refusal =
        migration.finish()?.err().ok_or_else(|| anyhow::anyhow!("migrated without a destination"))?;
    ensure!(refusal.exit == Some(FAILED), "{refusal:?}");
    clients.wait_for_answers(100)?;
    clients.stop()?.nothing_lost()
}

#[test]
fn every_blocker_is_listed_and_refused_before_the_freeze() -> Result<()> {
    if !ready(&["busybox"]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let blocked =
        Bundle::new("blocked", &["/usr/bin/states", "blockers"]).own_program("states").program("busybox");
    let container = lab.start(&blocked)?;
    pclive_tests::workload::verifier::Verifier::new(&lab.client, container.v4).ask("PING")?;
    let (blockers, exit) = lab.a.check(&container.name)?;
    ensure!(exit == Some(FAILED), "exit {exit:?} with {blockers:?}");
    for expected in ["io_uring", "inotify", "semaphores"] {
        let of_it = blockers.iter().find(|blocker| blocker.what.to_lowercase().contains(expected));
        let blocker = of_it.ok_or_else(|| anyhow::anyhow!("{expected} is not listed: {blockers:?}"))?;
        ensure!(blocker.hint.as_ref().is_some_and(|hint| !hint.is_empty()), "no hint: {blocker:?}");
        ensure!(blocker.pid.is_some_and(|pid| pid > 0), "no pid: {blocker:?}");
    }
    let refusal = lab.a.migrate_in_vain(&container.name, "host-b", &[])?;
    ensure!(refusal.exit == Some(FAILED), "{refusal:?}");
    ensure!(refusal.problem.blockers.len() == blockers.len(), "{:?} at check, {refusal:?}", blockers);
    ensure!(container.status(&lab.a)?.as_deref() == Some("running"));
    Ok(())
}

#[test]
fn nothing_stands_in_the_way_of_the_workloads() -> Result<()> {
    if !ready(&["redis-server", "memcached", "nginx", "dash", "busybox"]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let bundles = [
        bundle("redis-1"),
        memcached::bundle("cache", 4),
        http::bundle("web"),
        pipeline::bundle("pipeline"),
        torture::bundle("torture", 1, &[]),
        states::bundle("states", &[]),
    ];
    let mut found = Vec::new();
    for bundle in &bundles {
        let container = lab.start(bundle)?;
        let (blockers, exit) = lab.a.check(&container.name)?;
        if exit != Some(0) || !blockers.is_empty() {
            found.push((container.name.clone(), exit, blockers));
        }
    }
    ensure!(found.is_empty(), "{found:#?}");
    Ok(())
}
