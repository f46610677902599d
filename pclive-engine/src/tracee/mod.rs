//! Tasks under ptrace, as types: a [`Running`] task can be interrupted and waited for, a [`Stopped`] one can be
//! looked at, changed and let go.
//!
//! Invariants: every wait has a deadline; a stop's report is never taken from the kernel (WNOWAIT), so that the
//! death of the agent loses no signal. Neither type detaches on drop: the owner of a set of tasks does, or the
//! kernel when the thread ends.
//!
//! Kernel: PTRACE_SEIZE, Linux 3.4. Thread: the one that seized the task makes every call.

pub mod end;
mod reaper;

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use crate::model::{Deadline, Pid};
use crate::proc::task_ids::parse_stat;
use crate::sys::{ptrace, wait};

pub use libc::user_regs_struct as Registers;

/// A failed ptrace operation.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The task ended.
    #[error("task {pid} is gone")]
    Gone {
        /// The task.
        pid: Pid,
    },
    /// The kernel refused an operation.
    #[error("cannot {operation} task {pid}")]
    Request {
        /// "seize", "interrupt", "read the registers of" ...
        operation: &'static str,
        /// The task.
        pid: Pid,
        /// Why.
        source: io::Error,
    },
    /// Another process traces it.
    #[error("cannot seize task {pid}: pid {tracer} traces it")]
    Traced {
        /// The task.
        pid: Pid,
        /// Its tracer.
        tracer: Pid,
    },
    /// A wait took too long.
    #[error("task {pid} did not stop within its deadline")]
    Deadline {
        /// The task.
        pid: Pid,
    },
}

/// Maps ESRCH to its meaning for a task that is held and stopped: it ended, or was killed. It is reaped. (The kernel says
/// the same of one that is not stopped.)
fn check<T>(operation: &'static str, pid: Pid, result: io::Result<T>) -> Result<T, TraceError> {
    result.map_err(|source| match source.raw_os_error() {
        Some(libc::ESRCH) => gone(pid),
        _ => TraceError::Request { operation, pid, source },
    })
}

fn gone(pid: Pid) -> TraceError {
    reaper::bury(pid);
    TraceError::Gone { pid }
}

fn is_alive(pid: Pid) -> bool {
    let stat = crate::proc::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    parse_stat(&stat).is_some_and(|stat| !matches!(stat.state, b'Z' | b'X'))
}

/// The thread that traces it, 0 for none.
fn tracer(pid: Pid) -> Option<Pid> {
    let status = crate::proc::read(format!("/proc/{pid}/status")).ok()?;
    let number = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"TracerPid:"))?;
    str::from_utf8(number).ok()?.trim().parse().ok().map(Pid)
}

fn own_id() -> Pid {
    Pid(nix::unistd::gettid().as_raw())
}

/// Why a task stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// `PTRACE_EVENT_STOP`: interrupted, or newly born.
    Interrupted,
    /// Another `PTRACE_EVENT_*`.
    Event(i32),
    /// Entry or exit of a system call.
    SystemCall,
    /// About to take this signal.
    Signal(i32),
}

impl Stop {
    fn from_status(status: i32) -> Self {
        const SYSTEM_CALL: i32 = libc::SIGTRAP | 0x80;
        match (status & 0xff, status >> 8) {
            (_, libc::PTRACE_EVENT_STOP) => Self::Interrupted,
            (SYSTEM_CALL, _) => Self::SystemCall,
            (signal, 0) => Self::Signal(signal),
            (_, event) => Self::Event(event),
        }
    }
}

/// A seized task that runs, or is on its way to a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    pid: Pid,
}

impl Running {
    /// How often a task is tried again that nobody traces and that is refused all the same.
    const REFUSALS: u32 = 100;

    /// Seizes a task; it keeps running. EPERM: this process has no right to it, or it is traced, or on its way out
    /// (`ptrace_attach` in kernel/ptrace.c): [`TraceError::Traced`] and [`TraceError::Gone`] here.
    pub fn seize(pid: Pid, options: u64) -> Result<Self, TraceError> {
        let mut pause = Pause::default();
        loop {
            let error = match check("seize", pid, reaper::seize(pid, || ptrace::seize(pid, options))) {
                Ok(()) => return Ok(Self { pid }),
                Err(error @ TraceError::Request { .. }) => error,
                Err(error) => return Err(error),
            };
            match tracer(pid).filter(|_| is_alive(pid)) {
                None => return Err(gone(pid)),
                // A thread that has executed a program has its leader's id since, and stays what it was.
                Some(tracer) if tracer == own_id() => {
                    reaper::remember(pid);
                    return Ok(Self { pid });
                }
                // The leader was refused, and by now the id is that thread's.
                Some(Pid(0)) if pause.taken < Self::REFUSALS => pause.take(),
                Some(Pid(0)) => return Err(error),
                Some(tracer) => return Err(TraceError::Traced { pid, tracer }),
            }
        }
    }

    /// A task that the kernel seized at its birth (`TRACE_BIRTHS`), which is on its way to its first stop.
    pub fn born(pid: Pid) -> Self {
        Self { pid }
    }

    /// The task.
    pub fn pid(self) -> Pid {
        self.pid
    }

    /// Asks the task to stop.
    pub fn interrupt(self) -> Result<(), TraceError> {
        check("interrupt", self.pid, ptrace::interrupt(self.pid))
    }

    /// Looks once whether the task has stopped.
    pub fn poll(self) -> Result<Option<(Stopped, Stop)>, TraceError> {
        let report = match wait::poll(self.pid, true) {
            // It was reaped.
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Err(gone(self.pid)),
            report => check("wait for", self.pid, report)?,
        };
        match report {
            wait::Report::Nothing => Ok(None),
            wait::Report::Stopped(status) => Ok(Some((Stopped { pid: self.pid }, Stop::from_status(status)))),
            // An ended tracee stays a zombie of its tracer until it is reaped.
            wait::Report::Exited(_) | wait::Report::Killed(_) => Err(gone(self.pid)),
        }
    }

    /// Waits for the next stop.
    pub fn wait(self, deadline: Deadline) -> Result<(Stopped, Stop), TraceError> {
        let mut pause = Pause::default();
        loop {
            if let Some(stopped) = self.poll()? {
                return Ok(stopped);
            }
            if deadline.passed() {
                return Err(TraceError::Deadline { pid: self.pid });
            }
            pause.take();
        }
    }
}

/// The pauses of a polling wait: yields first, because most stops come within microseconds, then short sleeps.
#[derive(Debug, Default)]
pub struct Pause {
    taken: u32,
}

impl Pause {
    const YIELDS: u32 = 200;

    /// Takes the next pause.
    pub fn take(&mut self) {
        self.taken = self.taken.saturating_add(1);
        if self.taken <= Self::YIELDS {
            std::thread::yield_now();
        } else {
            let step = u64::from((self.taken - Self::YIELDS).min(20));
            std::thread::sleep(Duration::from_micros(50 * step));
        }
    }
}

/// Whether a task is alive, and a tracee of this thread, in whatever state.
pub fn is_held(pid: Pid) -> bool {
    tracer(pid) == Some(own_id()) && is_alive(pid)
}

/// Lets a task go for good if it is stopped, with the signal that it was about to take. True: this thread does not hold it
/// any more.
pub fn let_go(pid: Pid) -> bool {
    let stopped = Running { pid }.poll().ok().flatten();
    let detached = stopped.map(|(stopped, stop)| match stop {
        Stop::Signal(signal) => stopped.detach(signal),
        Stop::Interrupted | Stop::SystemCall | Stop::Event(_) => stopped.detach(0),
    });
    matches!(detached, Some(Ok(()))) || !is_held(pid)
}

/// Lets tasks go for good as they stop, for which they get some time; those that have not, which are held still. They
/// were asked to stop. Leaders are to be among them: who executes a program goes on with its leader's id, so that all are
/// looked at again until twice none is held.
pub fn let_all_go(pids: &BTreeSet<Pid>, deadline: Deadline) -> Vec<Pid> {
    let mut pause = Pause::default();
    let mut none_held = 0;
    loop {
        let held: Vec<Pid> = pids.iter().copied().filter(|pid| !let_go(*pid)).collect();
        none_held = if held.is_empty() { none_held + 1 } else { 0 };
        if none_held == 2 || deadline.passed() {
            return held;
        }
        pause.take();
    }
}

/// A stopped tracee.
#[derive(Debug, PartialEq, Eq)]
pub struct Stopped {
    pid: Pid,
}

impl Stopped {
    /// The task.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// General registers.
    pub fn registers(&self) -> Result<Registers, TraceError> {
        check("read the registers of", self.pid, ptrace::registers(self.pid))
    }

    /// Sets the general registers.
    pub fn set_registers(&self, registers: &Registers) -> Result<(), TraceError> {
        check("set the registers of", self.pid, ptrace::set_registers(self.pid, registers))
    }

    /// Blocked signals.
    pub fn signal_mask(&self) -> Result<u64, TraceError> {
        check("read the signal mask of", self.pid, ptrace::signal_mask(self.pid))
    }

    /// Sets the blocked signals.
    pub fn set_signal_mask(&self, mask: u64) -> Result<(), TraceError> {
        check("set the signal mask of", self.pid, ptrace::set_signal_mask(self.pid, mask))
    }

    /// Replaces the ptrace options.
    pub fn set_options(&self, options: u64) -> Result<(), TraceError> {
        check("set the options of", self.pid, ptrace::set_options(self.pid, options))
    }

    /// The id that came with a birth event.
    pub fn newborn(&self) -> Result<Pid, TraceError> {
        let message = check("read the event message of", self.pid, ptrace::event_message(self.pid))?;
        Ok(Pid(message as i32))
    }

    /// Lets it run to its next stop, delivering `signal` (0 = none).
    pub fn resume(self, signal: i32) -> Result<Running, TraceError> {
        check("resume", self.pid, ptrace::resume(self.pid, signal))?;
        Ok(Running { pid: self.pid })
    }

    /// Lets it go on to the stop that it was asked for, delivering the `signal` that has come before: any stop takes back what
    /// was asked (ptrace_stop in kernel/signal.c).
    pub fn go_on_to_stop(self, signal: i32) -> Result<Running, TraceError> {
        let running = self.resume(signal)?;
        running.interrupt()?;
        Ok(running)
    }

    /// Lets it run to its next stop, which may be the next system call's entry or exit.
    pub fn resume_to_system_call(self) -> Result<Running, TraceError> {
        check("resume", self.pid, ptrace::resume_to_system_call(self.pid, 0))?;
        Ok(Running { pid: self.pid })
    }

    /// Lets it go for good, delivering `signal` (0 = none).
    pub fn detach(self, signal: i32) -> Result<(), TraceError> {
        check("detach", self.pid, ptrace::detach(self.pid, signal))?;
        reaper::forget(self.pid);
        Ok(())
    }
}
