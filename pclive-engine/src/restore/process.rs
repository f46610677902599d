//! The small state of a process, in its leader thread.
//!
//! Order: [`early`] in the leader when its memory is mapped; then files, sockets and every thread
//! ([`super::thread::restore`]); then [`late`] in the leader; then [`super::thread::finish`] for every thread; and
//! [`stop_again`] at the very end. The order keeps privileges as long as they are needed and starts timers as late as possible.

use nix::sys::signal::{Signal, kill};

use super::attributes;
use super::failure::{Checks, RestoreStateError, request};
use super::signals::{self, Receiver};
use super::{limits, mm, timers, xstate};
use crate::capture::failure::read_text;
use crate::capture::process::number;
use crate::model::Pid;
use crate::model::state::ProcessState;
use crate::proc::status;
use crate::remote::{Batch, RemoteTask};

/// `PR_SET_MDWE`. Linux 6.3.
const PR_SET_MDWE: u64 = 65;
/// `SUID_DUMP_ROOT`: a kernel's choice, not a program's.
const DUMPABLE_BY_ROOT: i32 = 2;
/// Longest path.
const MAX_PATH_BYTES: usize = 4096;

/// Raises resource limits; sets addresses and auxiliary vector, signal actions, current directory, umask,
/// permissions for CPU features, and the flags that do not disturb the rest of the restore.
pub fn early(task: &mut dyn RemoteTask, process: &ProcessState) -> Result<(), RestoreStateError> {
    check(task, process)?;
    limits::raise(task, &process.rlimits)?;
    let (mut batch, mut checks) = (Batch::new(task), Checks::default());
    xstate::ask_for_permissions(&mut batch, &mut checks, process.xstate_permission);
    mm::set(&mut batch, &mut checks, process.vpid, &process.mm)?;
    signals::set_actions(&mut batch, &mut checks, process.vpid, &process.actions)?;
    attributes::set_process(&mut batch, &mut checks, process)?;
    let answers = batch.run(task)?;
    checks.take(&answers, task)
}

/// Queues pending signals, starts timers, sets the exact resource limits and what would have been in the way of
/// the rest: dumpable, write-execute policy, locking of future memory, OOM score.
pub fn late(task: &mut dyn RemoteTask, process: &ProcessState) -> Result<(), RestoreStateError> {
    check(task, process)?;
    let pid = task.pid();
    let status = read_text(pid, "status", status::parse)?;
    signals::drain(task, &status)?;
    if let Some(leader) = process.threads.first() {
        signals::queue(task, &leader.pending, Receiver::Thread { leader: process.vpid })?;
    }
    signals::queue(task, &process.pending, Receiver::Process)?;
    set_oom_score(pid, process.oom_score_adj)?;
    set_coredump_filter(pid, process.coredump_filter)?;
    limits::settle(task, &process.rlimits)?;
    timers::make_posix(task, &process.posix_timers)?;

    let (mut batch, mut checks) = (Batch::new(task), Checks::default());
    let mut prctl = |arguments: &[u64], what| checks.add(batch.call(libc::SYS_prctl, arguments), what);
    let dumpable = if process.dumpable == DUMPABLE_BY_ROOT { 0 } else { process.dumpable };
    prctl(&[libc::PR_SET_DUMPABLE as u64, dumpable as u64], "set the dumpable flag");
    if process.memory_deny_write_exec != 0 {
        let bits = u64::from(process.memory_deny_write_exec);
        prctl(&[PR_SET_MDWE, bits, 0, 0, 0], "set the write-execute policy");
    }
    if process.lock_future != 0 {
        let flags = u64::from(process.lock_future) & (libc::MCL_FUTURE | libc::MCL_ONFAULT) as u64;
        checks.add(batch.call(libc::SYS_mlockall, &[flags]), "lock future memory");
    }
    timers::set_intervals(&mut batch, &mut checks, &process.interval_timers)?;
    let answers = batch.run(task)?;
    checks.take(&answers, task)
}

/// Makes a process that was stopped by job control stop again as soon as its threads are let go, before they run
/// an instruction: the last thing of all, because a remote call would take the signal. Its parent is told of the
/// stop (SIGCHLD) once more.
pub fn stop_again(leader: Pid, process: &ProcessState) -> Result<(), RestoreStateError> {
    if !process.job_stopped {
        return Ok(());
    }
    let id = nix::unistd::Pid::from_raw(leader.0);
    kill(id, Signal::SIGSTOP).map_err(request(leader, "stop the process"))
}

fn check(task: &dyn RemoteTask, process: &ProcessState) -> Result<(), RestoreStateError> {
    let vpid = task.vpid();
    let invalid = |what: String| Err(RestoreStateError::Invalid { vpid, what });
    if process.vpid != vpid {
        return invalid(format!("it belongs to process {}", process.vpid));
    }
    if process.cwd.len() >= MAX_PATH_BYTES || process.cwd.contains(&0) || !process.cwd.starts_with(b"/") {
        return invalid("its current directory is not an absolute path".into());
    }
    Ok(())
}

/// Lowering it needs CAP_SYS_RESOURCE of the agent.
fn set_oom_score(pid: Pid, wanted: i32) -> Result<(), RestoreStateError> {
    if number(pid, "oom_score_adj", 10)? == i64::from(wanted) {
        return Ok(());
    }
    write(pid, "oom_score_adj", "set the OOM score adjustment", &wanted.to_string())
}

fn set_coredump_filter(pid: Pid, wanted: u32) -> Result<(), RestoreStateError> {
    if number(pid, "coredump_filter", 16)? == i64::from(wanted) {
        return Ok(());
    }
    write(pid, "coredump_filter", "set the core dump filter", &format!("{wanted:#x}"))
}

fn write(pid: Pid, name: &str, what: &'static str, text: &str) -> Result<(), RestoreStateError> {
    std::fs::write(format!("/proc/{pid}/{name}"), text).map_err(|source| RestoreStateError::Request {
        pid,
        what,
        source,
    })
}
