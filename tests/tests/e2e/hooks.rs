//! Commands of the site at points of a migration: when they run, what they are told, and what their failure does.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use pclive_tests::ctl::{FAILED, Following};
use pclive_tests::link::TEN_GIGABIT;
use pclive_tests::wait::until;
use pclive_tests::workload::clients::Clients;
use pclive_tests::workload::redis::{Redis, bundle};
use pclive_tests::{Container, Host, Lab};

use crate::{migrate, nothing_left_in_network, ready};

const LIMIT: Duration = Duration::from_secs(30);

/// What a hook writes down of itself: a line in a file that both hosts see. `$state` is that of the container's init.
const NOTE: &str = r#"#!/bin/sh
state=$(sed -n 's/^State:\t\(.\).*/\1/p' "/proc/${PCLIVE_PID:-none}/status" 2>/dev/null)
echo "$PCLIVE_HOOK $PCLIVE_ROLE $PCLIVE_CONTAINER $PCLIVE_PEER $PCLIVE_RUNTIME $PCLIVE_MIGRATION" \
    "${state:-none} reason=$PCLIVE_REASON" >> "$(dirname "$0")/notes"
"#;

/// A lab whose agents have hooks, with a small Redis on host a and clients.
struct Site {
    lab: Lab,
    container: Container,
    clients: Clients,
}

impl Site {
    /// Each point has the script that writes a note, followed by these lines, if there are some for it.
    fn new(lines: &[(&str, &str)], configuration: &str) -> Result<Self> {
        let lab = Lab::without_agents(TEN_GIGABIT)?;
        lab.certify()?;
        let mut hooks = format!("[hooks]\n{configuration}");
        for point in ["before_freeze", "after_resume", "after_source_destroyed", "on_rollback"] {
            let path = lab.directory().join(point);
            let more = lines.iter().find(|(name, _)| *name == point).map_or("", |(_, lines)| lines);
            std::fs::write(&path, format!("{NOTE}{more}\n")).context("cannot write a hook")?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
            hooks += &format!("{point} = [{path:?}]\n");
        }
        lab.a.start_agent_with(&hooks)?;
        lab.b.start_agent_with(&hooks)?;
        let container = lab.start(&bundle("redis-1"))?;
        let redis = Redis::new(&lab.client, container.v4);
        redis.populate(16 << 20)?;
        let clients = redis.clients(2, Duration::from_millis(1))?;
        Ok(Self { lab, container, clients })
    }

    fn notes_file(&self) -> PathBuf {
        self.lab.directory().join("notes")
    }

    /// The notes so far; they begin anew.
    fn notes(&self) -> Result<Vec<Vec<String>>> {
        let text = std::fs::read_to_string(self.notes_file()).context("no hook has run")?;
        std::fs::remove_file(self.notes_file())?;
        Ok(text.lines().map(|line| line.split(' ').map(String::from).collect()).collect())
    }

    /// The container runs at the source, its clients have not noticed, and the other host is clean.
    fn unharmed(&self) -> Result<()> {
        ensure!(self.container.status(&self.lab.a)?.as_deref() == Some("running"), "the source does not run");
        ensure!(self.container.status(&self.lab.b)?.is_none(), "the destination has something left");
        nothing_left_in_network(&self.lab.b)?;
        self.clients.wait_for_answers(100).map(drop)
    }
}

/// The hooks and roles of notes, in order.
fn order(notes: &[Vec<String>]) -> Vec<String> {
    notes.iter().map(|note| format!("{} {}", note[0], note[1])).collect()
}

fn process_lives(host: &Host, words: &str) -> Result<bool> {
    let lists =
        host.node().run(&["sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; true"])?;
    Ok(lists.contains(words))
}

#[test]
fn hooks_run_in_order_while_the_container_runs_and_know_the_migration() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let site = Site::new(&[], "")?;
    let Site { lab, container, clients } = &site;
    let migration = Following::start(&lab.a, &container.name, "host-b", &[])?;
    let said = migration.everything()?;
    ensure!(said.last().is_some_and(|line| line["event"] == "done"), "{said:?}\n{}", lab.a.last_words());
    ensure!(!said.iter().any(|line| line["event"] == "warning"), "{said:?}");
    let id = said[0]["migration_id"].as_str().context("no id")?;
    // The ends work side by side: what is ordered is the begin, and each end of its own.
    let notes = site.notes()?;
    let mut points = order(&notes);
    ensure!(points[0] == "before-freeze source", "{points:?}");
    points.sort();
    ensure!(points == ["after-resume destination", "after-source-destroyed source", "before-freeze source"]);
    for note in &notes {
        let (peer, alive) = match note[0].as_str() {
            "before-freeze" => ("host-b", true),
            "after-resume" => ("host-a", true),
            _ => ("host-b", false),
        };
        ensure!(note[2..6] == ["redis-1", peer, "runc", id], "{note:?}");
        // Sleeping, running or waiting for the disk; never stopped or traced.
        ensure!(alive == ["S", "R", "D"].contains(&note[6].as_str()), "{note:?}");
        ensure!(note[7] == "reason=", "{note:?}");
    }
    clients.wait_for_answers(100)?;
    site.clients.stop()?.nothing_lost()
}

#[test]
fn a_before_freeze_hook_that_fails_ends_the_migration_with_the_container_unharmed() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let site = Site::new(&[("before_freeze", "echo the router says no >&2; exit 7")], "")?;
    let (lab, container) = (&site.lab, &site.container);
    let migration = Following::start(&lab.a, &container.name, "host-b", &[])?;
    let refusal = migration.finish()?.err().context("migrated in spite of the hook")?;
    ensure!(refusal.exit == Some(FAILED) && refusal.problem.code == "hook-failed", "{refusal:?}");
    for words in ["before-freeze", "/before_freeze\"", "exit status: 7", "the router says no"] {
        ensure!(refusal.problem.message.contains(words), "{refusal:?}");
    }
    site.unharmed()?;
    let notes = site.notes()?;
    let mut points = order(&notes);
    ensure!(points[0] == "before-freeze source", "{points:?}");
    points.sort();
    ensure!(
        points == ["before-freeze source", "on-rollback destination", "on-rollback source"],
        "{points:?}"
    );
    ensure!(notes.iter().filter(|note| note[7] == "reason=hook-failed").count() == 2, "{notes:?}");
    // Without hooks it works.
    lab.a.stop_agent(Signal::SIGTERM)?;
    lab.a.start_agent()?;
    migrate(container, &lab.a, &lab.b, &[])?;
    site.clients.stop()?.nothing_lost()
}

#[test]
fn a_before_freeze_hook_that_hangs_is_killed_and_the_container_unharmed() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let site = Site::new(&[("before_freeze", "sleep 86397")], "timeout_ms = 700\n")?;
    let (lab, container) = (&site.lab, &site.container);
    let refusal = lab.a.migrate_in_vain(&container.name, "host-b", &[])?;
    ensure!(refusal.problem.code == "hook-failed", "{refusal:?}");
    ensure!(refusal.problem.message.contains("took longer than 700ms and was killed"), "{refusal:?}");
    ensure!(!process_lives(&lab.a, "sleep 86397")?, "the hook lives on");
    site.unharmed()?;
    site.clients.stop()?.nothing_lost()
}

#[test]
fn failures_of_later_hooks_are_warnings() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let fails = "echo no route >&2; exit 1";
    let site = Site::new(&[("after_resume", fails), ("after_source_destroyed", fails)], "")?;
    let (lab, container) = (&site.lab, &site.container);
    let said = Following::start(&lab.a, &container.name, "host-b", &[])?.everything()?;
    ensure!(said.last().is_some_and(|line| line["event"] == "done"), "{said:?}\n{}", lab.a.last_words());
    for words in ["at the destination: hook after-resume failed", "hook after-source-destroyed failed"] {
        let warned = |line: &serde_json::Value| {
            line["event"] == "warning"
                && line["message"]
                    .as_str()
                    .is_some_and(|said| said.contains(words) && said.contains("no route"))
        };
        ensure!(said.iter().any(warned), "no warning {words:?}: {said:?}");
    }
    ensure!(container.status(&lab.b)?.as_deref() == Some("running"), "it does not run");
    ensure!(lab.b.agent_log().contains("hook after-resume failed"), "{}", lab.b.last_words());
    site.clients.wait_for_answers(100)?;
    site.clients.stop()?.nothing_lost()
}

#[test]
fn a_hook_dies_with_its_agent_and_the_successor_rolls_back() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let site = Site::new(&[("before_freeze", "sleep 86396")], "")?;
    let (lab, container) = (&site.lab, &site.container);
    let migration = Following::start(&lab.a, &container.name, "host-b", &[])?;
    until("the hook", LIMIT, || process_lives(&lab.a, "sleep 86396"))?;
    lab.a.stop_agent(Signal::SIGKILL)?;
    until("the hook's end", LIMIT, || Ok(!process_lives(&lab.a, "sleep 86396")?))?;
    drop(migration);
    std::fs::remove_file(site.notes_file())?;
    let rollback = lab.directory().join("on_rollback");
    lab.a.start_agent_with(&format!("[hooks]\non_rollback = [{rollback:?}]\n"))?;
    until("the rollback at both ends", LIMIT, || {
        let notes = std::fs::read_to_string(site.notes_file()).unwrap_or_default();
        Ok(["on-rollback source", "on-rollback destination"].iter().all(|words| notes.contains(words)))
    })?;
    site.unharmed()?;
    migrate(container, &lab.a, &lab.b, &[])?;
    site.clients.stop()?.nothing_lost()
}
