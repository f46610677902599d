//! Options, owner and buffers of a socket that is being built.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, fchown, geteuid};

use super::error::{Of, SocketsError};
use crate::model::FileId;
use crate::model::socket::{Buffers, Socket, SocketOption};
use crate::model::socket_options::{Moment, TABLE};
use crate::sys::socket::{set_int, set_option};

/// `SO_BUF_LOCK` (Linux 5.14).
const SO_BUF_LOCK: i32 = 72;
const TCP_CONGESTION: (i32, i32) = (libc::IPPROTO_TCP, libc::TCP_CONGESTION);

/// Sets the options of one moment, in the table's order.
pub(super) fn apply(
    file: FileId,
    fd: &OwnedFd,
    options: &[SocketOption],
    moment: Moment,
) -> Result<(), SocketsError> {
    if options.is_empty() {
        return Ok(());
    }
    for spec in TABLE.iter().filter(|spec| spec.moment == moment) {
        let Some(option) = options.iter().find(|o| (o.level, o.name) == (spec.level, spec.name)) else {
            continue;
        };
        match set_option(fd.as_fd(), spec.level, spec.name, &option.value) {
            Err(Errno::ENOENT) if (spec.level, spec.name) == TCP_CONGESTION => {
                let name = option.value.escape_ascii().to_string();
                tracing::warn!(
                    algorithm = name,
                    "this host lacks a connection's congestion control; its default is used"
                );
            }
            result => result.of(file, &format!("set {} of the socket", spec.label))?,
        }
    }
    Ok(())
}

/// Gives the socket to the user who made it.
pub(super) fn give(file: FileId, fd: &OwnedFd, socket: &Socket) -> Result<(), SocketsError> {
    if socket.uid == geteuid().as_raw() && socket.gid == nix::unistd::getegid().as_raw() {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(socket.uid), Gid::from_raw(socket.gid));
    fchown(fd, Some(uid), Some(gid)).of(file, "set the owner of the socket")
}

/// `SO_REUSEADDR`.
pub(super) fn reuse(fd: BorrowedFd<'_>, on: bool) -> Result<(), Errno> {
    set_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, i32::from(on))
}

/// Makes room for queues of `send` and `receive` bytes; at least what the socket had.
pub(super) fn widen(
    file: FileId,
    fd: &OwnedFd,
    buffers: Buffers,
    send: usize,
    receive: usize,
) -> Result<(), SocketsError> {
    let room = |had: u32, queue: usize| match queue {
        0 => had,
        // The kernel charges for its structures as well.
        _ => had.max(u32::try_from(queue.saturating_mul(4).saturating_add(256 << 10)).unwrap_or(u32::MAX)),
    };
    size(fd.as_fd(), libc::SO_SNDBUFFORCE, room(buffers.send, send))
        .and_then(|()| size(fd.as_fd(), libc::SO_RCVBUFFORCE, room(buffers.receive, receive)))
        .of(file, "size the buffers")
}

/// The sizes that the socket had, and whether the kernel tunes them.
pub(super) fn settle(fd: BorrowedFd<'_>, buffers: Buffers, which: Sizes) -> Result<(), Errno> {
    if which.send {
        size(fd, libc::SO_SNDBUFFORCE, buffers.send)?;
    }
    if which.receive {
        size(fd, libc::SO_RCVBUFFORCE, buffers.receive)?;
    }
    set_int(fd, libc::SOL_SOCKET, SO_BUF_LOCK, i32::from(buffers.locks))
}

/// Buffer sizes to set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// `SO_SNDBUF`.
    pub(super) send: bool,
    /// `SO_RCVBUF`.
    pub(super) receive: bool,
}

/// `bytes` as getsockopt(2) tells it: the kernel doubles what is set.
fn size(fd: BorrowedFd<'_>, name: i32, bytes: u32) -> Result<(), Errno> {
    set_int(fd, libc::SOL_SOCKET, name, i32::try_from(bytes / 2).unwrap_or(i32::MAX / 2))
}
