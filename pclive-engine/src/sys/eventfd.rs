//! eventfd(2).

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// eventfd2(2) with a zero counter; closes on exec. `flags`: `EFD_SEMAPHORE`, `EFD_NONBLOCK`.
pub fn create(flags: i32) -> nix::Result<OwnedFd> {
    // SAFETY: the call takes two integers and touches no memory of ours.
    let fd = unsafe { libc::eventfd(0, flags | libc::EFD_CLOEXEC) };
    let fd: RawFd = Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
