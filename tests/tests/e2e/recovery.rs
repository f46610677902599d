//! Migrations in doubt, requests that come twice, and journals that cannot be written. What becomes of a migration whose
//! agent is killed, at every point, is in `sweep`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use pclive_tests::command::{finish, output};
use pclive_tests::ctl::{FAILED, Following};
use pclive_tests::link::TEN_GIGABIT;
use pclive_tests::wait::until;
use pclive_tests::workload::clients::Clients;
use pclive_tests::workload::redis::{Redis, bundle};
use pclive_tests::{Container, Host, Lab};

use crate::{migrate, nothing_left_in_network, ready};

/// How long recovery may take: the questions to the other agent have growing pauses.
const LIMIT: Duration = Duration::from_secs(60);

/// Where the container must run afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Source,
    Destination,
}

/// A lab in which the agent that the fault is about has it, with a small Redis on host a and clients.
fn lab_with(fault: &str) -> Result<(Lab, Container, Clients)> {
    let lab = Lab::without_agents(TEN_GIGABIT)?;
    lab.certify()?;
    let (faulty, other) = if fault.starts_with("source") { (&lab.a, &lab.b) } else { (&lab.b, &lab.a) };
    faulty.start_agent_with_fault(fault)?;
    other.start_agent()?;
    let container = lab.start(&bundle("redis-1"))?;
    let redis = Redis::new(&lab.client, container.v4);
    redis.populate(16 << 20)?;
    let clients = redis.clients(2, Duration::from_millis(1))?;
    Ok((lab, container, clients))
}

/// Where it runs; the other host has nothing of it.
fn place(lab: &Lab, container: &Container) -> Result<Place> {
    let at = [container.status(&lab.a)?, container.status(&lab.b)?];
    let running = Some("running".to_owned());
    if at == [running.clone(), None] {
        ensure!(!container.has_cgroup(&lab.b), "the destination has a cgroup left");
        nothing_left_in_network(&lab.b)?;
        Ok(Place::Source)
    } else if at == [None, running] {
        ensure!(!container.has_cgroup(&lab.a), "the source has a cgroup left");
        nothing_left_in_network(&lab.a)?;
        Ok(Place::Destination)
    } else {
        anyhow::bail!("not one copy: {at:?}\n{}{}", lab.a.last_words(), lab.b.last_words())
    }
}

/// One copy runs, where it should; the clients go on, a second migration works, and nothing is lost.
fn whole_again(lab: &Lab, container: &Container, clients: Clients, expected: Place) -> Result<()> {
    lab.a.await_ends()?;
    lab.b.await_ends()?;
    let found = place(lab, container)?;
    ensure!(expected == found, "it runs at the {found:?}\n{}{}", lab.a.last_words(), lab.b.last_words());
    clients.wait_for_answers(100)?;
    let (from, to) = if found == Place::Source { (&lab.a, &lab.b) } else { (&lab.b, &lab.a) };
    migrate(container, from, to, &[])?;
    clients.wait_for_answers(100)?;
    lab.a.await_ends()?;
    lab.b.await_ends()?;
    lab.a.audit_agrees()?;
    lab.b.audit_agrees()?;
    clients.stop()?.nothing_lost()
}

/// The only migration of host a, in doubt.
fn in_doubt(lab: &Lab) -> Result<String> {
    until("a migration in doubt", LIMIT, || {
        Ok(lab.a.migrations()?.first().is_some_and(|migration| migration["phase"] == "unknown"))
    })?;
    let listed = lab.a.migrations()?;
    Ok(listed[0]["migration_id"].as_str().context("a migration without an id")?.to_owned())
}

/// Whether one of its freezers is engaged; the runtime may look at the other one only.
pub(crate) fn is_frozen(host: &Host, container: &Container) -> bool {
    let cgroup = format!("{}/{}", host.cgroup(), container.name);
    let word = |path: String| std::fs::read_to_string(path).unwrap_or_default();
    let unified = ["/unified", ""].map(|root| word(format!("/sys/fs/cgroup{root}{cgroup}/cgroup.freeze")));
    unified.iter().any(|word| word.trim() == "1")
        || word(format!("/sys/fs/cgroup/freezer{cgroup}/freezer.state")).trim() == "FROZEN"
}

#[test]
fn a_commit_without_an_answer_is_explained_kept_frozen_and_ended_by_the_answer() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = lab_with("destination-committed:stop")?;
    let migration = Following::start(&lab.a, &container.name, "host-b", &[])?;
    let refusal = migration.finish()?.err().context("migrated without an answer")?;
    ensure!(refusal.exit == Some(3) && refusal.problem.code == "commit-unknown", "{refusal:?}");
    let id = in_doubt(&lab)?;
    ensure!(is_frozen(&lab.a, &container), "the source is not frozen");
    // The peer is asked in the background; what is known shows once that has begun.
    until("the words on the doubt", LIMIT, || {
        let status = lab.a.ask(&["status", &id])?;
        Ok(status["doubt"]["here"].as_str().is_some_and(|words| words.contains("frozen")))
    })?;
    for wish in ["--run-here", "--discard-here"] {
        let refused = finish(lab.a.ctl()?.args(["--json", "resolve", &id, wish]))?;
        let said = String::from_utf8_lossy(&refused.stdout).into_owned();
        ensure!(refused.status.code() == Some(FAILED) && said.contains("peer-disagrees"), "{wish}: {said}");
    }
    // A restart of the source changes nothing: it goes on asking.
    lab.a.stop_agent(Signal::SIGKILL)?;
    lab.a.start_agent()?;
    ensure!(in_doubt(&lab)? == id && is_frozen(&lab.a, &container), "a restart has let it go");
    lab.b.stop_agent(Signal::SIGKILL)?;
    lab.b.start_agent()?;
    whole_again(&lab, &container, clients, Place::Source)
}

#[test]
fn an_operator_decides_when_the_destination_is_lost() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = lab_with("destination-committed:kill")?;
    let migration = Following::start(&lab.a, &container.name, "host-b", &[])?;
    lab.b.await_agent_end()?;
    let refusal = migration.finish()?.err().context("migrated without a destination")?;
    ensure!(refusal.exit == Some(3) && refusal.problem.code == "commit-unknown", "{refusal:?}");
    let id = in_doubt(&lab)?;
    output(lab.a.ctl()?.args(["resolve", &id, "--run-here", "--override"]))?;
    let again = finish(lab.a.ctl()?.args(["--json", "resolve", &id, "--run-here"]))?;
    ensure!(String::from_utf8_lossy(&again.stdout).contains("not-in-doubt"), "{again:?}");
    let lines = lab.a.audit_lines()?;
    let decided = lines.iter().find(|line| line["id"] == id.as_str()).map(|line| &line["decided_by"]);
    ensure!(decided.is_some_and(|by| by["kind"] == "local" && by["uid"] == 0), "{lines:?}");
    ensure!(container.status(&lab.a)?.as_deref() == Some("running"), "it does not run");
    clients.wait_for_answers(100)?;
    lab.b.start_agent()?;
    whole_again(&lab, &container, clients, Place::Source)
}

#[test]
fn the_same_request_twice_is_one_migration_also_after_a_restart() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&bundle("redis-1"))?;
    let start = || {
        let words =
            ["--json", "migrate", &container.name, "--to", "host-b", "--detach", "--request-id", "job-7"];
        output(lab.a.ctl()?.args(words))
    };
    let first = start()?;
    ensure!(first == start()?, "two migrations for one request");
    lab.a.await_ends()?;
    lab.a.stop_agent(Signal::SIGTERM)?;
    lab.a.start_agent()?;
    ensure!(first == start()?, "the request is forgotten");
    let listed = lab.a.migrations()?;
    ensure!(listed.len() == 1 && listed[0]["phase"] == "done", "{listed:?}");
    Ok(())
}

#[test]
fn a_journal_that_cannot_be_written_stops_the_migration_before_the_container() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&bundle("redis-1"))?;
    let clients = Redis::new(&lab.client, container.v4).clients(2, Duration::from_millis(1))?;
    for host in [&lab.a, &lab.b] {
        let state = lab.directory().join(host.name()).join("state/migrations").display().to_string();
        host.node().run(&["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", &state])?;
        let refusal = lab.a.migrate_in_vain(&container.name, "host-b", &[])?;
        ensure!(refusal.exit == Some(FAILED) && refusal.problem.code == "journal-failed", "{refusal:?}");
        ensure!(refusal.problem.message.contains("migrations"), "{refusal:?}");
        host.node().run(&["umount", &state])?;
    }
    ensure!(container.status(&lab.b)?.is_none(), "the destination has something left");
    migrate(&container, &lab.a, &lab.b, &[])?;
    clients.wait_for_answers(100)?;
    clients.stop()?.nothing_lost()
}
