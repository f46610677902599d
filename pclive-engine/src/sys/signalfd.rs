//! signalfd(2).

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// signalfd4(2): a new one, closing on exec, that accepts the signals of `mask` (bit n-1 is signal n; the kernel's
/// own set, so that also the two signals that libc keeps for itself can be in it). `flags`: `SFD_NONBLOCK`.
pub fn create(mask: u64, flags: i32) -> nix::Result<OwnedFd> {
    // SAFETY: the mask is a live u64, its size is given, and the kernel only reads it.
    let fd = unsafe {
        libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, size_of::<u64>(), flags | libc::SFD_CLOEXEC)
    };
    let fd = Errno::result(fd)? as RawFd;
    // SAFETY: the kernel has just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
