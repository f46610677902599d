//! Pipes (pipe(7), pipe2(2), tee(2)).

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// pipe2(2): read end and write end, both closing on exec. `flags`: O_NONBLOCK, O_DIRECT.
pub fn create(flags: OFlag) -> nix::Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(flags | OFlag::O_CLOEXEC)
}

/// `F_GETPIPE_SZ`: capacity in bytes.
pub fn capacity(pipe: impl AsFd) -> nix::Result<u32> {
    fcntl(pipe, FcntlArg::F_GETPIPE_SZ).map(|bytes| bytes.unsigned_abs())
}

/// `F_SETPIPE_SZ`: asks for at least `bytes`. EPERM: above /proc/sys/fs/pipe-max-size without CAP_SYS_RESOURCE;
/// EBUSY: less than what is in it.
pub fn set_capacity(pipe: impl AsFd, bytes: u32) -> nix::Result<()> {
    let bytes = i32::try_from(bytes).map_err(|_| Errno::EINVAL)?;
    fcntl(pipe, FcntlArg::F_SETPIPE_SZ(bytes)).map(drop)
}

/// tee(2): copies up to `len` bytes from one pipe to another without taking them out of the first. Never blocks;
/// EAGAIN: nothing to copy, or no room.
pub fn tee(from: impl AsFd, to: impl AsFd, len: usize) -> nix::Result<usize> {
    let (from, to) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    // SAFETY: the call takes four integers and touches no memory of ours.
    let copied = unsafe { libc::tee(from, to, len, libc::SPLICE_F_NONBLOCK) };
    Errno::result(copied).map(isize::unsigned_abs)
}

/// `FIONREAD`: bytes that can be read from a pipe (any end).
pub fn queued(pipe: impl AsFd) -> nix::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD stores one int at the address, which is that of a live int.
    let result = unsafe { libc::ioctl(pipe.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    Errno::result(result).map(|_| bytes.unsigned_abs())
}
