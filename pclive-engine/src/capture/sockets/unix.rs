//! Unix sockets at the source.
//!
//! sock_diag(7) tells who the peer is. Whether a peer is in the container is known only when every descriptor was
//! seen: [`strangers`]. Not carried: the names of connected sockets and the credentials of the processes that
//! connected them (`SO_PEERCRED`).

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{MsgFlags, recv};
use nix::sys::stat::{SFlag, fstat};

use super::queue::{self, Peek};
use super::{Identity, Mode, SocketRefusal, UnixDiag, raw};
use crate::model::socket::{Socket, SocketFile, SocketKind, SocketOption, UnixName};
use crate::proc::sock_diag::UnixSocket;
use crate::sys::openat2::in_root;
use crate::sys::socket::readiness;

const LISTEN: u8 = 10;
/// Larger than the largest message that a default `net.core.wmem_max` allows.
const MESSAGE: usize = 4 << 20;
const MAX_MESSAGES: usize = 1 << 20;

pub(super) fn capture(
    fd: &OwnedFd,
    identity: &Identity,
    options: &[SocketOption],
    diag: &UnixDiag,
    mode: Mode,
) -> Result<SocketKind, SocketRefusal> {
    let entry = diag.get(identity.inode).ok_or_else(|| {
        SocketRefusal::transient("unix socket that was opened after the sockets were listed")
    })?;
    if entry.state == LISTEN {
        return listener(identity, entry, diag, mode);
    }
    let queue = match mode {
        Mode::Check => Vec::new(),
        Mode::Dump => read_queue(fd, identity.socket_type, entry, options)?,
    };
    match entry.peer {
        Some(peer) if is_pair(identity, entry, peer, diag) => Ok(SocketKind::UnixPair {
            inode: identity.inode,
            peer: peer.into(),
            socket_type: identity.socket_type,
            queue,
            shutdown: entry.shutdown,
            reset: peer == 0 && readiness(fd.as_fd(), 0).is_ok_and(|ready| ready.error),
        }),
        peer => Ok(SocketKind::UnixSingle {
            inode: identity.inode,
            socket_type: identity.socket_type,
            name: name_of(entry, diag)?,
            backlog: None,
            target: target_of(identity, peer.unwrap_or_default(), diag)?,
            queue,
            shutdown: entry.shutdown,
        }),
    }
}

/// Two sockets that know only each other, or what one of them has left behind.
fn is_pair(identity: &Identity, entry: &UnixSocket, peer: u32, diag: &UnixDiag) -> bool {
    let nameless_or_stream = entry.name.is_empty() || identity.socket_type != libc::SOCK_DGRAM;
    let mutual = || diag.get(peer.into()).is_some_and(|other| other.peer == Some(entry.inode));
    if peer == 0 { nameless_or_stream } else { mutual() }
}

/// The bound socket that a datagram socket sends to; 0 if there is none any more.
fn target_of(identity: &Identity, peer: u32, diag: &UnixDiag) -> Result<u64, SocketRefusal> {
    if peer == 0 {
        return Ok(0);
    }
    let other = diag.get(peer.into()).ok_or_else(stranger)?;
    if identity.socket_type == libc::SOCK_DGRAM && !other.name.is_empty() {
        return Ok(peer.into());
    }
    Err(SocketRefusal::transient("unix socket that is being connected"))
}

/// Peers of captured sockets that were captured by nobody: they belong to processes outside the container.
/// Returns the inode of the container's end with each.
pub fn strangers<'a>(sockets: impl Iterator<Item = &'a Socket>) -> Vec<(u64, SocketRefusal)> {
    let ends: Vec<(u64, u64)> = sockets.filter_map(ends_of).collect();
    let inside: HashSet<u64> = ends.iter().map(|(inode, _)| *inode).collect();
    let outside = ends.into_iter().filter(|(_, peer)| *peer != 0 && !inside.contains(peer));
    outside.map(|(inode, _)| (inode, stranger())).collect()
}

/// A unix socket and the one that it is connected to.
fn ends_of(socket: &Socket) -> Option<(u64, u64)> {
    match &socket.kind {
        SocketKind::UnixPair { inode, peer, .. } => Some((*inode, *peer)),
        SocketKind::UnixSingle { inode, target, .. } => Some((*inode, *target)),
        SocketKind::TcpClosed { .. }
        | SocketKind::TcpListener { .. }
        | SocketKind::TcpConnection(_)
        | SocketKind::Udp { .. } => None,
    }
}

fn stranger() -> SocketRefusal {
    SocketRefusal::lasting(
        "unix socket connected to a process outside the container",
        "the application must close the connection before a migration",
    )
}

fn listener(
    identity: &Identity,
    entry: &UnixSocket,
    diag: &UnixDiag,
    mode: Mode,
) -> Result<SocketKind, SocketRefusal> {
    // sock_diag: connections to accept, and the backlog.
    if mode == Mode::Dump && entry.receive_queue > 0 {
        let what = format!("unix listener with {} connections not yet accepted", entry.receive_queue);
        return Err(SocketRefusal::transient(what));
    }
    Ok(SocketKind::UnixSingle {
        inode: identity.inode,
        socket_type: identity.socket_type,
        name: name_of(entry, diag)?,
        backlog: Some(entry.send_queue),
        target: 0,
        queue: Vec::new(),
        shutdown: entry.shutdown,
    })
}

fn name_of(entry: &UnixSocket, diag: &UnixDiag) -> Result<Option<UnixName>, SocketRefusal> {
    let path = match entry.name.split_first() {
        None => return Ok(None),
        Some((0, name)) => return Ok(Some(UnixName::Abstract(name.to_vec()))),
        Some(_) => entry.name.split(|byte| *byte == 0).next().unwrap_or_default(),
    };
    if !path.starts_with(b"/") {
        return Err(SocketRefusal::lasting(
            format!("unix socket bound to the relative path \"{}\"", path.escape_ascii()),
            "bind it to an absolute path",
        ));
    }
    let file =
        find_file(path, entry, diag).map_err(|e| SocketRefusal::failed("find the file it is bound to", e))?;
    Ok(Some(UnixName::Path { path: path.to_vec(), file }))
}

/// The file at `path` inside the container, if it is (still) the socket's.
fn find_file(path: &[u8], entry: &UnixSocket, diag: &UnixDiag) -> Result<Option<SocketFile>, Errno> {
    let root = File::open(format!("/proc/{}/root", diag.init()))
        .map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    let file = match in_root(&root, path, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
        Ok(file) => file,
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let status = fstat(&file)?;
    let is_socket = status.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFSOCK.bits();
    // sock_diag tells the low half of the inode number; a stacked file system may show another one.
    let same = entry.file.is_some_and(|(inode, _)| u64::from(inode) == status.st_ino & 0xffff_ffff);
    let ours = is_socket && (same || !diag.is_bound_twice(entry));
    let mode = status.st_mode & 0o7777;
    Ok(ours.then_some(SocketFile { mode, uid: status.st_uid, gid: status.st_gid }))
}

fn read_queue(
    fd: &OwnedFd,
    socket_type: i32,
    entry: &UnixSocket,
    options: &[SocketOption],
) -> Result<Vec<Vec<u8>>, SocketRefusal> {
    refuse_urgent(fd, socket_type)?;
    let stream = socket_type == libc::SOCK_STREAM;
    if entry.receive_queue == 0 && socket_type != libc::SOCK_DGRAM {
        return Ok(Vec::new());
    }
    let failed = |errno| SocketRefusal::failed("peek its messages", errno);
    let peek = Peek::start(fd).map_err(failed)?;
    let expected = entry.receive_queue as usize;
    if expected > queue::LIMIT {
        return Err(failed(Errno::EFBIG));
    }
    let mut buffer = vec![0; if stream { expected } else { MESSAGE }];
    let (mut messages, mut total) = (Vec::new(), 0);
    // A stream's and a sequence's length is known, and only that tells their end from the end of the connection.
    while socket_type == libc::SOCK_DGRAM || total < expected {
        let Some(message) = peek.next_without_control(&mut buffer).map_err(failed)? else { break };
        if messages.len() == MAX_MESSAGES || (message.payload.is_empty() && socket_type != libc::SOCK_DGRAM) {
            break;
        }
        refuse_attached(&message, socket_type, options)?;
        total += message.payload.len();
        messages.push(message.payload);
    }
    if socket_type != libc::SOCK_DGRAM && total != expected {
        return Err(failed(Errno::EMSGSIZE));
    }
    Ok(messages)
}

/// What travels with a message and cannot be carried.
fn refuse_attached(
    message: &queue::Message,
    socket_type: i32,
    options: &[SocketOption],
) -> Result<(), SocketRefusal> {
    let wants_credentials = [libc::SO_PASSCRED, libc::SO_PASSSEC, 76]
        .iter()
        .any(|name| options.iter().any(|o| o.level == libc::SOL_SOCKET && o.name == *name));
    if wants_credentials {
        return Err(SocketRefusal::transient("unix socket with unread messages that carry credentials"));
    }
    if message.control_cut {
        return Err(SocketRefusal::transient("unix socket with descriptors in flight (SCM_RIGHTS)"));
    }
    if message.named && socket_type == libc::SOCK_DGRAM {
        return Err(SocketRefusal::transient("unix socket with unread messages of a named sender"));
    }
    Ok(())
}

fn refuse_urgent(fd: &OwnedFd, socket_type: i32) -> Result<(), SocketRefusal> {
    if socket_type != libc::SOCK_STREAM {
        return Ok(());
    }
    match recv(raw(fd), &mut [0], MsgFlags::MSG_OOB | MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
        Err(_) => Ok(()),
        Ok(_) => Err(SocketRefusal::transient("unix socket with urgent data")),
    }
}
