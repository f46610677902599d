//! Process descriptors (pidfd_open(2), Linux 5.3; pidfd_getfd(2), Linux 5.6).

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use crate::model::Pid;

/// pidfd_open(2) of a thread group leader. The descriptor closes on exec. ESRCH: the process is gone; EINVAL: not
/// a leader.
pub fn open(pid: Pid) -> nix::Result<OwnedFd> {
    // SAFETY: the call takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.0, 0) };
    let fd = Errno::result(fd)? as RawFd;
    // SAFETY: the kernel has just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// pidfd_getfd(2): a duplicate (closes on exec) of descriptor `fd` of the process. Needs
/// PTRACE_MODE_ATTACH_REALCREDS. EBADF: it has no such descriptor; ESRCH: it is gone; EMFILE: too many of ours.
pub fn getfd(process: impl AsFd, fd: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: the call takes three integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_fd().as_raw_fd(), fd, 0) };
    let fd = Errno::result(fd)? as RawFd;
    // SAFETY: the kernel has just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
