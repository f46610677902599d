//! Things that no migration can carry.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};

use crate::calls;

/// Holds an inotify descriptor, an io_uring and a System V semaphore.
pub(crate) fn hold() -> Result<[OwnedFd; 2]> {
    let watches = calls::inotify().context("cannot make an inotify descriptor")?;
    calls::semaphore().context("cannot make a System V semaphore")?;
    let ring = calls::io_uring().context("cannot make an io_uring")?;
    Ok([watches, ring])
}
