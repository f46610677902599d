//! Lets the threads of a stopped process go, the leader first.
//!
//! The kernel gives a signal for the process to its leader if that runs and does not block it. Signals that came
//! while all threads were stopped go to whichever thread runs first, and a thread that waits in poll(2) would see
//! an EINTR that it would never have seen otherwise. So the leader gets a moment to take them.

use std::time::Duration;

use super::{Captive, RemoteError, RemoteTask};
use crate::model::{Deadline, Pid};
use crate::proc::status;
use crate::tracee::Pause;

/// How long the leader gets; what it has not taken by then is any thread's. It takes that long on a host without a free
/// processor only.
const PATIENCE: Duration = Duration::from_millis(100);

/// Detaches the leader, then the other threads. On `Err` all that could be detached are.
pub fn release(leader: Captive, others: impl IntoIterator<Item = Captive>) -> Result<(), RemoteError> {
    let pid = leader.pid();
    let mut others = others.into_iter().peekable();
    let mut result = leader.detach();
    if others.peek().is_some() {
        await_signals_taken(pid);
    }
    for captive in others {
        result = result.and(captive.detach());
    }
    result
}

/// Returns once no signal with a handler waits that the leader would take.
fn await_signals_taken(leader: Pid) {
    let deadline = Deadline::after(PATIENCE);
    let mut pause = Pause::default();
    while let Ok(text) = crate::proc::read(format!("/proc/{leader}/status")) {
        let Ok(status) = status::parse(&text) else { return };
        if status.shared_pending & status.caught & !status.blocked == 0 || deadline.passed() {
            return;
        }
        pause.take();
    }
}
