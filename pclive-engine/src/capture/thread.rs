//! The small state of one thread, in one batch of remote calls and a few requests from outside.
//!
//! State of the world: the thread is a stopped tracee of the calling OS thread, under `task`; it is left as it
//! was.

use super::attributes::ThreadAttributesPlan;
use super::creds::CredentialsPlan;
use super::failure::{CaptureStateError, read_text};
use super::scheduling::CpuSet;
use super::signals::{self, AltStackPlan};
use super::{scheduling, seccomp, xstate};
use crate::model::signal::PendingSignal;
use crate::model::state::{ProcessState, Rseq, Scheduling, SeccompFilter, ThreadState};
use crate::model::{Pid, Vpid};
use crate::proc::status::{self, Status};
use crate::remote::{Answers, Batch, RemoteError, RemoteTask};
use crate::sys::ptrace::registers_to_bytes;
use crate::sys::ptrace_state;
use crate::tracee::Registers;

/// What a thread had before the engine's first remote call in it.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// General registers.
    pub registers: &'a Registers,
    /// Blocked signals.
    pub signal_mask: u64,
}

/// Looks whether remote calls may be made in a thread at all: to be called when it has been stopped by
/// `PTRACE_INTERRUPT`, before any of them.
pub fn admit(pid: Pid, vpid: Vpid) -> Result<(), CaptureStateError> {
    let dispatches = ptrace_state::dispatches_syscalls(pid);
    if let Ok(true) = dispatches {
        let what = "it has its system calls turned into signals (syscall user dispatch)".into();
        let hint = "such programs (Wine, some emulators) cannot be migrated";
        return Err(CaptureStateError::Unsupported { vpid, what, hint });
    }
    let status = read_text(pid, "status", status::parse)?;
    seccomp::refuse_strict(vpid, &status)
}

/// Whether a process is stopped by job control (SIGSTOP and the like): to be asked about its leader when that has
/// been stopped by `PTRACE_INTERRUPT`, before any remote call, after which it no longer shows.
pub fn is_job_stopped(leader: Pid) -> Result<bool, CaptureStateError> {
    let failed = |source| CaptureStateError::Request { pid: leader, what: "stop", source };
    Ok(ptrace_state::stop_signal(leader).map_err(failed)? != libc::SIGTRAP)
}

/// What is read of a thread from outside. Reading takes about as long as the calls that are made in another thread
/// meanwhile.
#[derive(Debug)]
pub struct Outside {
    pub(super) status: Status,
    xstate: Vec<u8>,
    pending: Vec<PendingSignal>,
    rseq: Option<Rseq>,
    scheduling: Scheduling,
}

impl Outside {
    /// Looks at a stopped thread; `cpus` is what the container may use.
    pub fn of(pid: Pid, vpid: Vpid, cpus: &CpuSet) -> Result<Self, CaptureStateError> {
        let request = |what| move |source| CaptureStateError::Request { pid, what, source };
        let status = read_text(pid, "status", status::parse)?;
        Ok(Self {
            xstate: xstate::capture(pid)?,
            pending: signals::pending(pid, vpid, false, status.pending)?,
            rseq: ptrace_state::rseq(pid).map_err(request("rseq area"))?,
            scheduling: scheduling::capture(pid, vpid, cpus)?,
            status,
        })
    }
}

/// Captures a thread that is not the leader and appends it to its process; `meanwhile` is done while it makes its calls.
pub fn capture(
    task: &mut dyn RemoteTask,
    frame: Frame<'_>,
    outside: Outside,
    process: &mut ProcessState,
    meanwhile: &mut dyn FnMut(),
) -> Result<(), CaptureStateError> {
    let mut batch = Batch::new(task);
    let plan = ThreadPlan::plan(&mut batch)?;
    let answers = batch.run_beside(task, meanwhile)?;
    let mut thread = plan.take(&answers, task, frame, outside, &mut process.seccomp_filters)?;
    thread.xstate = xstate::pack(&thread.xstate, &process.xstate_layout);
    process.threads.push(thread);
    Ok(())
}

/// Everything that is asked for in the thread itself.
#[derive(Debug)]
pub(super) struct ThreadPlan {
    attributes: ThreadAttributesPlan,
    credentials: CredentialsPlan,
    alt_stack: AltStackPlan,
}

impl ThreadPlan {
    pub(super) fn plan(batch: &mut Batch) -> Result<Self, RemoteError> {
        Ok(Self {
            attributes: ThreadAttributesPlan::plan(batch)?,
            credentials: CredentialsPlan::plan(batch)?,
            alt_stack: AltStackPlan::plan(batch)?,
        })
    }

    /// The thread's state, its extended registers not packed yet.
    pub(super) fn take(
        &self,
        answers: &Answers,
        task: &mut dyn RemoteTask,
        frame: Frame<'_>,
        outside: Outside,
        filters: &mut Vec<SeccompFilter>,
    ) -> Result<ThreadState, CaptureStateError> {
        let (pid, vpid) = (task.pid(), task.vpid());
        let Outside { status, xstate, pending, rseq, scheduling } = outside;
        let attributes = self.attributes.take(answers, vpid)?;
        Ok(ThreadState {
            vtid: vpid,
            comm: attributes.comm,
            registers: registers_to_bytes(frame.registers),
            xstate,
            signal_mask: frame.signal_mask,
            pending,
            alt_stack: self.alt_stack.take(answers, vpid)?,
            robust_list: attributes.robust_list,
            clear_child_tid: attributes.clear_child_tid,
            rseq,
            scheduling,
            credentials: self.credentials.take(answers, task, &status)?,
            parent_death_signal: attributes.parent_death_signal,
            timer_slack_ns: attributes.timer_slack_ns,
            personality: attributes.personality,
            memory_policy: attributes.memory_policy,
            speculation: attributes.speculation,
            tsc_faults: attributes.tsc_faults,
            cpuid_faults: attributes.cpuid_faults,
            machine_check_policy: attributes.machine_check_policy,
            seccomp: seccomp::capture(pid, vpid, &status, filters)?,
        })
    }
}
