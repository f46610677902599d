//! Originals that are kept once their copy runs, and that are gone back to.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::Signal;
use pclive_tests::command::finish;
use pclive_tests::ctl::{FAILED, Following};
use pclive_tests::link::TEN_GIGABIT;
use pclive_tests::wait::until;
use pclive_tests::workload::redis::{Redis, bundle};
use pclive_tests::{Container, Host, Lab};
use serde_json::Value;

use crate::recovery::is_frozen;
use crate::sweep::{Point, points_of_undoing};
use crate::{migrate, ready, runs_only_at};

const LIMIT: Duration = Duration::from_secs(60);

/// A lab whose agents can be armed, with a small Redis on host a that knows where it was when.
fn lab() -> Result<(Lab, Container)> {
    let lab = Lab::without_agents(TEN_GIGABIT)?;
    lab.certify()?;
    lab.a.start_faulty_agent("")?;
    lab.b.start_faulty_agent("")?;
    let container = lab.start(&bundle("redis-1"))?;
    Redis::new(&lab.client, container.v4).populate(4 << 20)?;
    Ok((lab, container))
}

fn set(lab: &Lab, container: &Container, value: &str) -> Result<()> {
    let reply = Redis::new(&lab.client, container.v4).ask(&["SET", "where", value])?;
    ensure!(reply.text().as_deref() == Some("OK"), "{reply:?}");
    Ok(())
}

fn value(lab: &Lab, container: &Container) -> Result<Option<String>> {
    Ok(Redis::new(&lab.client, container.v4).ask(&["GET", "where"])?.text())
}

/// Migrates from a to b and keeps the original for a time; the migration's id.
fn kept(lab: &Lab, container: &Container, time: &str) -> Result<String> {
    set(lab, container, "before")?;
    lab.a.migrate(&container.name, &lab.b, &["--keep-source-for", time])?;
    ensure!(container.status(&lab.b)?.as_deref() == Some("running"), "it does not run on host-b");
    ensure!(container.status(&lab.a)?.is_some() && is_frozen(&lab.a, container), "there is no original");
    set(lab, container, "after")?;
    newest(&lab.a)
}

fn newest(host: &Host) -> Result<String> {
    let listed = host.migrations()?;
    Ok(listed.first().and_then(|newest| newest["migration_id"].as_str()).context("no migration")?.to_owned())
}

/// An undo that is refused for this, with nothing done.
fn undo_is_refused(host: &Host, id: &str, why: &str) -> Result<()> {
    let refused = finish(host.ctl()?.args(["--json", "undo", id, "--yes"]))?;
    let said = String::from_utf8_lossy(&refused.stdout).into_owned();
    ensure!(refused.status.code() == Some(FAILED) && said.contains(why), "{said}");
    Ok(())
}

/// The container runs at host a, as it was at the stop; nothing of the copy is left.
fn is_back(lab: &Lab, container: &Container) -> Result<()> {
    runs_only_at(container, &lab.a, &lab.b)?;
    until("an answer of the original", LIMIT, || Ok(value(lab, container).is_ok()))?;
    let found = value(lab, container)?;
    ensure!(found.as_deref() == Some("before"), "{found:?}");
    lab.a.audit_agrees()?;
    lab.b.audit_agrees()
}

#[test]
fn an_original_that_is_kept_is_removed_when_its_time_is_over() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container) = lab()?;
    let id = kept(&lab, &container, "10s")?;
    let status = lab.a.ask(&["status", &id])?;
    ensure!(status["phase"] == "done" && status["kept"]["until_unix_ms"].is_u64(), "{status}");
    let back = lab.b.migrate_in_vain(&container.name, "host-a", &[])?;
    ensure!(format!("{back:?}").contains("its original is kept here"), "{back:?}");
    until("the end of the original", LIMIT, || Ok(container.status(&lab.a)?.is_none()))?;
    runs_only_at(&container, &lab.b, &lab.a)?;
    undo_is_refused(&lab.a, &id, "not-kept")?;
    lab.a.audit_agrees()?;
    // Removed before its time is over.
    migrate(&container, &lab.b, &lab.a, &[])?;
    let id = kept(&lab, &container, "10min")?;
    let resolved = lab.a.ask(&["resolve", &id, "--discard-here"])?;
    ensure!(resolved["phase"] == "done", "{resolved}");
    runs_only_at(&container, &lab.b, &lab.a)?;
    ensure!(value(&lab, &container)?.as_deref() == Some("after"), "the copy has lost something");
    migrate(&container, &lab.b, &lab.a, &[]).map(drop)
}

#[test]
fn an_original_that_is_wanted_back_goes_on_as_it_was() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container) = lab()?;
    let address = (container.v4, 6379).into();
    // A client that says nothing meanwhile.
    let connect = move || TcpStream::connect_timeout(&address, LIMIT);
    let mut silent = lab.client.in_network(connect)?.join().map_err(|_| anyhow!("the client panicked"))??;
    silent.set_read_timeout(Some(LIMIT))?;
    let id = kept(&lab, &container, "10min")?;
    let told = lab.a.ask(&["undo", &id])?;
    ensure!(told["undone"] == false && told["kept"]["stopped_unix_ms"].is_u64(), "{told}");
    ensure!(value(&lab, &container)?.as_deref() == Some("after"), "something was done without a yes");
    // A restarted agent keeps it on.
    lab.a.stop_agent(Signal::SIGKILL)?;
    lab.a.start_faulty_agent("")?;
    ensure!(lab.a.ask(&["status", &id])?["kept"]["until_unix_ms"].is_u64(), "it is not kept any more");
    // Without the destination nothing is begun that could not be ended.
    lab.b.stop_agent(Signal::SIGKILL)?;
    undo_is_refused(&lab.a, &id, "peer-disagrees")?;
    lab.b.start_faulty_agent("")?;
    ensure!(lab.a.ask(&["status", &id])?["kept"]["until_unix_ms"].is_u64(), "it is not kept any more");
    for _ in 0..2 {
        // Asking again changes nothing.
        let undone = lab.a.ask(&["undo", &id, "--yes"])?;
        ensure!(undone["undone"] == true && undone["phase"] == "failed", "{undone}");
    }
    is_back(&lab, &container)?;
    // As of any server that is killed.
    let heard = silent.read(&mut [0]);
    let ended = heard.as_ref().is_ok_and(|read| *read == 0)
        || heard.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
    ensure!(ended, "the silent client has not heard of the end of the copy: {heard:?}");
    let clients = Redis::new(&lab.client, container.v4).ask(&["INFO", "clients"])?.text().unwrap_or_default();
    ensure!(clients.contains("connected_clients:1\r\n"), "the original has kept a connection: {clients}");
    migrate(&container, &lab.a, &lab.b, &[])?;
    ensure!(value(&lab, &container)?.as_deref() == Some("before"), "the second migration has lost something");
    Ok(())
}

#[test]
fn an_original_that_is_gone_ends_no_copy() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container) = lab()?;
    let id = kept(&lab, &container, "10min")?;
    container.delete(&lab.a)?;
    undo_is_refused(&lab.a, &id, "not-kept")?;
    ensure!(value(&lab, &container)?.as_deref() == Some("after"), "the copy does not run any more");
    let resolved = lab.a.ask(&["resolve", &id, "--discard-here"])?;
    ensure!(resolved["phase"] == "done", "{resolved}");
    runs_only_at(&container, &lab.b, &lab.a)
}

#[test]
fn another_container_of_the_name_is_not_ended_for_an_original() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container) = lab()?;
    let id = kept(&lab, &container, "10min")?;
    // Its copy has ended, and another container has its name.
    container.delete(&lab.b)?;
    container.start(&lab.b)?;
    undo_is_refused(&lab.a, &id, "another container of this name")?;
    ensure!(container.status(&lab.b)?.as_deref() == Some("running"), "the other container was ended");
    ensure!(lab.a.ask(&["status", &id])?["kept"]["until_unix_ms"].is_u64(), "it is not kept any more");
    // With that one gone, nothing stands in the way.
    container.delete(&lab.b)?;
    let undone = lab.a.ask(&["undo", &id, "--yes"])?;
    ensure!(undone["undone"] == true, "{undone}");
    is_back(&lab, &container)
}

/// Kills an agent at the point; after its restart exactly one copy runs, where the point says.
fn survive(lab: &Lab, container: &Container, point: &Point) -> Result<()> {
    let victim = if point.name.starts_with("source") { &lab.a } else { &lab.b };
    let arm = || victim.arm(&format!("{}:kill", point.name));
    if point.policy == "keep" {
        set(lab, container, "before")?;
        arm()?;
        let following = Following::start(&lab.a, &container.name, "host-b", &["--keep-source-for", "10min"])?;
        victim.await_agent_end().context("the point was not reached")?;
        drop(following);
    } else {
        let id = kept(lab, container, "10min")?;
        arm()?;
        let mut undo = lab.a.ctl()?;
        let mut undo =
            undo.args(["undo", &id, "--yes"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        victim.await_agent_end().context("the point was not reached")?;
        undo.wait()?;
    }
    victim.start_faulty_agent("")?;
    lab.a.await_ends()?;
    lab.b.await_ends()?;
    if point.survivor == "source" {
        return is_back(lab, container);
    }
    // What was asked for is kept, and what was not decided.
    let id = newest(&lab.a)?;
    ensure!(lab.a.ask(&["status", &id])?["kept"] != Value::Null, "the original is not kept");
    lab.a.ask(&["resolve", &id, "--discard-here"])?;
    runs_only_at(container, &lab.b, &lab.a)?;
    lab.a.audit_agrees()?;
    lab.b.audit_agrees()?;
    migrate(container, &lab.b, &lab.a, &[]).map(drop)
}

#[test]
fn agents_killed_while_an_original_is_kept_or_wanted_back_leave_one_copy() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let points = points_of_undoing()?;
    ensure!(points.len() >= 8, "{} points", points.len());
    let (lab, container) = lab()?;
    for point in &points {
        survive(&lab, &container, point)
            .with_context(|| format!("{}\n{}{}", point.name, lab.a.last_words(), lab.b.last_words()))?;
    }
    Ok(())
}
