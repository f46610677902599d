//! The parts that a pre-copy round and the final dump have in common: the container's shape, its shared memory.

use std::cmp::Ordering;
use std::os::unix::ffi::OsStringExt;

use super::CaptureError;
use super::check;
use super::in_memory::{self, InMemory};
use super::sink::{RoundStats, Sink};
use super::source::Source;
use super::tracked::Tracked;
use super::tree::TreeProcess;
use super::vmas::{self, ProcessVmas};
use crate::memory::{MemoryError, Objects, SpaceStats, Task};
use crate::model::terminal::number_of_device;
use crate::model::{Blocker, Layout, Pid, ProcessLayout, Vma, Vpid};
use crate::sys::kcmp;

/// A layout in the making, with what the agent knows of each process beside it.
#[derive(Debug, Default)]
pub(super) struct Shape {
    pub(super) layout: Layout,
    pub(super) blockers: Vec<Blocker>,
    pids: Vec<Pid>,
}

impl Shape {
    /// A process that has ended and was not reaped yet.
    pub(super) fn add_zombie(&mut self, process: &TreeProcess) {
        self.add(process, Vec::new(), 0, ProcessVmas::default());
    }

    fn add(&mut self, process: &TreeProcess, exe: Vec<u8>, generation: u32, found: ProcessVmas) {
        // A child without its parent in the layout has been left out with it.
        if process.vpid != Vpid(1) && !self.layout.processes.iter().any(|p| p.vpid == process.parent) {
            return;
        }
        self.pids.push(process.pid);
        self.layout.processes.push(ProcessLayout {
            vpid: process.vpid,
            start_time: process.start_time,
            parent: process.parent,
            pgid: process.pgid,
            sid: process.sid,
            terminal: number_of_device(process.terminal.into()),
            zombie: process.zombie,
            generation,
            exe,
            threads: process.threads.iter().map(|thread| thread.layout.clone()).collect(),
            vmas: found.vmas,
            vdso: found.vdso,
        });
    }

    /// Completes the layout once every process is in it. Shared memory that only a process had that ended while it
    /// was looked at is nobody's now.
    pub(super) fn finish(&mut self, objects: &mut Objects) {
        let vmas = self.layout.processes.iter().flat_map(|process| &process.vmas);
        objects.keep(&vmas.filter_map(|vma| vma.mapping.object()).collect());
        let nodes = self.layout.trees.iter().flat_map(|tree| &tree.nodes);
        objects.unlink_others(&nodes.filter_map(|node| node.kind.object()).collect());
        self.layout.objects = objects.layouts();
    }

    /// Live processes and their mappings.
    pub(super) fn vmas(&self) -> impl Iterator<Item = (Pid, &[Vma])> {
        let live =
            self.pids.iter().zip(&self.layout.processes).filter(|(_, process)| process.zombie.is_none());
        live.map(|(pid, process)| (*pid, process.vmas.as_slice()))
    }

    /// The counts of a round that has sent nothing yet.
    pub(super) fn stats(&self) -> RoundStats {
        let threads: usize = self.layout.processes.iter().map(|process| process.threads.len()).sum();
        RoundStats {
            processes: self.layout.processes.len() as u32,
            threads: threads as u32,
            ..RoundStats::default()
        }
    }

    /// The agent's id of a process that is in the layout.
    fn pid_of(&self, vpid: Vpid) -> Option<Pid> {
        let at = self.layout.processes.iter().position(|process| process.vpid == vpid)?;
        self.pids.get(at).copied()
    }
}

/// How much of a process's mappings is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    /// Everything.
    Full,
    /// What the last round has not asked: the process is stopped, and time is dear.
    News,
}

/// Adds a tracked process to the shape.
pub(super) fn describe(
    source: &mut Source,
    process: &TreeProcess,
    detail: Detail,
    shape: &mut Shape,
) -> Result<(), CaptureError> {
    let tracked = source.tracked.get(&process.pid);
    let own: Vec<(u64, u64)> = tracked.map(|tracked| tracked.slot.range()).into_iter().collect();
    let known = tracked.map_or(&[][..], |tracked| tracked.space.vmas());
    let found = match detail {
        Detail::Full => vmas::read_vmas(process.pid, &mut source.objects, &own, true)?,
        Detail::News => vmas::read_vmas_again(process.pid, &mut source.objects, &own, known)?,
    };
    let exe = read_exe(process.pid)?;
    // Mappings of two programs are no layout: it has executed another meanwhile. The next round sees that one.
    let is_replaced = |tracked: &Tracked| !tracked.is_current(process.pid);
    if detail == Detail::Full && source.tracked.get(&process.pid).is_some_and(is_replaced) {
        return Err(MemoryError::AddressSpaceGone { pid: process.pid }.into());
    }
    let generation = source.generations.get(&(process.pid, process.start_time)).copied().unwrap_or(0);
    shape.blockers.extend(check::mapping_blockers(process, &found));
    shape.add(process, exe, generation, found);
    Ok(())
}

/// Adds the files in memory to the shape. `tree` is not empty.
pub(super) fn hold(
    source: &mut Source,
    in_memory: &InMemory,
    tree: &[TreeProcess],
    shape: &mut Shape,
) -> Result<(), CaptureError> {
    let Some(init) = tree.first() else { return Ok(()) };
    let (trees, blockers) = in_memory.hold(source.files.root(), init, &mut source.objects)?;
    shape.layout.trees = trees;
    let programs = tree.iter().filter(|process| process.zombie.is_none());
    shape.blockers.extend(programs.filter_map(|process| in_memory::program(process, &source.objects)));
    shape.blockers.extend(blockers);
    Ok(())
}

/// Sends what is new in the shared memory objects.
pub(super) fn objects(
    source: &mut Source,
    task: Task,
    sink: &mut dyn Sink,
) -> Result<SpaceStats, CaptureError> {
    let batch_bytes = source.options.batch_bytes;
    Ok(source.objects.round(task, batch_bytes, &mut |batch| sink.batch(batch))?)
}

/// A child of vfork(2) that has not executed its program yet: it lives in its parent's memory, for a moment.
pub(super) fn shares_memory_with_parent(process: &TreeProcess, shape: &Shape) -> bool {
    shape
        .pid_of(process.parent)
        .is_some_and(|parent| kcmp::memory(parent, process.pid) == Ok(Ordering::Equal))
}

fn read_exe(pid: Pid) -> Result<Vec<u8>, CaptureError> {
    let path = format!("/proc/{pid}/exe");
    match std::fs::read_link(&path) {
        Ok(exe) => Ok(exe.into_os_string().into_vec()),
        Err(source) => Err(CaptureError::Read { path, source }),
    }
}
