//! Many migrations at once: so many run as may, the others wait for their turn; and one right after the other.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pclive_tests::command::output;
use pclive_tests::ctl::Following;
use pclive_tests::link::TEN_GIGABIT;
use pclive_tests::wait::until;
use pclive_tests::workload::redis::{Redis, bundle};
use pclive_tests::workload::torture;
use pclive_tests::workload::verifier::Verifier;
use pclive_tests::{Container, Lab};

use crate::ready;

/// Containers,
const CROWD: usize = 20;
/// and how many of them may move at once.
const AT_ONCE: usize = 3;
const LIMIT: Duration = Duration::from_secs(180);

/// The phases of the crowd's migrations in the order in which they were asked for.
fn phases(lab: &Lab, ids: &[String]) -> Result<Vec<String>> {
    let listed = lab.a.migrations()?;
    let phase = |id: &String| -> Result<String> {
        let found = listed.iter().find(|migration| migration["migration_id"] == id.as_str());
        Ok(found.context("not listed")?["phase"].as_str().context("no phase")?.to_owned())
    };
    ids.iter().map(phase).collect()
}

#[test]
fn of_twenty_containers_three_move_at_once_and_the_others_have_their_turn_in_order() -> Result<()> {
    if !ready(&[]) {
        return Ok(());
    }
    let lab = Lab::without_agents(TEN_GIGABIT)?;
    lab.certify()?;
    let limit = format!("max_concurrent = {AT_ONCE}\n");
    lab.a.start_agent_with(&limit)?;
    lab.b.start_agent_with(&limit)?;
    let options = ["--threads", "1", "--pages", "256", "--pause-us", "5000"];
    let start = |number| lab.start(&torture::bundle(&format!("crowd-{number}"), number, &options));
    let containers = (0..CROWD as u64).map(start).collect::<Result<Vec<Container>>>()?;
    let ask = |container: &Container| -> Result<String> {
        let words = ["--json", "migrate", &container.name, "--to", "host-b", "--detach"];
        let said: serde_json::Value = serde_json::from_str(output(lab.a.ctl()?.args(words))?.trim())?;
        Ok(said["migration_id"].as_str().context("no id")?.to_owned())
    };
    let ids = containers.iter().map(ask).collect::<Result<Vec<_>>>()?;
    let last = ids.last().context("nobody")?;
    ensure!(phases(&lab, &ids)?.last().is_some_and(|phase| phase == "queued"), "the last does not wait");
    let begun = Instant::now();
    output(lab.a.ctl()?.args(["cancel", last]))?;
    until("the end of what was cancelled in the queue", Duration::from_secs(2), || {
        Ok(phases(&lab, &ids)?.last().is_some_and(|phase| phase == "failed"))
    })?;
    eprintln!("cancelled in the queue within {:?}", begun.elapsed());
    let (mut most, mut looks) = (0, 0);
    until("the end of every migration", LIMIT, || {
        let phases = phases(&lab, &ids[..CROWD - 1])?;
        let waits = phases.iter().position(|phase| phase == "queued").unwrap_or(phases.len());
        ensure!(phases[waits..].iter().all(|phase| phase == "queued"), "not in order: {phases:?}");
        let is_over = |phase: &&String| *phase == "done" || *phase == "failed";
        let running = phases[..waits].iter().filter(|phase| !is_over(phase)).count();
        (most, looks) = (most.max(running), looks + usize::from(waits < phases.len()));
        Ok(phases.iter().all(|phase| is_over(&phase)))
    })?;
    ensure!(most <= AT_ONCE && most > 1 && looks > 0, "{most} at once, {looks} looks at a queue");
    let failed = phases(&lab, &ids[..CROWD - 1])?.iter().filter(|phase| *phase == "failed").count();
    ensure!(failed == 0, "{failed} failed: {}", lab.a.last_words());
    lab.b.await_ends()?;
    for container in &containers {
        Verifier::new(&lab.client, container.v4).check()?;
    }
    let (moved, stayed) = containers.split_at(CROWD - 1);
    lab.a.await_clean(&stayed.iter().collect::<Vec<_>>())?;
    lab.b.await_clean(&moved.iter().collect::<Vec<_>>())
}

#[test]
fn migration_back_is_refused_for_a_moment_at_most_and_then_works() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&bundle("redis-1"))?;
    let clients = Redis::new(&lab.client, container.v4).clients(2, Duration::from_millis(1))?;
    let mut refused = 0;
    for turn in 0..6 {
        let (from, to) = if turn % 2 == 0 { (&lab.a, &lab.b) } else { (&lab.b, &lab.a) };
        // As early as can be: the runtime there knows it, the source is not done with the end of the last one.
        until(
            "the container's arrival",
            LIMIT,
            || Ok(container.status(from)?.as_deref() == Some("running")),
        )?;
        until("a migration back", LIMIT, || {
            match Following::start(from, &container.name, to.name(), &[])?.finish()? {
                Ok(_) => Ok(true),
                Err(refusal) => {
                    ensure!(refusal.problem.code == "busy", "{refusal:?}");
                    refused += 1;
                    Ok(false)
                }
            }
        })?;
    }
    eprintln!("refused {refused} times");
    clients.wait_for_answers(100)?;
    clients.stop()?.nothing_lost()?;
    lab.b.await_clean(&[])?;
    lab.a.await_clean(&[&container])
}
