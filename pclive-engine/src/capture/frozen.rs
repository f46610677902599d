//! A stopped container: the final dump, and what comes of it.

use std::collections::BTreeMap;
use std::time::Instant;

use super::CaptureError;
use super::files::{Files, Mode, SocketGuards};
use super::first_touched;
use super::freezer::Freezer;
use super::in_memory::InMemory;
use super::round::{self, Detail, Shape};
use super::scheduling::CpuSet;
use super::sink::{LastPages, RoundStats, Sink};
use super::source::Source;
use super::stop::{self, StoppedProcess};
use super::terminals;

use super::thread::{Frame, Outside};
use super::tracked::Tracked;
use super::tree::TreeProcess;
use crate::fault::{self, Point};
use crate::memory::Task;
use crate::memory::contents::{self, Contents, Unwanted};
use crate::memory::ranges::RangeSet;
use crate::model::{Blocker, FinalState, Layout, Pid, ProcessState, Vpid};
use crate::remote::{Captive, RemoteTask};
use crate::tracee::{TraceError, end};

/// What the small state of a stopped container came to.
#[derive(Debug)]
pub enum Dumped {
    /// All of it.
    State(Box<FinalState>),
    /// Things that cannot be carried at this instant, and that pass by themselves (a connection that waits to be
    /// accepted): let the container run for a moment, and stop it again. The memory that was sent stays sent.
    NotNow(Vec<Blocker>),
}

/// A stopped container; dropping it lets the container run on, unchanged.
#[derive(Debug)]
pub struct Frozen<'a> {
    source: &'a mut Source,
    processes: Vec<StoppedProcess>,
    began: Instant,
    connections: SocketGuards,
    freezer: Option<Freezer>,
    /// What the final dump has told.
    layout: Layout,
}

impl<'a> Frozen<'a> {
    pub(super) fn new(source: &'a mut Source, processes: Vec<StoppedProcess>, began: Instant) -> Self {
        let (connections, freezer, layout) = (SocketGuards::default(), None, Layout::default());
        Self { source, processes, began, connections, freezer, layout }
    }

    /// When the first task was about to be stopped for the first time.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// The final dump: layout and last pages to the sink, the small state returned. The network must be locked: no
    /// packet may reach or leave the sockets that are read here. Whatever comes of it, the container can still be let
    /// go.
    pub fn dump(
        &mut self,
        sink: &mut dyn Sink,
        last: LastPages,
    ) -> Result<(RoundStats, Dumped), CaptureError> {
        let shape = self.shape()?;
        sink.layout(&shape.layout)?;
        fault::reached(Point::SourceLastLayoutSent);
        let stats = self.pages(&shape, sink, last)?;
        fault::reached(Point::SourceLastPagesSent);
        let state = self.state()?;
        fault::reached(Point::SourceSmallStateRead);
        self.layout = shape.layout;
        Ok((stats, state))
    }

    /// What the last [`Self::dump`] has told the destination to build.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// After [`Self::dump`]: digests of the memory of the stopped container. Nothing of it is changed.
    pub fn contents(&self, unwanted: Unwanted<'_>) -> Result<Contents, CaptureError> {
        let mut processes = BTreeMap::new();
        for stopped in &self.processes {
            let threads = stopped.threads.iter().map(|captive| captive.pid());
            processes.insert(stopped.tree.vpid, contents::Process::of(stopped.tree.pid, threads)?);
        }
        Ok(contents::contents(&self.layout, &processes, &|id| self.source.objects.file(id), unwanted)?)
    }

    /// The processes as the agent sees them, by their ids inside the container.
    pub fn pids_by_vpid(&self) -> BTreeMap<Vpid, Pid> {
        self.processes.iter().map(|stopped| (stopped.tree.vpid, stopped.tree.pid)).collect()
    }

    /// Engages what survives the agent's death (the cgroup freezer): call just before COMMIT is sent.
    pub fn hold(&mut self) -> Result<(), CaptureError> {
        self.engage_freezer()?;
        fault::reached(Point::SourceFreezerEngaged);
        self.connections.silence().map_err(CaptureError::Silence)?;
        fault::reached(Point::SourceSilenced);
        Ok(())
    }

    /// After [`Self::hold`]: connections are to end like those of any program that is killed. Its network may be open.
    pub fn unmute(&mut self) {
        drop(std::mem::take(&mut self.connections));
    }

    /// Leaves the container frozen, whatever becomes of the agent: COMMIT was sent and nobody knows what came of it.
    /// [`Leftover`](super::Leftover) is how it is found again.
    pub fn abandon(mut self) {
        if let Some(freezer) = self.freezer.take() {
            freezer.keep();
        }
        std::mem::take(&mut self.connections).leave();
        // The engine's mappings stay: a frozen task cannot take them away.
        self.source.tracked.clear();
    }

    /// Kills the container without letting it run or send a byte. After COMMIT and the destination's answer only.
    pub fn destroy(mut self) -> Result<(), CaptureError> {
        let pids: Vec<Pid> = self.pids().collect();
        pids.iter().copied().for_each(end::kill);
        std::mem::take(&mut self.connections).leave();
        fault::reached(Point::SourceKilled);
        if let Some(freezer) = self.freezer.take() {
            freezer.thaw()?;
        }
        fault::reached(Point::SourceThawedToEnd);
        end::await_ends(&pids, self.source.options.stop_timeout)?;
        self.processes.clear();
        self.source.tracked.clear();
        Ok(())
    }

    fn engage_freezer(&mut self) -> Result<(), CaptureError> {
        let tree: Vec<TreeProcess> = self.processes.iter().map(|process| process.tree.clone()).collect();
        let init = self.source.init;
        let freezer = match self.freezer.take().or_else(|| self.source.freezer.take()) {
            Some(found) => found,
            None => Freezer::find(init, &tree)?,
        };
        self.freezer.insert(freezer).engage(init, &tree)
    }

    /// The descriptors. A connection is mute while it is read, and stays so when the agent dies then: only for that time
    /// the freezer keeps the tasks from using it, and a successor wakes first the one and then the other.
    fn files(&mut self, ids: &[(Pid, Vpid)]) -> Result<Files, CaptureError> {
        self.engage_freezer()?;
        fault::reached(Point::SourceFreezerHolds);
        let files = self.source.files.collect_knowing(ids, Mode::Dump, &self.source.objects);
        fault::reached(Point::SourceDescriptorsRead);
        // Ptrace still holds the tasks.
        self.freezer.as_mut().map_or(Ok(()), Freezer::disengage)?;
        fault::reached(Point::SourceConnectionsRead);
        Ok(files?)
    }

    fn pids(&self) -> impl Iterator<Item = Pid> {
        self.processes.iter().flat_map(|process| process.threads.iter().map(|captive| captive.pid()))
    }

    fn shape(&mut self) -> Result<Shape, CaptureError> {
        let tree: Vec<TreeProcess> = self.processes.iter().map(|process| process.tree.clone()).collect();
        self.source.forget_ended(&tree);
        self.source.objects.begin_round();
        let in_memory = InMemory::find(self.source.init, &mut self.source.objects)?;
        self.source.objects.hold_nameless();
        let mut shape = Shape::default();
        for (process, stopped) in tree.iter().zip(&mut self.processes) {
            let Some(leader) = stopped.threads.first_mut() else {
                shape.add_zombie(process);
                continue;
            };
            self.source.track(process, |process| {
                let started = Tracked::start_stopped(process, leader);
                started.and_then(|tracked| Ok(leader.restore_context().map(|()| tracked)?))
            })?;
            if let Some(tracked) = self.source.tracked.get(&process.pid) {
                stopped.threads.iter_mut().for_each(|captive| captive.join(tracked.slot));
            }
            round::describe(self.source, process, Detail::News, &mut shape)?;
        }
        round::hold(self.source, &in_memory, &tree, &mut shape)?;
        shape.finish(&mut self.source.objects);
        if shape.blockers.is_empty() { Ok(shape) } else { Err(CaptureError::Blocked(shape.blockers)) }
    }

    fn pages(
        &mut self,
        shape: &Shape,
        sink: &mut dyn Sink,
        last: LastPages,
    ) -> Result<RoundStats, CaptureError> {
        let mut stats = shape.stats();
        for (pid, vmas) in shape.vmas() {
            let Some(tracked) = self.source.tracked.get_mut(&pid) else { continue };
            let stopped = self.processes.iter().find(|process| process.tree.pid == pid);
            let batch_bytes = self.source.options.batch_bytes;
            let out = &mut |batch| sink.batch(batch);
            let (part, later) = match last {
                LastPages::Now => (tracked.space.round_of_stopped(vmas, batch_bytes, out)?, None),
                LastPages::Later => {
                    let now = stopped.map_or_else(|| Ok(RangeSet::new()), first_touched::pages)?;
                    let (part, later) = tracked.space.last_round(vmas, &now, batch_bytes, out)?;
                    (part, Some(later))
                }
            };
            if let Some(later) = later.filter(|later| !later.runs.is_empty()) {
                stats.later_pages += later.pages();
                sink.later(later)?;
            }
            if part.unreadable_pages > 0 {
                let (vpid, pages) = (tracked.space.vpid(), part.unreadable_pages);
                return Err(CaptureError::Unreadable { vpid, pages });
            }
            stats.add(&part);
            tracked.space.collect_shared(vmas, &mut self.source.objects)?;
        }
        stats.add(&round::objects(self.source, Task::IsStopped, sink)?);
        Ok(stats)
    }

    fn state(&mut self) -> Result<Dumped, CaptureError> {
        let live = |process: &&StoppedProcess| !process.threads.is_empty();
        let ids: Vec<(Pid, Vpid)> =
            self.processes.iter().filter(live).map(|process| (process.tree.pid, process.tree.vpid)).collect();
        let mut files = self.files(&ids)?;
        let tree = self.processes.iter().map(|process| &process.tree);
        files.blockers.extend(terminals::not_carried(tree, &files.files));
        if !files.blockers.is_empty() {
            return Err(CaptureError::Blocked(files.blockers));
        }
        self.connections = std::mem::take(&mut files.sockets);
        if !files.transient.is_empty() {
            // Files in memory that are younger than the last round: the next stop knows them.
            self.source.hold_descriptors(self.processes.iter().map(|process| &process.tree))?;
            // They run on: what was sent just now is not to be sent again at the next stop.
            // One that has ended and is not reaped yet is in the tree, and its memory is not.
            for tracked in self.source.tracked.values_mut() {
                match tracked.space.protect() {
                    Ok(()) => {}
                    Err(error) if error.is_gone() => {}
                    Err(error) => return Err(error.into()),
                }
            }
            return Ok(Dumped::NotNow(files.transient));
        }
        let mut state =
            FinalState { files: files.files, last_vpid: self.last_vpid(), ..FinalState::default() };
        for process in self.processes.iter_mut().filter(|process| !process.threads.is_empty()) {
            let own = files.descriptors.iter_mut().find(|(vpid, _)| *vpid == process.tree.vpid);
            let descriptors = own.map(|(_, descriptors)| std::mem::take(descriptors)).unwrap_or_default();
            let captured = small_state(process, &self.source.cpus)?;
            state.processes.push(ProcessState { descriptors, ..captured });
        }
        Ok(Dumped::State(Box::new(state)))
    }

    /// The highest id in use.
    fn last_vpid(&self) -> i32 {
        let threads = self.processes.iter().flat_map(|process| &process.tree.threads);
        threads.map(|thread| thread.layout.vtid.0).max().unwrap_or(0)
    }
}

/// Everything of a process but its memory and its descriptors. Threads share their process's slot, so each gets its
/// own context back before the next uses it: the agent may die at any time, and all of them then go on from there.
fn small_state(process: &mut StoppedProcess, cpus: &CpuSet) -> Result<ProcessState, CaptureError> {
    let mut threads = process.threads.iter_mut();
    let leader = threads.next().ok_or(TraceError::Gone { pid: process.tree.pid })?;
    let registers = *leader.registers();
    let frame = Frame { registers: &registers, signal_mask: leader.signal_mask() };
    let mut state = super::process::capture(leader, frame, cpus)?;
    leader.restore_context()?;
    state.job_stopped = process.job_stopped;
    let look = |captive: &Captive| Outside::of(captive.pid(), captive.vpid(), cpus);
    let mut next = threads.as_slice().first().map(look);
    while let Some(captive) = threads.next() {
        let outside = next.take().unwrap_or_else(|| look(captive))?;
        let registers = *captive.registers();
        let frame = Frame { registers: &registers, signal_mask: captive.signal_mask() };
        let mut look_ahead = || next = threads.as_slice().first().map(look);
        super::thread::capture(captive, frame, outside, &mut state, &mut look_ahead)?;
        captive.restore_context()?;
    }
    Ok(state)
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // Sockets first, then the freezer, then the tasks: nothing runs before everything is as it was.
        self.connections = SocketGuards::default();
        self.freezer = None;
        stop::let_run(std::mem::take(&mut self.processes));
    }
}
