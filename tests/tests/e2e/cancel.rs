//! Migrations that a user cancels, wherever they are: they have ended two seconds later.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pclive_tests::ctl::Following;
use pclive_tests::wait::until;

use crate::ready;
use crate::sweep::{Point, Sweep, points};

/// How long a cancelled migration may take to end, from the moment in which the agent can act.
const LIMIT: Duration = Duration::from_secs(2);
/// How long an agent that stands still at a point in its own thread may keep the answer to a cancellation.
const ANSWER: Duration = Duration::from_millis(300);

/// Holds the agent at the point, cancels, lets it go on; true if it was cancelled, and not too late for that.
fn cancelled_at(sweep: &Sweep, point: &Point) -> Result<bool> {
    let (source, destination) = sweep.hosts()?;
    let held = if point.name.starts_with("source") { source } else { destination };
    let writers = sweep.writers(point)?;
    held.arm(&format!("{}:hold", point.name))?;
    let mut following =
        Following::start(source, &sweep.container.name, destination.name(), &point.options())?;
    let first = following.wait_for("its begin", |line| line["migration_id"].is_string())?;
    let id = first["migration_id"].as_str().context("no id")?.to_owned();
    held.await_hold()?;
    let mut cancel =
        source.ctl()?.args(["cancel", &id]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let begun = Instant::now();
    while cancel.try_wait()?.is_none() && begun.elapsed() < ANSWER {
        std::thread::sleep(Duration::from_millis(2));
    }
    held.end_hold()?;
    let begun = Instant::now();
    let ended = following.finish()?;
    let took = begun.elapsed();
    cancel.wait()?;
    ensure!(took < LIMIT, "it has taken {took:?} to end: {ended:?}");
    let cancelled = match ended {
        Ok(_) => false,
        Err(refusal) => {
            ensure!(["cancelled", "not-converging"].contains(&refusal.problem.code.as_str()), "{refusal:?}");
            true
        }
    };
    until("the end at both hosts", LIMIT, || {
        let ended = |host: &pclive_tests::Host| -> Result<bool> {
            Ok(host.migrations()?.iter().all(|last| last["phase"] == "done" || last["phase"] == "failed"))
        };
        Ok(ended(source)? && ended(destination)?)
    })?;
    let (here, gone) = sweep.hosts()?;
    ensure!((here.name() == source.name()) == cancelled, "it runs on {}", here.name());
    here.await_clean(&[&sweep.container])?;
    gone.await_clean(&[])?;
    sweep.clients.wait_for_answers(20)?;
    writers.map_or(Ok(()), |writers| writers.stop()?.nothing_lost())?;
    Ok(cancelled)
}

#[test]
fn migration_cancelled_at_any_point_has_ended_within_two_seconds() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let wanted = std::env::var("FAULT_POINTS").unwrap_or_default();
    let before_it_is_listed = |name: &str| name.starts_with("source-begin-");
    let (sweep, mut failures, mut counts) = (Sweep::new()?, Vec::new(), [0; 2]);
    for point in points()?.iter().filter(|point| point.name.contains(&wanted)) {
        if before_it_is_listed(&point.name) {
            continue;
        }
        match cancelled_at(&sweep, point) {
            Ok(cancelled) => counts[usize::from(cancelled)] += 1,
            Err(error) => {
                eprintln!("{}: {error:#}\n{}", point.name, sweep.last_words());
                failures.push(format!("{}: {error:#}", point.name));
                sweep.lab.a.disarm();
                sweep.lab.b.disarm();
                sweep.lab.a.await_ends()?;
                sweep.lab.b.await_ends()?;
            }
        }
    }
    eprintln!("{} cancelled, {} too late for that", counts[1], counts[0]);
    ensure!(failures.is_empty(), "{failures:#?}");
    ensure!(!wanted.is_empty() || counts[1] > 30, "{} were cancelled", counts[1]);
    sweep.clients.stop()?.nothing_lost()
}
