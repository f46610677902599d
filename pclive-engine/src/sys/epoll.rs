//! epoll(7), as far as another process's entries need it.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// Bytes of `struct epoll_event`, which is packed on x86-64.
pub const EVENT_BYTES: usize = 12;
const _: () = assert!(size_of::<libc::epoll_event>() == EVENT_BYTES);

/// epoll_create1(2), closing on exec.
pub fn create() -> nix::Result<OwnedFd> {
    // SAFETY: the call takes an integer and touches no memory of ours.
    let fd: RawFd = Errno::result(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
    // SAFETY: the kernel has just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `struct epoll_event` as bytes, for a remote epoll_ctl(2).
pub fn event(events: u32, data: u64) -> [u8; EVENT_BYTES] {
    let mut bytes = [0; EVENT_BYTES];
    bytes[..4].copy_from_slice(&events.to_ne_bytes());
    bytes[4..].copy_from_slice(&data.to_ne_bytes());
    bytes
}
