//! Everything that stands in the way of a migration, found while the container runs.
//!
//! Nothing is stopped or changed. What ends while it is looked at cannot stand in the way.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::time::Duration;

use super::files::Table;
use super::in_memory::InMemory;
use super::tree::{self, TreeProcess};
use super::vmas::{self, MappingBlocker, ProcessVmas};
use super::{CaptureError, obstacles, terminals};
use crate::memory::Objects;
use crate::model::{Blocker, Deadline, Pid, Place, Vpid};
use crate::sys::kcmp;

/// What has not passed by itself after that time stays, and how long it has between two looks.
pub(super) const PASSES_WITHIN: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(20);

/// Looks at the container whose init is `init`.
pub(super) fn container(init: Pid, files: &Table) -> Result<Vec<Blocker>, CaptureError> {
    let tree = tree::read(init)?;
    let mut found = Vec::new();
    let depth = tree.first().map(|process| process.depth);
    let live: Vec<&TreeProcess> = tree.iter().filter(|process| process.zombie.is_none()).collect();
    for process in &tree {
        found.extend(self::process(process, depth));
    }
    let mut objects = Objects::new();
    let in_memory = InMemory::find(init, &mut objects)?;
    for process in &live {
        found.extend(mappings(process, &mut objects));
        found.extend(obstacles::find(process, init));
    }
    if let Some(first) = tree.first() {
        found.extend(in_memory.hold(files.root(), first, &mut objects)?.1);
    }
    found.extend(lasting(init)?);
    found.extend(files.check(&objects, || Ok::<_, CaptureError>(live_ids(&tree::read(init)?)))?);
    found.extend(terminals::check(init, files)?);
    found.extend(strangers(init, &tree));
    Ok(found)
}

/// What passes by itself as a rule, if it does not: a process that has lost its first thread is about to end, or to execute
/// a program; a child of vfork(2) shares its parent's memory until it does.
fn lasting(init: Pid) -> Result<Vec<Blocker>, CaptureError> {
    let look = || {
        let tree = tree::read(init)?;
        let found = tree.iter().filter_map(headless).chain(shared_memory(tree.iter()));
        Ok::<_, CaptureError>(found.collect::<Vec<_>>())
    };
    let mut found = look()?;
    let deadline = Deadline::after(PASSES_WITHIN);
    while !found.is_empty() && !deadline.passed() {
        std::thread::sleep(PAUSE);
        let again = look()?;
        found.retain(|blocker| again.contains(blocker));
    }
    Ok(found)
}

/// A process that lives on without its first thread.
pub(super) fn headless(process: &TreeProcess) -> Option<Blocker> {
    let what = "its first thread has ended while others run";
    let hint = "the process must end or be restarted";
    let lives_on = process.zombie.is_some() && !process.threads.is_empty();
    lives_on.then(|| blocker(process, Place::Process, what.into(), hint))
}

pub(super) fn live_ids(tree: &[TreeProcess]) -> Vec<(Pid, Vpid)> {
    let live = tree.iter().filter(|process| process.zombie.is_none());
    live.map(|process| (process.pid, process.vpid)).collect()
}

/// Processes that live in the memory of their parents.
pub(super) fn shared_memory<'a>(tree: impl Iterator<Item = &'a TreeProcess>) -> Vec<Blocker> {
    let live: Vec<&TreeProcess> = tree.filter(|process| process.zombie.is_none()).collect();
    let by_vpid: HashMap<Vpid, &TreeProcess> = live.iter().map(|process| (process.vpid, *process)).collect();
    let shares = |process: &&&TreeProcess| {
        let parent = by_vpid.get(&process.parent);
        parent.is_some_and(|parent| kcmp::memory(parent.pid, process.pid) == Ok(Ordering::Equal))
    };
    let blocker = |process: &&TreeProcess| {
        let what = format!("address space shared with process {}", process.parent);
        let hint = "try again: a vfork ends by itself; a clone(CLONE_VM) without threads cannot be carried";
        blocker(process, Place::Process, what, hint)
    };
    live.iter().filter(shares).map(blocker).collect()
}

fn process(process: &TreeProcess, depth: Option<usize>) -> Vec<Blocker> {
    let mut found = Vec::new();
    let mut refuse = |what: String, hint: &str| found.push(blocker(process, Place::Process, what, hint));
    if Some(process.depth) != depth {
        refuse("nested PID namespace".into(), "containers inside the container cannot be carried");
    }
    if process.tracer != 0 {
        refuse(format!("traced by pid {}", process.tracer), "detach the debugger (gdb, strace) first");
    }
    if process.sid.0 == 0 || process.pgid.0 == 0 {
        refuse(
            "session or process group led from outside the container".into(),
            "end processes that were started by `runc exec`, or wait for them",
        );
    }
    found
}

/// A mapping that was replaced while it was looked at may look like what cannot be carried: only what is found twice
/// counts.
fn mappings(process: &TreeProcess, objects: &mut Objects) -> Vec<Blocker> {
    let mut found = mappings_now(process, objects);
    if !found.is_empty() {
        let again = mappings_now(process, objects);
        found.retain(|blocker| again.contains(blocker));
    }
    found
}

fn mappings_now(process: &TreeProcess, objects: &mut Objects) -> Vec<Blocker> {
    match vmas::read_vmas(process.pid, objects, &[], true) {
        Ok(found) => {
            let foreign = vmas::foreign_userfaultfd(&found.userfault);
            let foreign = foreign.into_iter().map(|mapping| mapping_blocker(process, &mapping));
            mapping_blockers(process, &found).into_iter().chain(foreign).collect()
        }
        Err(error) if error.is_gone() => Vec::new(),
        Err(error) => vec![blocker(process, Place::Process, error.to_string(), "see the agent's log")],
    }
}

/// The mappings of a process that cannot be carried.
pub(super) fn mapping_blockers(process: &TreeProcess, found: &ProcessVmas) -> Vec<Blocker> {
    found.blockers.iter().map(|mapping| mapping_blocker(process, mapping)).collect()
}

fn mapping_blocker(process: &TreeProcess, mapping: &MappingBlocker) -> Blocker {
    blocker(process, mapping.place(), mapping.what.clone(), &mapping.hint)
}

/// Processes in the container's cgroup that are not below its init.
fn strangers(init: Pid, tree: &[TreeProcess]) -> Vec<Blocker> {
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = namespace(init.0);
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let inside = ids.filter(|pid| own.is_some() && namespace(*pid) == own);
    let foreign = inside.filter(|pid| tree.iter().all(|process| process.pid.0 != *pid));
    let confirmed: Vec<i32> = foreign.collect();
    if confirmed.is_empty() {
        return Vec::new();
    }
    // Children born between the two readings are no strangers.
    let Ok(again) = tree::read(init) else { return Vec::new() };
    let left = confirmed.into_iter().filter(|pid| again.iter().all(|process| process.pid.0 != *pid));
    left.filter(|pid| namespace(*pid) == own)
        .map(|pid| Blocker {
            pid,
            vpid: Vpid(0),
            comm: printable_comm(Pid(pid)),
            place: Place::Process,
            what: "process whose parent is outside the container".into(),
            hint: "it was started by `runc exec` or the like: end it, or wait for it".into(),
        })
        .collect()
}

pub(super) fn blocker(process: &TreeProcess, place: Place, what: String, hint: &str) -> Blocker {
    let comm = printable_comm(process.pid);
    Blocker { pid: process.pid.0, vpid: process.vpid, comm, place, what, hint: hint.into() }
}

/// The name of a process, with what no terminal should see made visible.
pub(super) fn printable_comm(pid: Pid) -> String {
    let comm = crate::proc::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    String::from_utf8_lossy(comm.strip_suffix(b"\n").unwrap_or(&comm)).escape_debug().to_string()
}
