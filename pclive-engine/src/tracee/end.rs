//! The end of tracees.

use std::time::Duration;

use super::{Pause, Running, TraceError};
use crate::model::{Deadline, Pid};

/// Kills a process. One that has ended already is fine.
pub fn kill(pid: Pid) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.0), nix::sys::signal::SIGKILL);
}

/// Waits until killed tracees have ended, and takes their reports so that their parents can reap them. A leader
/// reports after its threads.
pub fn await_ends(pids: &[Pid], timeout: Duration) -> Result<(), TraceError> {
    let deadline = Deadline::after(timeout);
    let mut pause = Pause::default();
    let mut left: Vec<Pid> = pids.to_vec();
    loop {
        left.retain(|pid| Running::born(*pid).poll().is_ok());
        let Some(pid) = left.first().copied() else { return Ok(()) };
        if deadline.passed() {
            return Err(TraceError::Deadline { pid });
        }
        pause.take();
    }
}
