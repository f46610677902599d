//! Passing descriptors over a unix socket (unix(7), `SCM_RIGHTS`).

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

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

/// Receives one message of [`send`]: its descriptors, which close on exec. Waits for it. None: the other end is closed.
pub fn receive(socket: impl AsFd) -> nix::Result<Vec<OwnedFd>> {
    let mut byte = [0; 1];
    let mut data = [IoSliceMut::new(&mut byte)];
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut data, Some(&mut control), flags)?;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            // SAFETY: the kernel has just installed these descriptors in this process, and nobody else knows them.
            fds.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    Ok(fds)
}
