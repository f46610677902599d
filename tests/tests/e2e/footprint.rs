//! A copy takes as much of its host's memory as the original took.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pclive_tests::footprint::{Footprint, growth};
use pclive_tests::workload::postgres::{self, Postgres};
use pclive_tests::workload::redis::{self, Redis};
use pclive_tests::workload::verifier::Verifier;
use pclive_tests::workload::{torture, writer};
use pclive_tests::{Container, Host, Lab};

use crate::{migrate, ready};

/// What the memory may differ by, percent.
const TOLERANCE: f64 = 2.0;
const STRATEGIES: [&str; 3] = ["global", "pipelined", "one-shot"];

/// A part of what a container takes, bytes.
type Part = fn(&Footprint) -> u64;

/// Moves a container whose memory does not change in amount, and compares what it takes. `zeros`: of its shared memory
/// many pages have been read and never written.
fn takes_as_much(
    container: &Container,
    (from, to): (&Host, &Host),
    strategy: &str,
    zeros: bool,
) -> Result<()> {
    let original = Footprint::of(container, from)?;
    migrate(container, from, to, &["--strategy", strategy])?;
    let copy = Footprint::of(container, to)?;
    let parts: [(&str, Part); 5] = [
        ("resident", |memory| memory.resident),
        ("proportional", |memory| memory.proportional),
        ("anonymous", |memory| memory.anonymous),
        ("charged, anonymous", |memory| memory.charged_anonymous),
        ("charged, shared", |memory| memory.charged_shared),
    ];
    for (name, part) in parts {
        let (original, copy) = (part(&original), part(&copy));
        let percent = growth(original, copy);
        println!(
            "{} by {strategy}, {name}: {} KiB, copy {} KiB, {percent:+.2} %",
            container.name,
            original >> 10,
            copy >> 10
        );
    }
    // Pages of the runtime's and the kernel's own, whatever the program's size.
    let little = |part: Part| part(&original).abs_diff(part(&copy)) < 64 << 10;
    for (name, part) in parts {
        let percent = growth(part(&original), part(&copy));
        ensure!(little(part) || percent <= TOLERANCE, "{name} by {strategy}: {original:?}, copy {copy:?}");
    }
    // Less is fine for pages of files, which are mapped again as they are used, and for shared zeros.
    let lacks = growth(original.charged_anonymous, copy.charged_anonymous) < -TOLERANCE;
    let shared_lacks = growth(original.charged_shared, copy.charged_shared) < -TOLERANCE;
    ensure!(!lacks || little(|memory| memory.charged_anonymous), "{strategy}: {original:?}, copy {copy:?}");
    ensure!(zeros || !shared_lacks, "{strategy}: {original:?}, copy {copy:?}");
    Ok(())
}

#[test]
fn stopped_torture_takes_as_much_at_the_destination() -> Result<()> {
    if !ready(&[]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&torture::bundle("torture", 7, &["--pause-us", "50"]))?;
    let verifier = Verifier::new(&lab.client, container.v4);
    let mut at = (&lab.a, &lab.b);
    for strategy in STRATEGIES {
        let signal = |host: &Host, name| host.node().run(&["kill", name, &container.pid(host)?.to_string()]);
        verifier.check()?;
        signal(at.0, "-STOP")?;
        takes_as_much(&container, at, strategy, true)?;
        signal(at.1, "-CONT")?;
        verifier.check().with_context(|| format!("by {strategy}"))?;
        at = (at.1, at.0);
    }
    Ok(())
}

#[test]
fn program_that_writes_takes_as_much_at_the_destination() -> Result<()> {
    if !ready(&[]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&writer::bundle("writer", 128, 10_000))?;
    let verifier = Verifier::new(&lab.client, container.v4);
    let mut at = (&lab.a, &lab.b);
    for strategy in STRATEGIES {
        verifier.check()?;
        takes_as_much(&container, at, strategy, false)?;
        at = (at.1, at.0);
    }
    verifier.check().map(drop)
}

#[test]
fn redis_with_clients_takes_as_much_at_the_destination() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&redis::bundle("redis"))?;
    let redis = Redis::new(&lab.client, container.v4);
    redis.populate(256 << 20)?;
    let clients = redis.clients(4, Duration::from_millis(1))?;
    clients.wait_for_answers(1000)?;
    takes_as_much(&container, (&lab.a, &lab.b), "global", false)?;
    clients.wait_for_answers(1000)?;
    clients.stop()?.nothing_lost()
}

#[test]
fn shared_buffers_of_postgres_are_charged_to_the_copy() -> Result<()> {
    if !ready(&["sh"]) {
        return Ok(());
    }
    if postgres::installation().is_none() {
        let ci = std::env::var("CI").is_ok_and(|value| value == "true");
        ensure!(!ci, "PostgreSQL is not installed, and CI=true forbids skipping");
        eprintln!("NOT TESTED: PostgreSQL is not installed (`make deps`)");
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&postgres::bundle("postgres", "128MB")?)?;
    let server = Postgres::new(&lab.client, container.v4)?;
    server.populate(96)?;
    let digest = server.digest()?;
    let original = Footprint::of(&container, &lab.a)?;
    migrate(&container, &lab.a, &lab.b, &["--strategy", "global"])?;
    let copy = Footprint::of(&container, &lab.b)?;
    println!("postgres: {original:?}, copy {copy:?}");
    let percent = growth(original.charged_shared, copy.charged_shared);
    ensure!(percent <= TOLERANCE, "shared memory, {percent:+.2} %: {original:?}, copy {copy:?}");
    ensure!(copy.charged_shared > 64 << 20, "the shared buffers are not the container's: {copy:?}");
    ensure!(server.digest()? == digest, "the tables have changed");
    Ok(())
}
