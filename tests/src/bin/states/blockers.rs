//! Things that no migration can carry.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};

use crate::calls;

/// Holds two of them.
pub(crate) fn hold() -> Result<Vec<OwnedFd>> {
    let watches = calls::inotify().context("cannot make an inotify descriptor")?;
    match calls::io_uring() {
        Ok(ring) => Ok(vec![watches, ring]),
        Err(error) => Err(error).context("cannot make an io_uring"),
    }
}
