//! Sockets at the destination: built by the agent inside the container's network namespace, while the restorers
//! are stopped and the network is dropped.
//!
//! TCP connections stay in repair mode: they send nothing and, if they are closed, end without a packet.
//! [`BuiltSockets::wake`] brings them to life before the tasks run; what they say goes out once the network is open.
//!
//! Sockets are bound before any listens, and connections are built last, so that those which share a port do not
//! shut each other out; `SO_REUSEADDR` is set on all of them meanwhile.
//!
//! What the source sent is checked before anything is built. Kernel: as for the capture.

mod error;
mod go;
mod loopback;
mod options;
mod packet;
mod tcp;
mod udp;
mod unix;
mod validate;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockaddrStorage, bind};

pub use error::SocketsError;
pub use go::{Awake, BuiltSockets};
pub use validate::all as check;

use crate::model::socket::{Socket, SocketKind};
use crate::model::socket_options::Moment;
use crate::model::{FileId, Pid};
use crate::sys::netns;
use error::Of;

/// Builds sockets in the namespaces of a container.
#[derive(Debug)]
pub struct Builder {
    network: OwnedFd,
    mounts: OwnedFd,
}

impl Builder {
    /// Of the container that `netns_of` belongs to.
    pub fn new(netns_of: Pid) -> Result<Self, SocketsError> {
        let opened = |namespace, result: std::io::Result<OwnedFd>| {
            result.map_err(|source| SocketsError::Namespace { pid: netns_of, namespace, source })
        };
        Ok(Self {
            network: opened("network", netns::open_network(netns_of))?,
            mounts: opened("mount", netns::open_mounts(netns_of))?,
        })
    }

    /// Builds sockets of the container: (open file, model, `O_*` status flags). Those that have to do with each other are
    /// built together: pairs find each other, and ports are shared. On `Err` everything that was built is gone again.
    pub fn build(&mut self, sockets: &[(FileId, &Socket, i32)]) -> Result<BuiltSockets, SocketsError> {
        validate::all(sockets)?;
        if sockets.is_empty() {
            return Ok(BuiltSockets::default());
        }
        // A thread of its own: only that one enters the namespaces.
        std::thread::scope(|scope| {
            scope.spawn(|| self.build_inside(sockets)).join().unwrap_or(Err(SocketsError::Thread))
        })
    }

    fn build_inside(&self, sockets: &[(FileId, &Socket, i32)]) -> Result<BuiltSockets, SocketsError> {
        netns::enter_network(&self.network)
            .map_err(|source| SocketsError::Enter { namespace: "network", source })?;
        let mut built = BuiltSockets::default();
        for (file, socket, _) in sockets {
            if let Some(fd) = internet(*file, socket)? {
                built.fds.insert(*file, fd);
            }
        }
        for (file, socket, _) in sockets {
            if let (SocketKind::TcpListener { backlog, .. }, Some(fd)) = (&socket.kind, built.fds.get(file)) {
                crate::sys::socket::listen(fd.as_fd(), *backlog).of(*file, "listen on the socket")?;
            }
        }
        let mut loopback = loopback::Loopback::default();
        for (file, socket, _) in sockets {
            if let SocketKind::TcpConnection(connection) = &socket.kind {
                let (fd, live) = tcp::build(*file, socket, connection, &mut loopback)?;
                built.fds.insert(*file, fd);
                built.connections.push(live);
            }
        }
        finish_internet(sockets, &built.fds, &mut loopback)?;
        unix::build(sockets, &self.mounts, &mut built)?;
        for (file, _, flags) in sockets {
            if let Some(fd) = built.fds.get(file) {
                set_blocking(fd, *flags).of(*file, "set the status flags of the socket")?;
            }
        }
        Ok(built)
    }
}

/// A TCP or UDP socket, bound; `None` for other kinds and for connections.
fn internet(file: FileId, socket: &Socket) -> Result<Option<OwnedFd>, SocketsError> {
    let (family, socket_type, local) = match &socket.kind {
        SocketKind::TcpClosed { family, bound, dead } => {
            (*family, libc::SOCK_STREAM, bound.filter(|_| !*dead))
        }
        SocketKind::TcpListener { local, .. } => (validate::family(*local), libc::SOCK_STREAM, Some(*local)),
        SocketKind::Udp { family, local, .. } => (*family, libc::SOCK_DGRAM, *local),
        SocketKind::TcpConnection(_) | SocketKind::UnixPair { .. } | SocketKind::UnixSingle { .. } => {
            return Ok(None);
        }
    };
    let fd = create(file, socket, family, socket_type)?;
    if let Some(local) = local {
        bind_to(file, &fd, local)?;
    }
    Ok(Some(fd))
}

/// An unbound socket with its owner and early options; `SO_REUSEADDR` is on.
fn create(file: FileId, socket: &Socket, family: i32, socket_type: i32) -> Result<OwnedFd, SocketsError> {
    let fd = crate::sys::socket::socket(family, socket_type, 0).of(file, "create the socket")?;
    options::give(file, &fd, socket)?;
    options::reuse(fd.as_fd(), true).of(file, "set SO_REUSEADDR of the socket")?;
    options::apply(file, &fd, &socket.options, Moment::Early)?;
    Ok(fd)
}

fn bind_to(file: FileId, fd: &OwnedFd, address: SocketAddr) -> Result<(), SocketsError> {
    match bind(fd.as_raw_fd(), &SockaddrStorage::from(address)) {
        Err(Errno::EADDRNOTAVAIL) => Err(SocketsError::AddressAbsent { file, address }),
        result => result.of(file, &format!("bind to {address} the socket")),
    }
}

/// The rest of what [`internet`] began.
fn finish_internet(
    sockets: &[(FileId, &Socket, i32)],
    fds: &HashMap<FileId, OwnedFd>,
    loopback: &mut loopback::Loopback,
) -> Result<(), SocketsError> {
    for (file, socket, _) in sockets {
        let Some(fd) = fds.get(file) else { continue };
        match &socket.kind {
            SocketKind::TcpClosed { dead, .. } => {
                plain(*file, fd, socket)?;
                if *dead {
                    tcp::mark_dead(fd);
                }
            }
            SocketKind::TcpListener { .. } => plain(*file, fd, socket)?,
            SocketKind::Udp { peer, queue, .. } => {
                udp::finish(*file, fd, socket, *peer, queue, loopback)?;
                plain(*file, fd, socket)?;
            }
            SocketKind::TcpConnection(_) | SocketKind::UnixPair { .. } | SocketKind::UnixSingle { .. } => {}
        }
    }
    Ok(())
}

/// Late options and the final sizes of a socket without repair mode.
fn plain(file: FileId, fd: &OwnedFd, socket: &Socket) -> Result<(), SocketsError> {
    options::apply(file, fd, &socket.options, Moment::Late)?;
    options::apply(file, fd, &socket.options, Moment::AfterData)?;
    options::reuse(fd.as_fd(), socket.reuse_address).of(file, "set SO_REUSEADDR of the socket")?;
    options::settle(fd.as_fd(), socket.buffers, options::Sizes { send: true, receive: true })
        .of(file, "size the buffers")
}

/// Sockets are built non-blocking. The other status flags are the caller's (`O_ASYNC` needs the owner first).
fn set_blocking(fd: &OwnedFd, flags: i32) -> Result<(), Errno> {
    if flags & libc::O_NONBLOCK == 0 {
        fcntl(fd, FcntlArg::F_SETFL(OFlag::empty()))?;
    }
    Ok(())
}
