//! Containers that arrived are the agent's children once the runtime's command has ended: somebody has to take
//! note of their end, or they stay as zombies.
//!
//! Kernel: SIGCHLD, waitpid(2).

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

/// Waits for the end of the container's init and takes note of it. Only for a process that nobody traces: its
/// stops would be taken away from the tracer.
pub(super) async fn reap(pid: i32) {
    // Watched before the first look, so that no end falls in between.
    let Ok(mut children) = signal(SignalKind::child()) else { return };
    // An error is ECHILD: somebody else is its parent, and will do it.
    while let Ok(WaitStatus::StillAlive) = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
        if children.recv().await.is_none() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_child_is_taken_note_of() {
        let child = std::process::Command::new("/bin/sleep").arg("0.1").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        reap(pid).await;
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
}
