//! Passing descriptors over a unix socket (unix(7), `SCM_RIGHTS`).

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// Most descriptors that one message carries (`SCM_MAX_FD` of `net/scm.h`).
pub const MAX_FDS: usize = 253;

/// Sends one message: one byte of data and the descriptors. Never blocks. EAGAIN: the receiver's queue is full;
/// ETOOMANYREFS: too many descriptors in flight; EINVAL: more than [`MAX_FDS`].
pub fn send(socket: impl AsFd, fds: &[BorrowedFd<'_>]) -> nix::Result<()> {
    let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&fds)];
    let data = [IoSlice::new(&[0])];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &data, &control, flags, None).map(drop)
}
