//! A container at the source.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::calls::InterruptedCalls;
use super::files::{FilesAhead, Listeners, Table};
use super::freezer::Freezer;
use super::frozen::Frozen;
use super::in_memory::{self, InMemory};
use super::round::{self, Detail, Shape};
use super::scheduling::CpuSet;
use super::sink::{CountedSink, RoundStats, Sink};
use super::sockets::Connections;
use super::tracked::Tracked;
use super::tree::{self, TreeProcess};
use super::{CaptureError, check, stop};
use crate::fault::{self, Point};
use crate::memory::{Objects, Task};
use crate::model::{Blocker, Deadline, Pid, Vpid};
use crate::tracee::TraceError;

/// How long a vfork child gets before the next attempt to stop everything.
const VFORK_PAUSE: Duration = Duration::from_millis(2);

/// How long a moment without unfinished TCP connections is waited for before a stop.
const UNFINISHED: Duration = Duration::from_millis(200);

/// Limits and choices of a source.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// Payload of one batch, bytes (64 KiB to 4 MiB).
    pub batch_bytes: usize,
    /// How long one wait for a task may take before the operation fails.
    pub stop_timeout: Duration,
    /// What rounds tell of open files, so that the destination opens them before the stop.
    pub ahead: FilesAhead,
    /// What becomes of TCP connections that leave the container.
    pub connections: Connections,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self {
            batch_bytes: 1 << 20,
            stop_timeout: Duration::from_secs(5),
            ahead: FilesAhead::ALL,
            connections: Connections::Carry,
        }
    }
}

/// A container at the source. It runs; rounds leave a mapping in each process, which goes when this is dropped.
#[derive(Debug)]
pub struct Source {
    pub(super) init: Pid,
    pub(super) options: SourceOptions,
    pub(super) tracked: HashMap<Pid, Tracked>,
    /// How many address spaces each process (id and start time) has had.
    pub(super) generations: HashMap<(Pid, u64), u32>,
    pub(super) objects: Objects,
    pub(super) cpus: CpuSet,
    /// What threads were in when they were stopped.
    calls: InterruptedCalls,
    pub(super) files: Table,
    /// What rounds have read of sockets.
    listeners: Listeners,
    /// What will hold the container across the commit.
    pub(super) freezer: Option<Freezer>,
}

impl Source {
    /// Opens the container whose init is `init`. Nothing is stopped or changed.
    pub fn open(init: Pid, options: SourceOptions) -> Result<Self, CaptureError> {
        tree::read(init)?;
        Ok(Self {
            init,
            files: Table::open(init)?.with(options.connections),
            options,
            tracked: HashMap::new(),
            generations: HashMap::new(),
            objects: Objects::new(),
            cpus: CpuSet::of(init),
            listeners: Listeners::default(),
            calls: InterruptedCalls::default(),
            freezer: None,
        })
    }

    /// Everything that stands in the way of a migration. Nothing is stopped or changed.
    pub fn check(&mut self) -> Result<Vec<Blocker>, CaptureError> {
        check::container(self.init, &self.files)
    }

    /// What stands in the way where the container is to live with `addresses` instead of its own: sockets that are bound
    /// to one of these.
    pub fn check_addresses(&self, addresses: &[IpAddr]) -> Result<Vec<Blocker>, CaptureError> {
        self.files.bound_elsewhere(addresses, || Ok(live(&tree::read(self.init)?)))
    }

    /// Resident memory of all processes in bytes, shared pages counted as often as they are mapped, and files in
    /// memory: more than round 0 will send, for the destination's admission check.
    pub fn memory_bytes(&self) -> Result<u64, CaptureError> {
        let resident: u64 = tree::read(self.init)?.iter().map(|process| resident_bytes(process.pid)).sum();
        Ok(resident + InMemory::file_bytes(self.init))
    }

    /// One pre-copy round: layout with open files, then every page written since the round before (round 0: every page).
    /// On `Err` no dirty page is forgotten; a later round sends it.
    pub fn round(&mut self, sink: &mut dyn Sink) -> Result<RoundStats, CaptureError> {
        self.objects.begin_round();
        let in_memory = InMemory::find(self.init, &mut self.objects)?;
        let tree = self.tree()?;
        self.forget_ended(&tree);
        let mut shape = Shape::default();
        for process in &tree {
            self.describe_running(process, &mut shape)?;
        }
        self.hold_descriptors(tree.iter())?;
        round::hold(self, &in_memory, &tree, &mut shape)?;
        if self.objects.unfit().next().is_some() {
            return Err(CaptureError::Blocked(shape.blockers));
        }
        shape.finish(&mut self.objects);
        let wanted = self.options.ahead;
        if wanted.files || wanted.listeners {
            match self.files.ahead(&live(&tree), &self.objects, wanted, &mut self.listeners) {
                Ok(open) => shape.layout.open = Some(open),
                Err(error) => tracing::debug!(%error, "open files are left for the stop"),
            }
        }
        fault::reached(Point::SourceTracked);
        sink.layout(&shape.layout)?;
        fault::reached(Point::SourceLayoutSent);
        let mut stats = shape.stats();
        for (pid, vmas) in shape.vmas() {
            stats.descriptors = stats.descriptors.saturating_add(descriptors(pid));
            let Some(tracked) = self.tracked.get_mut(&pid) else { continue };
            let mut counted = CountedSink::new(sink);
            let private =
                tracked.space.round(vmas, self.options.batch_bytes, &mut |batch| counted.take(batch));
            // What was handed over counts, also when the process ends in the middle of it.
            stats.add(private.as_ref().unwrap_or(&counted.stats));
            let done = private.and_then(|_| tracked.space.collect_shared(vmas, &mut self.objects));
            match done {
                Ok(()) => {}
                // It has ended or executed a program; the next round sees which.
                Err(error) if error.is_gone() => {
                    self.tracked.remove(&pid);
                }
                Err(error) => return Err(error.into()),
            }
        }
        fault::reached(Point::SourcePagesSent);
        stats.add(&round::objects(self, Task::Runs, sink)?);
        // Looked for while the container runs, so that the stop need not.
        self.freezer = Freezer::find(self.init, &tree).ok();
        Ok(stats)
    }

    /// The tree at a moment in which every process that lives has its first thread: one that executes a program amid its
    /// threads lacks it for a moment, and is no process that has ended.
    fn tree(&self) -> Result<Vec<TreeProcess>, CaptureError> {
        let deadline = Deadline::after(check::PASSES_WITHIN);
        loop {
            let tree = tree::read(self.init)?;
            let headless: Vec<Blocker> = tree.iter().filter_map(check::headless).collect();
            if headless.is_empty() {
                return Ok(tree);
            }
            if deadline.passed() {
                return Err(CaptureError::Blocked(headless));
            }
            std::thread::sleep(VFORK_PAUSE);
        }
    }

    /// Looks for files in memory that only descriptors of these processes lead to.
    pub(super) fn hold_descriptors<'a>(
        &mut self,
        tree: impl Iterator<Item = &'a TreeProcess>,
    ) -> Result<(), CaptureError> {
        let live = tree.filter(|process| process.zombie.is_none()).map(|process| process.pid);
        Ok(in_memory::hold_descriptors(live, &mut self.objects)?)
    }

    /// Waits, while the container runs, for a good moment to stop it: one without a TCP handshake under way, without
    /// a connection that is not accepted yet, and without a closed one of which bytes are on their way. If there is none for a while, the dump says so.
    pub fn await_moment(&self) -> Result<(), CaptureError> {
        Ok(self.files.await_connections(UNFINISHED)?)
    }

    /// Stops every task. On `Err` all run. A child of vfork(2) that has not executed its program yet cannot be
    /// carried; it gets the time to do so.
    pub fn freeze(&mut self) -> Result<Frozen<'_>, CaptureError> {
        let deadline = Deadline::after(self.options.stop_timeout);
        let began = Instant::now();
        let mut in_the_way = Vec::new();
        loop {
            let stopped = stop::stop_tree(self.init, self.options.stop_timeout, deadline);
            let mut processes = match stopped {
                // There was no time left for this attempt.
                Err(CaptureError::Trace(TraceError::Deadline { .. })) if !in_the_way.is_empty() => {
                    return Err(CaptureError::Blocked(in_the_way));
                }
                stopped => stopped?,
            };
            self.calls.settle(&mut processes);
            fault::reached(Point::SourceTasksStopped);
            let shared = check::shared_memory(processes.iter().map(|process| &process.tree));
            if shared.is_empty() {
                return Ok(Frozen::new(self, processes, began));
            }
            stop::let_run(processes);
            if deadline.passed() {
                return Err(CaptureError::Blocked(shared));
            }
            in_the_way = shared;
            std::thread::sleep(VFORK_PAUSE);
        }
    }

    /// The shape of one process of a running container; what vanishes meanwhile is left out.
    fn describe_running(&mut self, process: &TreeProcess, shape: &mut Shape) -> Result<(), CaptureError> {
        if process.zombie.is_some() {
            shape.add_zombie(process);
            return Ok(());
        }
        if round::shares_memory_with_parent(process, shape) {
            return Ok(());
        }
        let timeout = self.options.stop_timeout;
        let mut calls = std::mem::take(&mut self.calls);
        let described = self.track(process, |process| Tracked::start(process, timeout, &mut calls));
        self.calls = calls;
        let described = described.and_then(|()| round::describe(self, process, Detail::Full, shape));
        match described {
            Err(error) if is_loss(&error) && process.pid != self.init => {
                self.tracked.remove(&process.pid);
                Ok(())
            }
            described => described,
        }
    }

    /// Makes sure that a process's present address space is tracked.
    pub(super) fn track(
        &mut self,
        process: &TreeProcess,
        start: impl FnOnce(&TreeProcess) -> Result<Tracked, CaptureError>,
    ) -> Result<(), CaptureError> {
        let current = self.tracked.get(&process.pid);
        if current.is_some_and(|tracked| tracked.is_current(process.pid)) {
            return Ok(());
        }
        self.tracked.remove(&process.pid);
        let tracked = start(process)?;
        *self.generations.entry((process.pid, process.start_time)).or_default() += 1;
        self.tracked.insert(process.pid, tracked);
        Ok(())
    }

    pub(super) fn forget_ended(&mut self, tree: &[TreeProcess]) {
        let lives =
            |pid: Pid, start_time: u64| tree.iter().any(|p| p.pid == pid && p.start_time == start_time);
        self.tracked.retain(|pid, tracked| lives(*pid, tracked.start_time));
        self.generations.retain(|(pid, start_time), _| lives(*pid, *start_time));
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        for process in tree::read(self.init).unwrap_or_default() {
            let Some(tracked) = self.tracked.remove(&process.pid) else { continue };
            if tracked.start_time != process.start_time || !tracked.is_current(process.pid) {
                continue;
            }
            if let Err(error) = tracked.end(&process, self.options.stop_timeout) {
                tracing::debug!(pid = process.pid.0, %error, "the engine's mapping stays in a process");
            }
        }
    }
}

/// A process that ended, or is about to, while it was looked at.
fn is_loss(error: &CaptureError) -> bool {
    // EPERM: it is on its way out, or in the hands of a debugger, which the freeze will name.
    error.is_end_of_a_task()
        || matches!(error, CaptureError::Trace(TraceError::Request { .. } | TraceError::Traced { .. }))
}

fn live(tree: &[TreeProcess]) -> Vec<(Pid, Vpid)> {
    let live = tree.iter().filter(|process| process.zombie.is_none());
    live.map(|process| (process.pid, process.vpid)).collect()
}

fn descriptors(pid: Pid) -> u32 {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .map_or(0, |open| u32::try_from(open.count()).unwrap_or(u32::MAX))
}

pub(super) fn resident_bytes(pid: Pid) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    pages.saturating_mul(crate::model::PAGE_SIZE)
}
