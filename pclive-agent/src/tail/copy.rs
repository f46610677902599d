//! The copy's end, when its pages cannot be fetched any more by whom knows where they belong.
//!
//! Invariant: the copy has ended before this returns, so that the caller may let go of its memory and nobody reads zeros
//! for a page. An init is gone only once everybody in its pid namespace is.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::journal::Process;
use crate::recovery::process;

/// How often it is looked at.
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until the copy has ended: by the agent, which writes that down first, or by this after `grace`. Takes as long
/// as its tasks take to die.
pub(super) async fn end(init: Process, grace: Duration) {
    let deadline = Instant::now() + grace;
    let mut killed = false;
    while process::is_there(init) {
        if !killed && Instant::now() >= deadline {
            // One that is gone by itself needs no end.
            let _ = kill(Pid::from_raw(init.pid), Signal::SIGKILL);
            killed = true;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn copy_has_ended_before_its_memory_is_let_go() {
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let init = process::identify(i32::try_from(child.id()).unwrap()).unwrap();
        end(Process { start_time: init.start_time + 1, ..init }, Duration::ZERO).await;
        assert!(process::is_there(init));
        end(init, Duration::ZERO).await;
        assert!(!process::is_there(init));
        child.wait().unwrap();
    }
}
