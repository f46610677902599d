//! Unix sockets at the destination: pairs with their queues, and bound or listening ones.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, renameat};
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, bind, connect, send, shutdown,
    socketpair,
};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat};

use super::error::{Of, SocketsError};
use super::go::BuiltSockets;
use super::{options, plain};
use crate::model::FileId;
use crate::model::socket::{Socket, SocketFile, SocketKind, UnixName};
use crate::sys::netns;

/// Builds every unix socket of the container. The calling thread moves into the mount namespace if a socket has a
/// path.
pub(super) fn build(
    sockets: &[(FileId, &Socket, i32)],
    mounts: &OwnedFd,
    built: &mut BuiltSockets,
) -> Result<(), SocketsError> {
    pairs(sockets, built)?;
    let with_path = |(_, socket, _): &&(FileId, &Socket, i32)| {
        matches!(&socket.kind, SocketKind::UnixSingle { name: Some(UnixName::Path { .. }), .. })
    };
    if sockets.iter().any(|entry| with_path(&entry)) {
        netns::enter_mounts(mounts).map_err(|source| SocketsError::Enter { namespace: "mount", source })?;
    }
    for (file, socket, _) in sockets {
        if let SocketKind::UnixSingle { socket_type, name, backlog, queue, shutdown, .. } = &socket.kind {
            let fd = single(*file, socket, *socket_type, name.as_ref(), built)?;
            if let Some(backlog) = backlog {
                crate::sys::socket::listen(fd.as_fd(), *backlog).of(*file, "listen on the socket")?;
            }
            deliver(*socket_type, name.as_ref(), queue).of(*file, "fill the queue")?;
            finish(*file, &fd, socket, *shutdown)?;
            built.fds.insert(*file, fd);
        }
    }
    connect_targets(sockets, built)
}

/// Datagram sockets that were connected to a bound one; after every queue is filled, since a connected socket takes
/// datagrams from its target only.
fn connect_targets(sockets: &[(FileId, &Socket, i32)], built: &BuiltSockets) -> Result<(), SocketsError> {
    let mut names = HashMap::new();
    for (_, socket, _) in sockets {
        if let SocketKind::UnixSingle { inode, name: Some(name), .. } = &socket.kind {
            names.insert(*inode, name);
        }
    }
    for (file, socket, _) in sockets {
        let SocketKind::UnixSingle { target, .. } = &socket.kind else { continue };
        if let (true, Some(name), Some(fd)) = (*target != 0, names.get(target), built.fds.get(file)) {
            let connected = address_of(name).and_then(|address| connect(fd.as_raw_fd(), &address));
            connected.of(*file, "connect the datagram socket")?;
        }
    }
    Ok(())
}

/// The address by which a socket can be reached. EDESTADDRREQ: its file is gone.
fn address_of(name: &UnixName) -> Result<UnixAddr, Errno> {
    match name {
        UnixName::Abstract(name) => UnixAddr::new_abstract(name),
        UnixName::Path { path, file: Some(_) } => UnixAddr::new(Path::new(OsStr::from_bytes(path))),
        UnixName::Path { file: None, .. } => Err(Errno::EDESTADDRREQ),
    }
}

/// One end: where it goes and what it holds.
struct End<'a> {
    file: FileId,
    socket: &'a Socket,
    queue: &'a [Vec<u8>],
    shutdown: u8,
}

fn pairs(sockets: &[(FileId, &Socket, i32)], built: &mut BuiltSockets) -> Result<(), SocketsError> {
    let mut waiting: HashMap<u64, (End<'_>, OwnedFd)> = HashMap::new();
    for (file, socket, _) in sockets {
        let SocketKind::UnixPair { inode, peer, socket_type, queue, shutdown, reset } = &socket.kind else {
            continue;
        };
        let end = End { file: *file, socket, queue, shutdown: *shutdown };
        if *peer == 0 {
            let (own, other) = make_pair(*socket_type).of(*file, "create the socket pair")?;
            fill(&other, &end)?;
            if *reset {
                // An unread byte at the other end makes its close a reset.
                write(&own, &[0]).of(*file, "reset the connection")?;
            }
            drop(other);
            finish(*file, &own, socket, if *socket_type == libc::SOCK_DGRAM { *shutdown } else { 0 })?;
            built.fds.insert(*file, own);
        } else if let Some((first, other)) = waiting.remove(inode) {
            // The first end made the pair and left this one here.
            let own = other;
            let Some(peer_fd) = built.fds.get(&first.file) else { continue };
            fill(peer_fd, &end)?;
            fill(&own, &first)?;
            finish(first.file, peer_fd, first.socket, first.shutdown)?;
            finish(*file, &own, socket, *shutdown)?;
            built.fds.insert(*file, own);
        } else {
            let (own, other) = make_pair(*socket_type).of(*file, "create the socket pair")?;
            waiting.insert(*peer, (end, other));
            built.fds.insert(*file, own);
        }
    }
    Ok(())
}

fn make_pair(socket_type: i32) -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socketpair(AddressFamily::Unix, SockType::try_from(socket_type)?, None, flags)
}

/// Puts the messages of `end` into its queue by sending them from the `other` end.
fn fill(other: &OwnedFd, end: &End<'_>) -> Result<(), SocketsError> {
    if end.queue.is_empty() {
        return Ok(());
    }
    let bytes = end.queue.iter().map(|message| message.len() + 1024).sum();
    options::widen(end.file, other, end.socket.buffers, bytes, 0)?;
    end.queue.iter().try_for_each(|message| write(other, message)).of(end.file, "fill the queue")
}

/// One message; a stream may take it in pieces.
fn write(fd: &OwnedFd, message: &[u8]) -> Result<(), Errno> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let mut rest = message;
    loop {
        let written = send(fd.as_raw_fd(), rest, flags)?;
        rest = rest.get(written..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
    }
}

/// Owner, options, sizes and half-closed state.
fn finish(file: FileId, fd: &OwnedFd, socket: &Socket, state: u8) -> Result<(), SocketsError> {
    options::give(file, fd, socket)?;
    options::apply(file, fd, &socket.options, crate::model::socket_options::Moment::Early)?;
    plain(file, fd, socket)?;
    let how = match state & 3 {
        0 => return Ok(()),
        1 => Shutdown::Read,
        2 => Shutdown::Write,
        _ => Shutdown::Both,
    };
    match shutdown(fd.as_raw_fd(), how) {
        Err(Errno::ENOTCONN) => Ok(()),
        result => result.of(file, "shut the socket down"),
    }
}

fn single(
    file: FileId,
    socket: &Socket,
    socket_type: i32,
    name: Option<&UnixName>,
    built: &mut BuiltSockets,
) -> Result<OwnedFd, SocketsError> {
    let fd = crate::sys::socket::socket(libc::AF_UNIX, socket_type, 0).of(file, "create the socket")?;
    options::give(file, &fd, socket)?;
    match name {
        None => {}
        Some(UnixName::Abstract(name)) => {
            let bound = UnixAddr::new_abstract(name).and_then(|address| bind(fd.as_raw_fd(), &address));
            bound.of(file, &format!("bind to @{} the socket", name.escape_ascii()))?;
        }
        Some(UnixName::Path { path, file: attributes }) => {
            let what = format!("bind to {} the socket", path.escape_ascii());
            built.files.extend(BoundFile::bind(&fd, path, *attributes).of(file, &what)?);
        }
    }
    Ok(fd)
}

/// Datagrams in the queue of a socket without a peer: sent to its own address.
fn deliver(socket_type: i32, name: Option<&UnixName>, queue: &[Vec<u8>]) -> Result<(), Errno> {
    if queue.is_empty() {
        return Ok(());
    }
    let sender = crate::sys::socket::socket(libc::AF_UNIX, socket_type, 0)?;
    // Without a name, nobody can have sent to it.
    connect(sender.as_raw_fd(), &address_of(name.ok_or(Errno::EDESTADDRREQ)?)?)?;
    queue.iter().try_for_each(|message| write(&sender, message))
}

/// A file that a unix socket was bound to. What was at its path before (the source's own file, where the hosts
/// share the file system) is set aside, and comes back unless [`Self::keep`] is called.
#[derive(Debug)]
pub(super) struct BoundFile {
    directory: OwnedFd,
    name: Vec<u8>,
    aside: Option<Vec<u8>>,
    keep: bool,
}

impl BoundFile {
    /// Binds inside the root of the calling thread. `None`: the path was only borrowed, as the source's socket has
    /// lost its file.
    fn bind(fd: &OwnedFd, path: &[u8], attributes: Option<SocketFile>) -> Result<Option<Self>, Errno> {
        let slash = path.iter().rposition(|byte| *byte == b'/').ok_or(Errno::EINVAL)?;
        let (parent, name) = (path.get(..slash.max(1)), path.get(slash + 1..));
        let (parent, name) = (parent.unwrap_or_default(), name.unwrap_or_default());
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(OsStr::from_bytes(parent), flags, Mode::empty())?;
        let aside = set_aside(directory.as_fd(), name)?;
        let bound = Self { directory, name: name.to_vec(), aside, keep: false };
        bind(fd.as_raw_fd(), &UnixAddr::new(Path::new(OsStr::from_bytes(path)))?)?;
        match attributes {
            Some(attributes) => bound.dress(attributes).map(|()| Some(bound)),
            None => Ok(None),
        }
    }

    /// Permissions and owner.
    fn dress(&self, attributes: SocketFile) -> Result<(), Errno> {
        let name = OsStr::from_bytes(&self.name);
        let mode = Mode::from_bits_truncate(attributes.mode);
        fchmodat(&self.directory, name, mode, FchmodatFlags::FollowSymlink)?;
        let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        fchownat(&self.directory, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    /// The socket stays; what was there before goes.
    pub(super) fn keep(mut self) {
        self.keep = true;
        if let Some(aside) = &self.aside {
            self.log(unlinkat(&self.directory, OsStr::from_bytes(aside), UnlinkatFlags::NoRemoveDir));
        }
    }

    fn log(&self, result: Result<(), Errno>) {
        if let Err(errno) = result {
            let name = self.name.escape_ascii().to_string();
            tracing::warn!(name, %errno, "cannot tidy up the file of a unix socket");
        }
    }
}

impl Drop for BoundFile {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        let name = OsStr::from_bytes(&self.name);
        match &self.aside {
            Some(aside) => {
                self.log(renameat(&self.directory, OsStr::from_bytes(aside), &self.directory, name))
            }
            None => match unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir) {
                Err(Errno::ENOENT) => {}
                result => self.log(result),
            },
        }
    }
}

/// Renames a socket file that is in the way; returns its new name. EEXIST: it is no socket.
fn set_aside(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    let status = match fstatat(directory, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => return Ok(None),
        result => result?,
    };
    if status.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFSOCK.bits() {
        return Err(Errno::EEXIST);
    }
    let aside = [b".pclive-", name].concat();
    renameat(directory, OsStr::from_bytes(name), directory, OsStr::from_bytes(&aside))?;
    Ok(Some(aside))
}
