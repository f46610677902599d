//! Containers that arrived are the agent's children once the runtime's command has ended: somebody has to take
//! note of their end, or they stay as zombies.
//!
//! Invariant: it is asked for only once the process has ended, because asking takes the stops of a task that another
//! thread of the agent traces. Kernel: a pidfd is readable once the process has ended (Linux 5.3). Not SIGCHLD: every
//! stop of a traced task would raise it, thousands of times while a container stands still.

use std::time::Duration;

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use pclive_engine::model::Pid;
use pclive_engine::sys::pidfd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// While somebody else traces a process that has ended, it is theirs.
const UNTIL_IT_IS_OURS: Duration = Duration::from_secs(1);

/// Waits for the end of the container's init and takes note of it. Nothing is to be done for one that is gone, or is not
/// the agent's child.
#[expect(
    deprecated,
    reason = "sound for a pidfd that is owned and never replaced; the other constructor is unsafe"
)]
pub(super) async fn reap(pid: i32) {
    let Ok(process) = pidfd::open(Pid(pid)) else { return };
    let Ok(process) = AsyncFd::with_interest(process, Interest::READABLE) else { return };
    if process.readable().await.is_err() {
        return;
    }
    let take_note =
        || waitid(Id::Pid(nix::unistd::Pid::from_raw(pid)), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
    while take_note() == Ok(WaitStatus::StillAlive) {
        tokio::time::sleep(UNTIL_IT_IS_OURS).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_child_is_taken_note_of() {
        #[expect(clippy::zombie_processes, reason = "that is what the reaper is for")]
        let child = std::process::Command::new("/bin/sleep").arg("0.1").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        reap(pid).await;
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
}
