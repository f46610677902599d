//! Sockets at the source: what a check can say about them, and their state at the final dump.
//!
//! A socket is read through a duplicate of its descriptor (pidfd_getfd(2)). A check changes nothing. A dump puts
//! each TCP connection into repair mode while it reads it, no longer, and hands out a [`RepairGuard`] for it: dropped, it
//! leaves the socket as it was; after [`RepairGuard::silence`] and [`RepairGuard::leave`] the socket's end is silent (no
//! FIN, no RST).
//!
//! Repair mode outlives the agent, and a task that uses a connection in it gets errors: what stops the tasks during a
//! dump must outlive the agent as well.
//!
//! What cannot be carried is a [`SocketRefusal`]; one that is `transient` (a connection that waits to be accepted,
//! a connect in progress) is found at the dump only, since it may be gone by then, and is worth another attempt.
//!
//! At the dump every task is stopped and the network is dropped, so that several readings of one socket agree.
//!
//! Kernel: Linux 5.14 (`SO_NETNS_COOKIE`, `SO_BUF_LOCK`); TCP_REPAIR needs CAP_NET_ADMIN.

mod diag;
mod guard;
mod options;
mod queue;
mod tcp;
mod udp;
mod unfinished;
mod unix;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

pub use diag::{DiagFailure, SockDiag, UnixDiag};
pub use guard::RepairGuard;
pub(super) use tcp::leaves;
pub use unix::strangers;

use crate::model::socket::{Buffers, Socket, SocketKind};
use crate::model::socket_options::Scope;
use crate::sys::socket::{get_int, get_option};

/// What a capture is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Decide whether the socket can be carried. Changes nothing; the returned model has no queues, and a
    /// connection's numbers are zero.
    Check,
    /// Read everything. The tasks are stopped and the network is dropped.
    Dump,
}

/// What becomes of TCP connections that leave the container. Those that it has with itself (127.0.0.0/8, ::1) are always
/// carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Connections {
    /// They live on at the destination.
    #[default]
    Carry,
    /// At the destination they are over: reads end, writes fail. Listeners are carried, and UDP sockets that the kernel has
    /// given an address when they were connected get another one.
    Close,
}

/// How sockets are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// What for.
    pub mode: Mode,
    /// What becomes of connections.
    pub connections: Connections,
}

impl From<Mode> for Reading {
    fn from(mode: Mode) -> Self {
        Self { mode, connections: Connections::Carry }
    }
}

/// A socket and, for a TCP connection at the dump, the way to silence it.
#[derive(Debug)]
pub struct CapturedSocket {
    /// The model.
    pub socket: Socket,
    /// Present for connections that were dumped.
    pub guard: Option<RepairGuard>,
}

/// A socket that cannot be carried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct SocketRefusal {
    /// What it is: "netlink socket".
    pub what: String,
    /// What the administrator can do about it.
    pub hint: String,
    /// It may be gone a moment later: thaw, and try the final dump again.
    pub transient: bool,
    /// The failed system call's errno, if one failed.
    #[source]
    pub errno: Option<Errno>,
}

impl SocketRefusal {
    fn lasting(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), hint: hint.into(), transient: false, errno: None }
    }

    fn transient(what: impl Into<String>) -> Self {
        let hint = "retry: it passes by itself".to_owned();
        Self { what: what.into(), hint, transient: true, errno: None }
    }

    fn failed(what: &str, errno: Errno) -> Self {
        let hint =
            "see whether the agent has CAP_NET_ADMIN and the kernel CONFIG_CHECKPOINT_RESTORE".to_owned();
        Self { what: format!("socket: cannot {what}"), hint, transient: false, errno: Some(errno) }
    }
}

/// Reads the socket behind `fd`, a duplicate of the container's descriptor. `diag` is the namespace's view, taken
/// after the tasks were stopped if this is the dump. On `Err` the socket is as it was.
pub fn capture_socket(
    fd: OwnedFd,
    diag: &UnixDiag,
    reading: impl Into<Reading>,
) -> Result<CapturedSocket, SocketRefusal> {
    let reading = reading.into();
    let mode = reading.mode;
    let identity = Identity::read(fd.as_fd())?;
    if identity.netns != diag.netns() {
        return Err(SocketRefusal::lasting(
            "socket of another network namespace than the container's",
            "the process must open it inside the container",
        ));
    }
    if !identity.is_carried() {
        return Err(SocketRefusal::lasting(
            foreign_name(identity.family, identity.socket_type, identity.protocol),
            "the application must close it before a migration",
        ));
    }
    refuse_filters(fd.as_fd())?;
    if mode == Mode::Check {
        options::refuse_headers(fd.as_fd(), identity.scope())?;
    }
    let base = Base::read(fd.as_fd(), &identity)?;
    match (identity.family, identity.socket_type) {
        (libc::AF_UNIX, _) => {
            let kind = unix::capture(&fd, &identity, &base.socket.options, diag, mode)?;
            Ok(base.plain(kind))
        }
        (_, libc::SOCK_STREAM) => tcp::capture(fd, &identity, base, diag, reading),
        _ => udp::capture(&fd, &identity, diag, reading).map(|kind| base.plain(kind)),
    }
}

/// What decides how a socket is read.
#[derive(Debug)]
struct Identity {
    family: i32,
    socket_type: i32,
    protocol: i32,
    netns: u64,
    inode: u64,
    uid: u32,
    gid: u32,
}

impl Identity {
    fn read(fd: BorrowedFd<'_>) -> Result<Self, SocketRefusal> {
        let int =
            |name| get_int(fd, libc::SOL_SOCKET, name).map_err(|e| SocketRefusal::failed("identify it", e));
        let status = nix::sys::stat::fstat(fd).map_err(|e| SocketRefusal::failed("identify it", e))?;
        Ok(Self {
            family: int(libc::SO_DOMAIN)?,
            socket_type: int(libc::SO_TYPE)?,
            protocol: int(libc::SO_PROTOCOL)?,
            netns: diag::netns_cookie(fd)
                .map_err(|e| SocketRefusal::failed("tell its network namespace", e))?,
            inode: status.st_ino,
            uid: status.st_uid,
            gid: status.st_gid,
        })
    }

    /// TCP, UDP and unix sockets are.
    fn is_carried(&self) -> bool {
        match (self.family, self.socket_type) {
            (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM) => self.protocol == libc::IPPROTO_TCP,
            (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM) => self.protocol == libc::IPPROTO_UDP,
            (libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_DGRAM | libc::SOCK_SEQPACKET) => true,
            _ => false,
        }
    }

    /// The part of the option table that is about this socket.
    fn scope(&self) -> Scope {
        match (self.family, self.socket_type) {
            (libc::AF_INET, libc::SOCK_STREAM) => Scope::TCP4,
            (libc::AF_INET6, libc::SOCK_STREAM) => Scope::TCP6,
            (libc::AF_INET, _) => Scope::UDP4,
            (libc::AF_INET6, _) => Scope::UDP6,
            _ => Scope::UNIX,
        }
    }
}

/// What every kind has, read before repair mode changes some of it.
#[derive(Debug)]
struct Base {
    socket: Socket,
}

impl Base {
    fn read(fd: BorrowedFd<'_>, identity: &Identity) -> Result<Self, SocketRefusal> {
        let int = |name| {
            get_int(fd, libc::SOL_SOCKET, name).map_err(|e| SocketRefusal::failed("read its options", e))
        };
        let buffers = Buffers {
            send: int(libc::SO_SNDBUF)?.max(0).cast_unsigned(),
            receive: int(libc::SO_RCVBUF)?.max(0).cast_unsigned(),
            // The kernel returns two bits.
            locks: u8::try_from(int(options::SO_BUF_LOCK)? & 3).unwrap_or_default(),
        };
        let socket = Socket {
            uid: identity.uid,
            gid: identity.gid,
            reuse_address: int(libc::SO_REUSEADDR)? != 0,
            buffers,
            options: options::read(fd, identity.scope())?,
            kind: SocketKind::TcpClosed { family: identity.family, bound: None, dead: false },
        };
        Ok(Self { socket })
    }

    fn with(mut self, kind: SocketKind) -> Socket {
        self.socket.kind = kind;
        self.socket
    }

    fn plain(self, kind: SocketKind) -> CapturedSocket {
        CapturedSocket { socket: self.with(kind), guard: None }
    }
}

/// BPF programs on a socket: they cannot be read back (eBPF) or are rare enough to be refused (classic).
fn refuse_filters(fd: BorrowedFd<'_>) -> Result<(), SocketRefusal> {
    let hint = "the application must detach it before a migration";
    // SO_ATTACH_FILTER and SO_GET_FILTER are one number; with no room the kernel returns the program's length.
    match get_option(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &mut []) {
        Ok(0) | Err(Errno::ENOPROTOOPT) => Ok(()),
        Ok(_) | Err(Errno::EACCES) => Err(SocketRefusal::lasting("socket with a packet filter", hint)),
        Err(errno) => Err(SocketRefusal::failed("ask for its packet filter", errno)),
    }
}

/// Names a socket that the engine does not carry.
fn foreign_name(family: i32, socket_type: i32, protocol: i32) -> String {
    match (family, socket_type) {
        (libc::AF_INET | libc::AF_INET6, _) if protocol == 262 => "MPTCP socket".to_owned(),
        (libc::AF_INET | libc::AF_INET6, _) if protocol == libc::IPPROTO_SCTP => "SCTP socket".to_owned(),
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_RAW) => format!("raw IP socket (protocol {protocol})"),
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM) => {
            format!("datagram socket of IP protocol {protocol}")
        }
        (libc::AF_NETLINK, _) => format!("netlink socket (protocol {protocol})"),
        (libc::AF_PACKET, _) => "packet socket".to_owned(),
        (libc::AF_VSOCK, _) => "vsock socket".to_owned(),
        (libc::AF_XDP, _) => "XDP socket".to_owned(),
        (libc::AF_ALG, _) => "kernel crypto (AF_ALG) socket".to_owned(),
        (libc::AF_CAN, _) => "CAN socket".to_owned(),
        (libc::AF_BLUETOOTH, _) => "Bluetooth socket".to_owned(),
        (libc::AF_TIPC, _) => "TIPC socket".to_owned(),
        (libc::AF_KEY, _) => "IPsec key socket".to_owned(),
        (family, socket_type) => {
            format!("socket of family {family}, type {socket_type}, protocol {protocol}")
        }
    }
}

/// A raw descriptor for the calls of nix that take one.
fn raw(fd: &OwnedFd) -> i32 {
    fd.as_raw_fd()
}
