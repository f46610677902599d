//! Things that no migration can carry.

use std::os::fd::OwnedFd;
use std::process::{Child, Command};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::calls;

/// What stands in the way as long as this lives.
#[derive(Debug)]
pub(crate) struct Held {
    _descriptors: [OwnedFd; 2],
    _child: Child,
}

/// Holds an inotify descriptor, an io_uring, and a stopped child.
pub(crate) fn hold() -> Result<Held> {
    let watches = calls::inotify().context("cannot make an inotify descriptor")?;
    let ring = calls::io_uring().context("cannot make an io_uring")?;
    let child = Command::new("/usr/bin/busybox").args(["sleep", "100000"]).spawn()?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    kill(pid, Signal::SIGSTOP)?;
    let status = waitpid(pid, Some(WaitPidFlag::WUNTRACED))?;
    ensure!(matches!(status, WaitStatus::Stopped(..)), "the child did not stop: {status:?}");
    Ok(Held { _descriptors: [watches, ring], _child: child })
}
