//! eventfd(2).

use std::os::fd::OwnedFd;

use crate::sys::eventfd;

/// An eventfd with this counter.
pub(super) fn make(count: u64, semaphore: bool) -> nix::Result<OwnedFd> {
    let file = eventfd::create(if semaphore { libc::EFD_SEMAPHORE } else { 0 })?;
    if count > 0 {
        nix::unistd::write(&file, &count.to_ne_bytes())?;
    }
    Ok(file)
}
