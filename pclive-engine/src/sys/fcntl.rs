//! fcntl(2) commands on status flags and signal-driven I/O.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// Who gets SIGIO (`struct f_owner_ex`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileOwner {
    /// `F_OWNER_TID` (0), `F_OWNER_PID` (1) or `F_OWNER_PGRP` (2).
    pub kind: i32,
    /// The id in the caller's PID namespace; 0: nobody (or somebody who is gone or not visible).
    pub id: i32,
}

const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;

#[repr(C)]
struct OwnerEx {
    kind: i32,
    id: i32,
}

const _: () = assert!(size_of::<OwnerEx>() == 8);

/// The command number of `F_SETOWN_EX` (Linux 2.6.32), for a remote call.
pub const SET_OWNER: i32 = F_SETOWN_EX;
/// The command number of `F_SETSIG`, for a remote call.
pub const SET_SIGNAL: i32 = 10;

/// `F_GETOWN_EX`. EBADF for an `O_PATH` descriptor.
pub fn owner(file: impl AsFd) -> nix::Result<FileOwner> {
    let mut owner = OwnerEx { kind: 0, id: 0 };
    // SAFETY: F_GETOWN_EX stores one f_owner_ex (8 bytes, checked above) at the address of a live one.
    let result = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), F_GETOWN_EX, &raw mut owner) };
    Errno::result(result)?;
    Ok(FileOwner { kind: owner.kind, id: owner.id })
}

/// `F_GETSIG`: the signal sent instead of SIGIO, 0 for SIGIO itself.
pub fn signal(file: impl AsFd) -> nix::Result<i32> {
    const F_GETSIG: i32 = 11;
    // SAFETY: F_GETSIG takes no argument and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), F_GETSIG) })
}

/// `F_SETFL`: replaces O_APPEND, O_ASYNC, O_DIRECT, O_NOATIME and O_NONBLOCK; other bits are ignored. EPERM:
/// clearing O_APPEND of an append-only file, or O_NOATIME on somebody else's.
pub fn set_status(file: impl AsFd, flags: i32) -> nix::Result<()> {
    // SAFETY: F_SETFL takes an integer and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_SETFL, flags) }).map(drop)
}

/// `F_GET_SEALS` (Linux 3.17): `F_SEAL_*`. EINVAL for a file that cannot be sealed.
pub fn seals(file: impl AsFd) -> nix::Result<i32> {
    // SAFETY: F_GET_SEALS takes no argument and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_GET_SEALS) })
}

/// `F_ADD_SEALS`: EBUSY for `F_SEAL_WRITE` while the file is mapped writable and shared.
pub fn add_seals(file: impl AsFd, seals: i32) -> nix::Result<()> {
    // SAFETY: F_ADD_SEALS takes an integer and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_ADD_SEALS, seals) }).map(drop)
}
