//! Stops every task of a container, and lets them all go again.
//!
//! Seize and interrupt all threads first, wait for them afterwards: waiting one by one takes seconds when threads
//! spin. Then read the tree again, until nothing new appears. Nothing but ptrace holds the tasks: if the agent
//! dies, the kernel lets them run.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use super::calls::InterruptedCalls;
use super::tree::{self, Known, TreeError, TreeProcess, TreeThread};
use super::{CaptureError, check, rseq, thread};
use crate::fault::{self, Point};
use crate::model::{Deadline, Pid, Vpid};
use crate::remote::{Captive, ProcessMemory, RemoteError, RemoteTask, release};
use crate::sys::ptrace;
use crate::tracee::{self, Pause, Running, Stop, Stopped, TraceError};

/// How long threads get to stop before everything is tried again. A parent in vfork(2) cannot stop before its child, stopped
/// too, goes on: then everything is let go and tried again.
const ATTEMPT: Duration = Duration::from_millis(50);
/// How long everything runs between two attempts.
const PAUSE: Duration = Duration::from_millis(2);
/// How long tasks that are to be let go get to stop for that.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// A process whose every thread is stopped.
#[derive(Debug)]
pub(super) struct StoppedProcess {
    pub(super) tree: TreeProcess,
    /// In the order of `tree.threads`; empty for a zombie.
    pub(super) threads: Vec<Captive>,
    /// Stopped by job control, beside being stopped by the engine.
    pub(super) job_stopped: bool,
}

/// Stops the whole tree; `timeout` is for what threads are asked to do then. On `Err` everything runs but what does not
/// stop at all, of which a warning tells.
pub(super) fn stop_tree(
    init: Pid,
    timeout: Duration,
    deadline: Deadline,
) -> Result<Vec<StoppedProcess>, CaptureError> {
    stop(timeout, deadline, |known| tree::read_knowing(init, known))
}

/// Stops every thread of the processes that `read` lists, again and again until nothing new appears.
fn stop(
    timeout: Duration,
    deadline: Deadline,
    read: impl Fn(&Known) -> Result<Vec<TreeProcess>, TreeError>,
) -> Result<Vec<StoppedProcess>, CaptureError> {
    let mut patience = None;
    let mut slow = Vec::new();
    loop {
        let mut seized = Seized::with(slow);
        let gathered = seized.gather(&read, deadline);
        let error = match gathered.and_then(|tree| seized.processes(tree, timeout)) {
            Ok(processes) => return Ok(processes),
            Err(error) => error,
        };
        slow = seized.let_go();
        // One that is in the way for so long stays.
        patience = match &error {
            CaptureError::Blocked(_) => patience.or_else(|| Some(Deadline::after(check::PASSES_WITHIN))),
            _ => None,
        };
        let may_pass = match &error {
            CaptureError::Trace(TraceError::Deadline { .. }) => true,
            CaptureError::Blocked(_) => !patience.is_some_and(Deadline::passed),
            // Its process was about to end, or to execute a program: the next tree has less, or another.
            error => error.is_end_of_a_task(),
        };
        if !may_pass || deadline.passed() {
            if !slow.is_empty() {
                tracing::warn!(tasks = ?slow, "tasks stay seized until the migration's thread ends");
            }
            return Err(error);
        }
        // A vfork child needs to run before the next attempt, and so does whoever executes a program.
        std::thread::sleep(PAUSE);
    }
}

/// Stops every thread of a running process for as long as `action`, which gets one of them, takes: no child can be
/// born meanwhile, which would inherit what the process has for a moment only.
pub(super) fn with_process_stopped<T>(
    process: &TreeProcess,
    timeout: Duration,
    calls: &mut InterruptedCalls,
    action: impl Fn(&mut Captive) -> Result<T, CaptureError>,
) -> Result<T, CaptureError> {
    let deadline = Deadline::after(timeout);
    loop {
        let mut stopped = stop(timeout, deadline, |known| tree::again(process, known))?;
        calls.settle(&mut stopped);
        let captive = stopped.first_mut().and_then(|process| process.threads.last_mut());
        let captive = captive.ok_or(TraceError::Gone { pid: process.pid })?;
        let outcome = action(captive);
        fault::reached(Point::SourceProcessStopped);
        let again = match outcome {
            Err(CaptureError::Remote(RemoteError::Busy { signal, .. })) => {
                captive.owe(signal);
                !deadline.passed()
            }
            Ok(_) | Err(_) => false,
        };
        let_run(stopped);
        if !again {
            return outcome;
        }
    }
}

/// Stops one thread of a running process for as long as `action` takes: the youngest. While the leader is stopped,
/// signals for the process would go to another thread, and end what that waits for with EINTR.
pub(super) fn with_thread_stopped<T>(
    process: &TreeProcess,
    timeout: Duration,
    action: impl Fn(&mut Captive) -> Result<T, CaptureError>,
) -> Result<T, CaptureError> {
    let leader = (process.pid, process.vpid);
    let youngest = process.threads.last().map_or(leader, |thread| (thread.pid, thread.layout.vtid));
    let outcome = with_stopped(process, youngest, timeout, &action);
    let ended = matches!(
        outcome,
        Err(CaptureError::Trace(TraceError::Gone { .. })
            | CaptureError::Remote(RemoteError::Trace(TraceError::Gone { .. })))
    );
    if ended && youngest != leader { with_stopped(process, leader, timeout, &action) } else { outcome }
}

fn with_stopped<T>(
    process: &TreeProcess,
    thread: (Pid, Vpid),
    timeout: Duration,
    action: impl Fn(&mut Captive) -> Result<T, CaptureError>,
) -> Result<T, CaptureError> {
    let deadline = Deadline::after(timeout);
    loop {
        let outcome = with_stopped_once(process, thread, timeout, deadline, &action);
        if outcome.is_err() {
            free(BTreeSet::from([thread.0, process.pid]));
        }
        match outcome {
            Err(CaptureError::Remote(RemoteError::Busy { .. })) if !deadline.passed() => {}
            outcome => return outcome,
        }
    }
}

/// On `Err` the thread may still be held.
fn with_stopped_once<T>(
    process: &TreeProcess,
    (thread, vtid): (Pid, Vpid),
    timeout: Duration,
    deadline: Deadline,
    action: impl Fn(&mut Captive) -> Result<T, CaptureError>,
) -> Result<T, CaptureError> {
    let running = Running::seize(thread, ptrace::TRACE_SYSTEM_CALLS_GOOD)?;
    running.interrupt()?;
    let stopped = first_interrupt_stop(running, deadline)?;
    let memory = ProcessMemory::open(process.pid)?;
    let mut captive = take(stopped, (vtid, process.vpid), &memory, process.marker, timeout)?;
    let outcome = action(&mut captive);
    if let Err(CaptureError::Remote(RemoteError::Busy { signal, .. })) = outcome {
        captive.owe(signal);
    }
    let released = captive.restore_context().and_then(|()| captive.detach());
    outcome.and_then(|done| Ok(released.map(|()| done)?))
}

/// Takes a stopped thread for remote calls, out of the restartable sequence that it may be in.
fn take(
    stopped: Stopped,
    ids: (Vpid, Vpid),
    memory: &ProcessMemory,
    marker: i32,
    timeout: Duration,
) -> Result<Captive, CaptureError> {
    let pid = stopped.pid();
    thread::admit(pid, ids.0)?;
    let mut captive = Captive::take(stopped, ids, memory.clone(), marker, timeout)?;
    let registers = rseq::leave_critical_section(pid, memory, *captive.registers())?;
    captive.go_on_at(registers.rip);
    Ok(captive)
}

/// Waits until an interrupted task stops, handing it the signals that come first.
fn first_interrupt_stop(running: Running, deadline: Deadline) -> Result<Stopped, TraceError> {
    let mut running = running;
    loop {
        match running.wait(deadline)? {
            (stopped, Stop::Interrupted) => return Ok(stopped),
            (stopped, Stop::Signal(signal)) => running = stopped.go_on_to_stop(signal)?,
            (stopped, Stop::SystemCall | Stop::Event(_)) => running = stopped.go_on_to_stop(0)?,
        }
    }
}

/// One attempt to stop everything.
#[derive(Debug, Default)]
struct Seized {
    /// All of them, whatever they do now.
    all: BTreeSet<Pid>,
    running: BTreeMap<Pid, Running>,
    stopped: BTreeMap<Pid, Stopped>,
    gone: BTreeSet<Pid>,
}

impl Seized {
    /// Beginning with what an earlier attempt has left.
    fn with(slow: Vec<Pid>) -> Self {
        let running = slow.iter().map(|pid| (*pid, Running::born(*pid))).collect();
        Self { all: slow.into_iter().collect(), running, ..Self::default() }
    }

    /// Stops tasks until two readings of the tree agree; returns that tree. Leaders stop last: as long as one runs it
    /// takes the signals of its process, which would end with EINTR what another thread waits for.
    fn gather(
        &mut self,
        read: impl Fn(&Known) -> Result<Vec<TreeProcess>, TreeError>,
        deadline: Deadline,
    ) -> Result<Vec<TreeProcess>, CaptureError> {
        let mut known = Known::default();
        loop {
            let tree = read(&known)?;
            let processes: HashSet<Pid> = tree.iter().map(|process| process.pid).collect();
            let threads = || tree.iter().flat_map(|process| &process.threads);
            let (leaders, others): (Vec<Pid>, Vec<Pid>) =
                threads().map(|thread| thread.pid).partition(|pid| processes.contains(pid));
            // Any thread may get the id of its leader.
            self.all.extend(&leaders);
            let new = self.stop_new(others, deadline)? + self.stop_new(leaders, deadline)?;
            if new == 0 {
                return Ok(tree);
            }
            // Nobody else gets the id of a thread that is stopped.
            let stopped = threads().filter(|thread| self.stopped.contains_key(&thread.pid));
            known.extend(stopped.map(|thread| (thread.pid, thread.layout.clone())));
        }
    }

    /// Stops those that are not stopped yet; how many that were.
    fn stop_new(&mut self, threads: Vec<Pid>, deadline: Deadline) -> Result<usize, CaptureError> {
        let mut new = 0;
        for pid in threads {
            if !self.stopped.contains_key(&pid) && !self.gone.contains(&pid) {
                self.seize(pid)?;
                new += 1;
            }
        }
        self.await_stops(Deadline::after(ATTEMPT.min(deadline.left())))?;
        Ok(new)
    }

    /// Asks a task to stop, once.
    fn seize(&mut self, pid: Pid) -> Result<(), TraceError> {
        self.all.insert(pid);
        if self.running.contains_key(&pid) {
            return Ok(());
        }
        let seized = Running::seize(pid, ptrace::TRACE_SYSTEM_CALLS_GOOD).and_then(|running| {
            running.interrupt()?;
            Ok(running)
        });
        match seized {
            Ok(running) => {
                self.running.insert(pid, running);
                Ok(())
            }
            Err(TraceError::Gone { .. }) => {
                self.gone.insert(pid);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn await_stops(&mut self, deadline: Deadline) -> Result<(), TraceError> {
        let mut pause = Pause::default();
        while !self.running.is_empty() {
            let pids: Vec<Pid> = self.running.keys().copied().collect();
            for pid in pids {
                self.look_at(pid)?;
            }
            if let Some(pid) = self.running.keys().next() {
                if deadline.passed() {
                    return Err(TraceError::Deadline { pid: *pid });
                }
                pause.take();
            }
        }
        Ok(())
    }

    fn look_at(&mut self, pid: Pid) -> Result<(), TraceError> {
        let looked = Running::born(pid).poll().and_then(|found| match found {
            Some((stopped, Stop::Interrupted)) => Ok(Some(stopped)),
            Some((stopped, Stop::Signal(signal))) => stopped.go_on_to_stop(signal).map(|_| None),
            Some((stopped, Stop::SystemCall | Stop::Event(_))) => stopped.go_on_to_stop(0).map(|_| None),
            None => Ok(None),
        });
        match looked {
            Ok(None) => {}
            Ok(Some(stopped)) => {
                self.running.remove(&pid);
                self.stopped.insert(pid, stopped);
            }
            Err(TraceError::Gone { .. }) => {
                self.running.remove(&pid);
                self.gone.insert(pid);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Lets everything go, as it was stopped: no remote call has been made yet. Only a stopped task can be let go; those that
    /// do not stop for long are seized still. Who executes a program has its leader's id, whatever became of that.
    fn let_go(self) -> Vec<Pid> {
        let slow = tracee::let_all_go(&self.all, Deadline::after(LAST_WAIT));
        if !slow.is_empty() {
            tracing::warn!(tasks = ?slow, "tasks have not stopped yet");
        }
        slow
    }

    fn processes(
        &mut self,
        tree: Vec<TreeProcess>,
        timeout: Duration,
    ) -> Result<Vec<StoppedProcess>, CaptureError> {
        let process = |process: TreeProcess| {
            let (threads, job_stopped) = self.captives(&process, timeout)?;
            Ok(StoppedProcess { tree: process, threads, job_stopped })
        };
        let processes = tree.into_iter().map(process).collect::<Result<_, CaptureError>>()?;
        // What is not in the tree any more ends, or has got another parent while it was read.
        match self.stopped.keys().next() {
            Some(pid) => Err(TraceError::Gone { pid: *pid }.into()),
            None => Ok(processes),
        }
    }

    /// The threads, and whether job control has stopped the process.
    fn captives(
        &mut self,
        process: &TreeProcess,
        timeout: Duration,
    ) -> Result<(Vec<Captive>, bool), CaptureError> {
        if process.threads.is_empty() {
            return Ok((Vec::new(), false));
        }
        if let Some(headless) = check::headless(process) {
            return Err(CaptureError::Blocked(vec![headless]));
        }
        let job_stopped = thread::is_job_stopped(process.pid)?;
        let memory = ProcessMemory::open(process.pid)?;
        let captive = |TreeThread { pid, layout }: &TreeThread| {
            let stopped = self.stopped.remove(pid).ok_or(TraceError::Gone { pid: *pid })?;
            take(stopped, (layout.vtid, process.vpid), &memory, process.marker, timeout)
        };
        let threads = process.threads.iter().map(captive).collect::<Result<_, CaptureError>>()?;
        Ok((threads, job_stopped))
    }
}

/// Gives every thread its context back and lets it go.
pub(super) fn let_run(processes: Vec<StoppedProcess>) {
    let mut held = BTreeSet::new();
    for process in processes {
        let pids: Vec<Pid> = process.threads.iter().map(RemoteTask::pid).collect();
        // All contexts first: the leader may run as soon as it is let go.
        let mut threads = process.threads;
        let restored = threads.iter_mut().map(Captive::restore_context).fold(Ok(()), Result::and);
        let mut threads = threads.into_iter();
        let Some(leader) = threads.next() else { continue };
        // A thread that was killed meanwhile has nothing to be given back.
        if let Err(error) = restored.and(release(leader, threads)) {
            tracing::debug!(%error, "a thread could not be let go");
            held.extend(pids);
        }
    }
    if !held.is_empty() {
        free(held);
    }
}

/// Lets tasks go that are held still, whatever they do.
fn free(pids: BTreeSet<Pid>) {
    let held = pids.iter().filter(|pid| tracee::is_held(**pid));
    held.for_each(|pid| drop(Running::born(*pid).interrupt()));
    let slow = tracee::let_all_go(&pids, Deadline::after(LAST_WAIT));
    if !slow.is_empty() {
        tracing::warn!(tasks = ?slow, "tasks stay seized until the migration's thread ends");
    }
}

#[cfg(test)]
#[path = "stop_tests.rs"]
mod tests;
