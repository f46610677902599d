//! Containers that arrived are the agent's children once the runtime's command has ended: somebody has to take
//! note of their end, or they stay as zombies.
//!
//! Invariant: the stops of a task that another thread of the agent traces (the container migrates away again) are
//! looked at only, never taken. Kernel: SIGCHLD, waitid(2) with WNOWAIT; waiting for a traced child reports its
//! stops whatever the options say.

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

/// Waits for the end of the container's init and takes note of it.
pub(super) async fn reap(pid: i32) {
    // Watched before the first look, so that no end falls in between.
    let Ok(mut children) = signal(SignalKind::child()) else { return };
    while !gone(pid) {
        if children.recv().await.is_none() {
            return;
        }
    }
}

/// True once the process has ended, and then it is reaped; also if it is not the agent's child (ECHILD).
fn gone(pid: i32) -> bool {
    let pid = Pid::from_raw(pid);
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
    match waitid(Id::Pid(pid), look | WaitPidFlag::WNOWAIT) {
        Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => waitid(Id::Pid(pid), look).is_ok(),
        Ok(_) | Err(Errno::EINTR) => false,
        Err(_) => true,
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
