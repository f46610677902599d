//! The small state of one thread.
//!
//! Order, for every thread: [`restore`] once its process has had [`super::process::early`]; then, when all
//! threads have been restored and the leader had [`super::process::late`], [`finish`]; then [`context`] gives the
//! registers and the mask with which the thread is let go. The thread is a stopped tracee of the calling OS
//! thread, with `PTRACE_O_SUSPEND_SECCOMP`, from the first of these to the last.

use super::attributes::{self, Speculation};
use super::failure::{Checks, RestoreStateError};
use super::signals::{self, Receiver};
use super::{creds, restart, scheduling, seccomp, xstate};
use crate::capture::creds::CredentialsPlan;
use crate::capture::failure::read_text;
use crate::model::state::{ProcessState, ThreadState};
use crate::proc::status;
use crate::remote::{Batch, RemoteTask};
use crate::sys::ptrace::registers_from_bytes;
use crate::sys::ptrace_state;
use crate::tracee::Registers;
pub use xstate::RegisterSet;

/// End of the user's address space with five-level page tables.
const USER_END: u64 = 1 << 56;
/// `__USER_CS` and `__USER_DS`: a 64-bit program's segments.
const USER_CODE_SEGMENT: u64 = 0x33;
const USER_DATA_SEGMENT: u64 = 0x2b;

/// Restores everything of a thread but registers, signal mask and seccomp filters. `here` is its process's. Returns warnings for the
/// administrator.
///
/// The credentials are the thread's own afterwards: nothing that needs the created container's privileges can be
/// done in it any more.
pub fn restore(
    task: &mut dyn RemoteTask,
    process: &ProcessState,
    thread: &ThreadState,
    here: &RegisterSet,
) -> Result<Vec<String>, RestoreStateError> {
    let (pid, vpid) = (task.pid(), task.vpid());
    check(task, thread)?;
    let request = |what| move |source| RestoreStateError::Request { pid, what, source };
    let warning = scheduling::restore(pid, vpid, &thread.scheduling)?;
    xstate::restore(pid, vpid, &thread.xstate, &process.xstate_layout, here)?;

    let (mut batch, mut checks) = (Batch::new(task), Checks::default());
    attributes::set_thread(&mut batch, &mut checks, thread)?;
    let registered = ptrace_state::rseq(pid).map_err(request("read the rseq area"))?;
    attributes::set_rseq(&mut batch, &mut checks, registered, thread.rseq);
    let speculation = Speculation::set(&mut batch, thread);
    signals::set_alt_stack(&mut batch, &mut checks, &thread.alt_stack)?;
    let present = CredentialsPlan::plan(&mut batch)?;
    let answers = batch.run(task)?;
    checks.take(&answers, task)?;
    speculation.take(&answers, task)?;

    let status = read_text(pid, "status", status::parse)?;
    let present = present.take(&answers, task, &status)?;
    creds::restore(task, &present, &thread.credentials)?;
    set_death_signal(task, thread.parent_death_signal)?;
    signals::drain(task, &status)?;
    if vpid != process.vpid {
        // The leader's signals come last, with those of the process: see `super::process::late`.
        signals::queue(task, &thread.pending, Receiver::Thread { leader: process.vpid })?;
    }
    Ok(warning.into_iter().collect())
}

fn check(task: &dyn RemoteTask, thread: &ThreadState) -> Result<(), RestoreStateError> {
    let vpid = task.vpid();
    if thread.vtid != vpid {
        return Err(RestoreStateError::Invalid {
            vpid,
            what: format!("it belongs to thread {}", thread.vtid),
        });
    }
    context(thread).map(drop)
}

/// After the credentials: their change clears it. A fork clears it too, so that 0 needs no call.
fn set_death_signal(task: &mut dyn RemoteTask, signal: i32) -> Result<(), RestoreStateError> {
    if signal == 0 {
        return Ok(());
    }
    let (mut batch, mut checks) = (Batch::new(task), Checks::default());
    let call = batch.call(libc::SYS_prctl, &[libc::PR_SET_PDEATHSIG as u64, signal as u64]);
    checks.add(call, "set the parent death signal");
    let answers = batch.run(task)?;
    checks.take(&answers, task)
}

/// Installs the seccomp filters that the thread lacks: the last remote call in it but the engine's own unmapping.
pub fn finish(
    task: &mut dyn RemoteTask,
    process: &ProcessState,
    thread: &ThreadState,
) -> Result<(), RestoreStateError> {
    seccomp::restore(task, &thread.seccomp, &process.seccomp_filters)
}

/// The registers and the signal mask with which a thread is let go, from a signal or event stop (see
/// [`restart`]). Checked: a 64-bit program at addresses that can be its own.
pub fn context(thread: &ThreadState) -> Result<(Registers, u64), RestoreStateError> {
    let invalid = |what: String| RestoreStateError::Invalid { vpid: thread.vtid, what };
    let registers = registers_from_bytes(&thread.registers)
        .ok_or_else(|| invalid(format!("{} bytes of registers", thread.registers.len())))?;
    if (registers.cs, registers.ss) != (USER_CODE_SEGMENT, USER_DATA_SEGMENT) {
        return Err(invalid(format!("segments {:#x} and {:#x}", registers.cs, registers.ss)));
    }
    let addresses = [registers.rip, registers.fs_base, registers.gs_base];
    if let Some(address) = addresses.iter().find(|address| **address >= USER_END) {
        return Err(invalid(format!("an address {address:#x} outside of user space")));
    }
    Ok((restart::restart(registers), thread.signal_mask))
}
