//! The destination side: a container that the runtime has *created* becomes the copy.
//!
//! Order of calls: [`Destination::adopt`], then per round [`Destination::apply_layout`] and
//! [`Destination::fill`], after the final dump [`Destination::restore`] and, once the source has committed,
//! [`Destination::resume`]. Dropping a destination before that kills the restorers.

mod absent;
mod attributes;
mod channel;
mod contents;
mod creds;
mod error;
pub mod failure;
pub mod files;
mod huge;
mod limits;
mod mappings;
mod mm;
mod objects;
pub mod process;
pub mod restart;
mod restorer;
mod scheduling;
mod seccomp;
mod segments;
mod sessions;
mod signals;
mod skeleton;
#[cfg(test)]
mod small_state_tests;
pub mod sockets;
mod spans;
pub mod terminals;
pub mod thread;
mod timers;
mod trees;
mod validate;
mod xstate;

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::fault::{self, Point};
use crate::model::{Batch, Descriptor, FinalState, Layout, Pid, ProcessState, Vpid};
use crate::proc::root::ContainerRoot;
use crate::remote::{RemoteTask, release};
use crate::tail::{Lack, Later};

use absent::Absent;
pub use absent::can_go_without_pages;
pub use error::RestoreError;
use files::Ahead;
use mappings::Mappings;
use restorer::Restorer;
use skeleton::Skeleton;
use sockets::{Awake, Builder, BuiltSockets};
use thread::RegisterSet;
pub use validate::{layout as check_layout, state as check_state};

/// Limits and choices of a destination.
#[derive(Debug, Clone)]
pub struct DestinationOptions {
    /// How long one wait for a task may take before the operation fails.
    pub stop_timeout: Duration,
}

impl Default for DestinationOptions {
    fn default() -> Self {
        Self { stop_timeout: Duration::from_secs(5) }
    }
}

/// How long the parts of [`Destination::restore`] took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RestoreLedger {
    /// Files and sockets.
    pub files: Duration,
    /// Tasks, credentials, signals, timers.
    pub tasks: Duration,
}

/// A copy that is being built.
#[derive(Debug)]
pub struct Destination {
    init: Pid,
    skeleton: Skeleton,
    mappings: Mappings,
    layout: Layout,
    ahead: Ahead,
    sockets: Option<BuiltSockets>,
    awake: Awake,
    absent: Absent,
    warnings: Vec<String>,
}

impl Destination {
    /// Takes over the created container whose init is `init`: it is seized and will never run the runtime's code
    /// again.
    pub fn adopt(init: Pid, options: DestinationOptions) -> Result<Self, RestoreError> {
        let skeleton = Skeleton::adopt(init, options.stop_timeout)?;
        fault::reached(Point::DestinationSeized);
        let mappings = Mappings::below(init)?;
        let layout = Layout::default();
        let (absent, ahead) = (Absent::default(), Ahead::default());
        let (sockets, awake, warnings) = (None, Awake::default(), Vec::new());
        Ok(Self { init, skeleton, mappings, layout, ahead, sockets, awake, absent, warnings })
    }

    /// Makes the skeleton match `layout`: tasks born and gone, mappings made, moved and dropped, files opened.
    pub fn apply_layout(&mut self, layout: &Layout) -> Result<(), RestoreError> {
        if self.skeleton.will_execute(layout) {
            let tables = self.skeleton.take_tables();
            let tables = self.ahead.release_programs(tables, &mut self.skeleton)?;
            self.skeleton.put_tables(tables);
        }
        self.skeleton.follow(layout, &mut self.mappings)?;
        fault::reached(Point::DestinationSkeleton);
        if let Some(open) = &layout.open {
            let (root, tables) = (self.root()?, self.skeleton.take_tables());
            let mut builder = Builder::new(self.init)?;
            let tables = self.ahead.follow(open, tables, &root, &mut builder, &mut self.skeleton)?;
            self.skeleton.put_tables(tables);
        }
        self.layout = Layout { open: None, ..layout.clone() };
        self.absent = Absent::default();
        Ok(())
    }

    /// Writes pages into the skeleton.
    pub fn fill(&mut self, batch: &Batch) -> Result<(), RestoreError> {
        self.mappings.fill(batch, &mut self.skeleton)?;
        fault::reached(Point::DestinationFilled);
        Ok(())
    }

    /// The source says that these pages of the newest layout are of no use any more: they are dropped, so that
    /// [`Self::restore`] need not do it. Only a hint: they are sent again, or named by [`Self::go_without`].
    pub fn drop_outdated(&mut self, outdated: &Later) -> Result<(), RestoreError> {
        absent::check(outdated, &self.layout)?;
        let restorer = self.skeleton.restorer_mut(outdated.vpid)?;
        absent::drop_pages(restorer, outdated.runs.iter().copied())
    }

    /// These pages of the newest layout come after [`Self::resume`]. What they have now is forgotten.
    pub fn go_without(&mut self, later: Later) -> Result<(), RestoreError> {
        self.absent.expect(later, &self.layout)
    }

    /// After [`Self::restore`]: what processes lack, and the userfaultfd by which each tells what it waits for. From
    /// [`Self::resume`] on somebody has to listen ([`Space`](crate::tail::Space)).
    pub fn take_lacks(&mut self) -> Vec<(Lack, OwnedFd)> {
        std::mem::take(&mut self.absent).into_lacks()
    }

    /// Puts the small state in place. On Ok everything is ready to run and nothing runs; TCP sockets are still in
    /// repair mode and send nothing. On Err the copy is of no use: drop it.
    pub fn restore(&mut self, state: &FinalState) -> Result<RestoreLedger, RestoreError> {
        let begun = Instant::now();
        validate::state(state, &self.layout)?;
        self.skeleton.bear_zombies(&self.layout)?;
        self.skeleton.dismiss_chooser(state.last_vpid)?;
        for process in &state.processes {
            let restorer = self.skeleton.restorer_mut(process.vpid)?;
            process::early(&mut restorer.leader, process)?;
            self.absent.prepare(restorer)?;
        }
        fault::reached(Point::DestinationEarlyState);
        let files_begun = Instant::now();
        self.skeleton.set_foregrounds(&state.files)?;
        self.restore_files(state)?;
        self.mappings.finish(&self.layout)?;
        let files = files_begun.elapsed();
        fault::reached(Point::DestinationFiles);
        for process in &state.processes {
            let restorer = self.skeleton.restorer_mut(process.vpid)?;
            self.warnings.extend(restore_tasks(restorer, process, &mut self.absent)?);
        }
        fault::reached(Point::DestinationTasks);
        Ok(RestoreLedger { files, tasks: begun.elapsed() - files })
    }

    /// What is less than it was at the source, for the administrator.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Takes the sockets out of repair mode. The network must still be locked: if the agent dies before [`Self::keep`],
    /// the tasks die with it, and nobody may hear that their connections end. There is no way back from here: an error
    /// is told after every socket that can live does.
    pub fn wake_sockets(&mut self) -> Result<(), RestoreError> {
        let Some(sockets) = self.sockets.take() else { return Ok(()) };
        let (awake, woken) = sockets.wake();
        self.awake = awake;
        fault::reached(Point::DestinationSocketsAwake);
        Ok(woken?)
    }

    /// From here on the copy outlives the agent: if that dies, the kernel lets every task go. The sockets must be awake:
    /// a task that uses one in repair mode takes it for broken. Init is the last: until then it dies with the agent and
    /// takes the others with it, so that an init that outlives the agent means a whole container.
    pub fn keep(&mut self) -> Result<(), RestoreError> {
        self.skeleton.keep()
    }

    /// The network is open: connections say what they have to say, instead of waiting for TCP's timer.
    pub fn push_sockets(&mut self) {
        std::mem::take(&mut self.awake).push();
    }

    /// Lets every task go, and what comes before that first if it was left out. An error is told after everything that
    /// can run does. Init is the last to go.
    pub fn resume(mut self) -> Result<(), RestoreError> {
        let mut result = self.wake_sockets().and(self.keep());
        self.push_sockets();
        let mut restorers = self.skeleton.release();
        let mut init = restorers.drain(..1.min(restorers.len())).collect::<Vec<_>>();
        restorers.reverse();
        for restorer in restorers {
            result = result.and(let_go(restorer));
        }
        fault::reached(Point::DestinationOthersReleased);
        result = result.and(init.pop().map_or(Ok(()), let_go));
        fault::reached(Point::DestinationReleased);
        result
    }

    fn root(&self) -> Result<ContainerRoot, RestoreError> {
        let root = ContainerRoot::open(self.init);
        root.map_err(|source| RestoreError::Root { pid: self.init, source })
    }

    fn restore_files(&mut self, state: &FinalState) -> Result<(), RestoreError> {
        let root = self.root()?;
        let mut builder = Builder::new(self.init)?;
        let wanted: Vec<(Vpid, Vec<Descriptor>)> =
            state.processes.iter().map(|process| (process.vpid, process.descriptors.clone())).collect();
        // Kept until every process has its descriptors: a session loses a terminal that nobody has open.
        let mut terminals = std::mem::take(&mut self.skeleton.terminals);
        let restored = files::restore(
            &state.files,
            &wanted,
            files::Place { root: &root, objects: self.mappings.objects() },
            (std::mem::take(&mut self.ahead), self.skeleton.take_tables()),
            &mut builder,
            &mut terminals,
            &mut self.skeleton,
        )?;
        self.warnings.extend(restored.warnings);
        self.sockets = Some(restored.sockets);
        Ok(())
    }
}

fn let_go(restorer: Restorer) -> Result<(), RestoreError> {
    let threads = restorer.threads.into_iter().map(|(_, captive)| captive);
    release(restorer.leader, threads).map_err(RestoreError::from)
}

/// The small state of all threads of a process, in the order that their privileges allow; then the engine's own
/// mapping goes, and the threads have the context with which they will be let go.
fn restore_tasks(
    restorer: &mut Restorer,
    process: &ProcessState,
    absent: &mut Absent,
) -> Result<Vec<String>, RestoreError> {
    let mut warnings = Vec::new();
    let here = RegisterSet::of(restorer.leader.pid())?;
    for (captive, state) in restorer.captives().zip(&process.threads) {
        warnings.extend(thread::restore(captive, process, state, &here)?);
    }
    process::late(&mut restorer.leader, process)?;
    for (captive, state) in restorer.captives().zip(&process.threads) {
        thread::finish(captive, process, state)?;
    }
    // Calls that touch the program's memory are over: from here on one that met a missing page would wait for ever.
    absent.let_wait(restorer)?;
    restorer.unsettle()?;
    for (captive, state) in restorer.captives().zip(&process.threads) {
        let (registers, mask) = thread::context(state)?;
        captive.set_context(registers, mask);
        captive.restore_context()?;
    }
    process::stop_again(restorer.leader.pid(), process)?;
    Ok(warnings)
}
