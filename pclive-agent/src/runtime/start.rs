//! A created container becomes a running one in the runtime's eyes.
//!
//! A created container's init waits to open the pipe `exec.fifo` for writing; `runtime start` opens it for
//! reading, takes one byte and removes it. The init of a container that arrived never ran that code, so the agent
//! writes the byte in its place: `start` returns, and the runtime lists the container as running.
//!
//! Kernel: fifo(7); opening a fifo for writing without waiting fails with ENXIO until it has a reader.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tokio::process::Command;

use super::{RuntimeError, command};

/// Pause between two looks whether `start` has opened the pipe.
const POLL: Duration = Duration::from_millis(1);

/// Runs `start` and answers it. Both together end within `timeout`.
pub(super) async fn release(mut start: Command, fifo: &Path, timeout: Duration) -> Result<(), RuntimeError> {
    let answer = async {
        let written = write_when_read(fifo, timeout).await;
        written.map_err(|source| RuntimeError::Fifo { path: fifo.into(), source })
    };
    let run = async { command::run(&mut start, "start", timeout).await.map_err(RuntimeError::from) };
    // A `start` that fails never opens the pipe: its words are what matters.
    tokio::pin!(answer, run);
    tokio::select! {
        ended = &mut run => ended.map(drop),
        written = &mut answer => {
            let ended = run.await;
            ended.and(written)
        }
    }
}

async fn write_when_read(fifo: &Path, timeout: Duration) -> io::Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        let opened = std::fs::OpenOptions::new().write(true).custom_flags(nix::libc::O_NONBLOCK).open(fifo);
        match opened {
            Ok(mut pipe) => return pipe.write_all(b"0"),
            Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => {}
            Err(error) => return Err(error),
        }
        if Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "nobody reads it"));
        }
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::Mode;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn start_gets_its_byte_and_returns() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("exec.fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let script = format!("test \"$(cat {})\" = 0", fifo.display());
        release(shell(&script), &fifo, Duration::from_secs(20)).await.unwrap();
    }

    #[tokio::test]
    async fn a_start_that_fails_says_why() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("exec.fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let failing = shell("echo 'no such container' >&2; exit 1");
        let error = release(failing, &fifo, Duration::from_secs(20)).await.unwrap_err();
        assert!(error.to_string().contains("no such container"), "{error}");
    }

    #[tokio::test]
    async fn a_pipe_that_is_gone_is_named() {
        let error =
            release(shell("sleep 0.2"), Path::new("/nonexistent/exec.fifo"), Duration::from_secs(20)).await;
        assert!(error.unwrap_err().to_string().contains("/nonexistent/exec.fifo"));
    }
}
