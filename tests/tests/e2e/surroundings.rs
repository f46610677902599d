//! Agents whose surroundings fail them: descriptors, the journal's disk, memory. The container does not notice, the
//! reason is told, and once there is enough again a second attempt succeeds.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use pclive_tests::command::output;
use pclive_tests::ctl::{Following, Refusal};
use pclive_tests::link::TEN_GIGABIT;
use pclive_tests::workload::clients::Clients;
use pclive_tests::workload::redis::{Redis, bundle};
use pclive_tests::{Container, Host, Lab};

use crate::{migrate, ready};

/// A lab without agents, with a small Redis on host a and clients that must not notice anything.
fn lab(mib: u64) -> Result<(Lab, Container, Clients)> {
    let lab = Lab::without_agents(TEN_GIGABIT)?;
    lab.certify()?;
    let container = lab.start(&bundle("redis-1"))?;
    let redis = Redis::new(&lab.client, container.v4);
    redis.populate(mib << 20)?;
    let clients = redis.clients(40, Duration::from_millis(5))?;
    Ok((lab, container, clients))
}

/// It runs at the source with all its connections, nothing is left of the attempt, and a migration works.
fn unharmed(lab: &Lab, container: &Container, clients: Clients) -> Result<()> {
    lab.a.await_ends()?;
    lab.b.await_ends()?;
    lab.a.await_clean(&[container])?;
    lab.b.await_clean(&[])?;
    clients.wait_for_answers(100)?;
    migrate(container, &lab.a, &lab.b, &[])?;
    clients.wait_for_answers(100)?;
    clients.stop()?.nothing_lost()
}

fn says(refusal: &Refusal, words: &str) -> Result<()> {
    let text = refusal.problem.message.to_lowercase();
    ensure!(refusal.exit == Some(1) && text.contains(words), "it does not say {words:?}: {refusal:?}");
    Ok(())
}

/// The agent of one end may open few files.
fn out_of_descriptors(at_the_source: bool) -> Result<()> {
    if !ready(&["redis-server", "prlimit"]) {
        return Ok(());
    }
    let (lab, container, clients) = lab(8)?;
    lab.a.start_agent()?;
    lab.b.start_agent()?;
    let limited = if at_the_source { &lab.a } else { &lab.b };
    let limit = |descriptors: &str| {
        let pid = limited.agent_pid()?.to_string();
        output(Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={descriptors}:")])).map(drop)
    };
    // The runtime gives containers more than that, up to the hard limit.
    limit("48")?;
    let refusal = lab.a.migrate_in_vain(&container.name, "host-b", &[])?;
    eprintln!("{:?}", refusal.problem);
    says(&refusal, "too many open files")?;
    ensure!(refusal.problem.hint.as_ref().is_some_and(|hint| hint.contains("LimitNOFILE")), "{refusal:?}");
    limit("4096")?;
    unharmed(&lab, &container, clients)
}

#[test]
fn source_out_of_descriptors_says_so_and_works_with_more() -> Result<()> {
    out_of_descriptors(true)
}

#[test]
fn destination_out_of_descriptors_says_so_and_works_with_more() -> Result<()> {
    out_of_descriptors(false)
}

/// Gives a host's journal a small disk of its own; its agent does not run yet.
fn small_disk(host: &Host) -> Result<String> {
    let path = host.journal();
    std::fs::create_dir_all(&path)?;
    let path = path.display().to_string();
    host.node().run(&["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", &path])?;
    Ok(path)
}

fn fill(host: &Host, path: &str) -> Result<()> {
    let script = format!("dd if=/dev/zero of={path}/filler bs=4k 2>/dev/null; test -s {path}/filler");
    host.node().run(&["sh", "-c", &script]).map(drop)
}

#[test]
fn journal_on_a_full_disk_refuses_migrations_until_there_is_room() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = lab(8)?;
    let disks = [small_disk(&lab.a)?, small_disk(&lab.b)?];
    lab.a.start_agent()?;
    lab.b.start_agent()?;
    for (host, disk) in [&lab.a, &lab.b].into_iter().zip(&disks) {
        fill(host, disk)?;
        let refusal = lab.a.migrate_in_vain(&container.name, "host-b", &[])?;
        ensure!(refusal.problem.code == "journal-failed", "{refusal:?}");
        says(&refusal, "no space left")?;
        host.node().run(&["rm", &format!("{disk}/filler")])?;
    }
    unharmed(&lab, &container, clients)
}

#[test]
fn journal_whose_disk_becomes_full_has_its_room_for_what_is_under_way() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = lab(8)?;
    let disks = [small_disk(&lab.a)?, small_disk(&lab.b)?];
    lab.a.start_faulty_agent("")?;
    lab.b.start_agent()?;
    lab.a.arm("source-round:hold")?;
    let following = Following::start(&lab.a, &container.name, "host-b", &[])?;
    lab.a.await_hold()?;
    fill(&lab.a, &disks[0])?;
    fill(&lab.b, &disks[1])?;
    lab.a.end_hold()?;
    following.finish()?.map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
    clients.wait_for_answers(100)?;
    // The ends could not be written: successors come to the same ones.
    for (host, disk) in [&lab.a, &lab.b].into_iter().zip(&disks) {
        host.stop_agent(Signal::SIGKILL)?;
        host.node().run(&["rm", &format!("{disk}/filler")])?;
        host.start_agent()?;
        host.await_ends()?;
        let listed = host.migrations()?;
        ensure!(listed.len() == 1 && listed[0]["phase"] == "done", "{listed:?}");
    }
    lab.a.await_clean(&[])?;
    lab.b.await_clean(&[&container])?;
    migrate(&container, &lab.b, &lab.a, &[])?;
    clients.stop()?.nothing_lost()
}

#[test]
fn state_directory_that_becomes_read_only_rolls_back_before_the_commit() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = lab(8)?;
    let disks = [small_disk(&lab.a)?, small_disk(&lab.b)?];
    lab.a.start_faulty_agent("")?;
    lab.b.start_agent()?;
    for (host, disk) in [&lab.a, &lab.b].into_iter().zip(&disks) {
        lab.a.arm("source-round:hold")?;
        let following = Following::start(&lab.a, &container.name, "host-b", &[])?;
        lab.a.await_hold()?;
        host.node().run(&["mount", "-o", "remount,ro", disk])?;
        lab.a.end_hold()?;
        let refusal = following.finish()?.err().context("migrated without a journal")?;
        ensure!(refusal.problem.code == "journal-failed", "{refusal:?}");
        says(&refusal, "read-only")?;
        host.node().run(&["mount", "-o", "remount,rw", disk])?;
        clients.wait_for_answers(100)?;
    }
    unharmed(&lab, &container, clients)
}

#[test]
fn destination_agent_that_is_ended_for_want_of_memory_leaves_the_source_running() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = lab(128)?;
    lab.a.start_agent()?;
    lab.b.start_agent()?;
    let limit = MemoryLimit::of_agent(&lab.b, 96 << 20)?;
    // Everything waits in the agent's memory.
    let refusal = lab.a.migrate_in_vain(&container.name, "host-b", &["--strategy", "one-shot"])?;
    eprintln!("{:?}", refusal.problem);
    ensure!(refusal.problem.code == "peer-lost", "{refusal:?}");
    lab.b.await_agent_end()?;
    drop(limit);
    lab.b.start_agent()?;
    unharmed(&lab, &container, clients)
}

/// A memory cgroup with an agent in it.
struct MemoryLimit(std::path::PathBuf);

impl MemoryLimit {
    fn of_agent(host: &Host, bytes: u64) -> Result<Self> {
        let name = format!("{}-agent", host.cgroup().trim_start_matches('/').replace('/', "-"));
        let (root, file) = match std::path::Path::new("/sys/fs/cgroup/memory").is_dir() {
            true => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            false => ("/sys/fs/cgroup", "memory.max"),
        };
        let path = std::path::Path::new(root).join(name);
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let limit = Self(path);
        std::fs::write(limit.0.join(file), bytes.to_string())?;
        std::fs::write(limit.0.join("cgroup.procs"), host.agent_pid()?.to_string())?;
        Ok(limit)
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn audit_record_that_cannot_be_written_is_a_warning_and_stops_no_migration() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = lab(8)?;
    lab.a.start_agent()?;
    lab.b.start_agent()?;
    std::fs::create_dir(lab.a.audit())?;
    let mut following = Following::start(&lab.a, &container.name, lab.b.name(), &[])?;
    following.wait_for("the warning", |line| {
        line["event"] == "warning"
            && line["message"].as_str().is_some_and(|text| text.contains("audit record"))
    })?;
    following.finish()?.map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
    lab.b.audit_agrees()?;
    lab.a.await_clean(&[])?;
    lab.b.await_clean(&[&container])?;
    clients.stop()?.nothing_lost()
}
