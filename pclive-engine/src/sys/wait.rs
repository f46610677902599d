//! waitid(2) on tracees.

use std::io::{Error, Result};

use crate::model::Pid;

/// What `waitid` reports of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// Nothing yet.
    Nothing,
    /// Ended with this exit code.
    Exited(i32),
    /// Killed by this signal.
    Killed(i32),
    /// Stopped under ptrace; the raw status: signal in the low 8 bits, `PTRACE_EVENT_*` above.
    Stopped(i32),
}

/// Looks whether a task has something to report, without waiting.
///
/// With `keep` (WNOWAIT) the report stays: a tracer that dies after having taken the report of a signal stop
/// would make the task lose the signal. Without it an ended task is reaped. ECHILD: not a tracee or child.
pub fn poll(pid: Pid, keep: bool) -> Result<Report> {
    let mut flags = libc::WEXITED | libc::WSTOPPED | libc::WNOHANG | libc::__WALL;
    if keep {
        flags |= libc::WNOWAIT;
    }
    // SAFETY: an all-zero siginfo_t is valid; the kernel fills it in.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` lives across the call and has the type that the call writes.
    let result = unsafe { libc::waitid(libc::P_PID, pid.0 as libc::id_t, &raw mut info, flags) };
    if result == -1 {
        return Err(Error::last_os_error());
    }
    // SAFETY: waitid fills in the fields of a SIGCHLD siginfo, or leaves the zeros.
    let (reported, status) = unsafe { (info.si_pid(), info.si_status()) };
    if reported == 0 {
        return Ok(Report::Nothing);
    }
    Ok(match info.si_code {
        libc::CLD_EXITED => Report::Exited(status),
        libc::CLD_KILLED | libc::CLD_DUMPED => Report::Killed(status),
        _ => Report::Stopped(status),
    })
}
