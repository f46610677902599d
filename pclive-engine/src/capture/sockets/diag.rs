//! The sockets of the container's network namespace as the kernel lists them, and which namespace that is.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use crate::model::Pid;
use crate::proc::inet_diag::{self, Connection, State};
use crate::proc::multicast;
use crate::proc::sock_diag::{self, DiagError, Progress, UnixSocket};
use crate::sys::netns;
use crate::sys::socket::get_option;

/// `SO_NETNS_COOKIE` (Linux 5.14).
const SO_NETNS_COOKIE: i32 = 71;

/// Sockets cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum DiagFailure {
    /// The container's network namespace.
    #[error("cannot open the network namespace of process {pid}")]
    Namespace {
        /// A process of the container.
        pid: Pid,
        /// Why.
        source: std::io::Error,
    },
    /// The netlink socket.
    #[error("cannot {what} in the container's network namespace")]
    Socket {
        /// "list the unix sockets".
        what: &'static str,
        /// Why.
        source: Errno,
    },
    /// The kernel's answer.
    #[error("cannot read the list of sockets")]
    Answer(#[from] DiagError),
}

/// A sock_diag(7) socket in the container's network namespace. Opening it is the slow part (a thread must enter
/// the namespace), so it is opened once, before the stop.
#[derive(Debug)]
pub struct SockDiag {
    socket: Arc<OwnedFd>,
    netns: u64,
    init: Pid,
}

impl SockDiag {
    /// Opens it in the network namespace of `init`.
    pub fn open(init: Pid) -> Result<Self, DiagFailure> {
        let namespace =
            netns::open_network(init).map_err(|source| DiagFailure::Namespace { pid: init, source })?;
        let failed = |source| DiagFailure::Socket { what: "open a sock_diag socket", source };
        let socket = std::thread::scope(|scope| {
            let opened = scope.spawn(|| {
                netns::enter_network(&namespace)?;
                let flags = SockFlag::SOCK_CLOEXEC;
                socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkSockDiag)
            });
            opened.join().unwrap_or(Err(Errno::EIO))
        })
        .map_err(failed)?;
        let netns = netns_cookie(socket.as_fd()).map_err(failed)?;
        Ok(Self { socket: Arc::new(socket), netns, init })
    }

    /// Lists the namespace's unix sockets as they are now.
    pub fn take(&self) -> Result<UnixDiag, DiagFailure> {
        let mut sockets = Vec::new();
        self.dump("list the unix sockets", &sock_diag::unix_dump_request(), |bytes| {
            sock_diag::parse_unix(bytes, &mut sockets)
        })?;
        let sockets = sockets.into_iter().map(|socket| (u64::from(socket.inode), socket)).collect();
        Ok(UnixDiag { socket: Arc::clone(&self.socket), netns: self.netns, init: self.init, sockets })
    }

    /// Lists the namespace's TCP connections in one of `states` as they are now. A millisecond at most: the kernel looks
    /// through the table of the whole machine.
    pub(in crate::capture) fn connections(&self, states: &[State]) -> Result<Vec<Connection>, DiagFailure> {
        let mut found = Vec::new();
        self.dump("list the TCP connections", &inet_diag::request(states), |bytes| {
            inet_diag::parse(bytes, &mut found)
        })?;
        Ok(found)
    }

    /// Sends a request and takes its whole answer.
    fn dump(
        &self,
        what: &'static str,
        request: &[u8],
        mut parse: impl FnMut(&[u8]) -> Result<Progress, DiagError>,
    ) -> Result<(), DiagFailure> {
        let failed = |source| DiagFailure::Socket { what, source };
        let fd = self.socket.as_raw_fd();
        send(fd, request, MsgFlags::empty()).map_err(failed)?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = recv(fd, &mut buffer, MsgFlags::empty()).map_err(failed)?;
            if parse(buffer.get(..length).unwrap_or_default())? == Progress::Done {
                return Ok(());
            }
        }
    }
}

/// The unix sockets of one network namespace at one instant.
#[derive(Debug, Clone)]
pub struct UnixDiag {
    socket: Arc<OwnedFd>,
    netns: u64,
    init: Pid,
    sockets: HashMap<u64, UnixSocket>,
}

impl UnixDiag {
    /// Opens a [`SockDiag`] in the network namespace of `init` and uses it once.
    pub fn take(init: Pid) -> Result<Self, DiagFailure> {
        SockDiag::open(init)?.take()
    }

    /// Whether a TCP socket has MD5 keys. Asks the kernel now: for a check.
    pub(super) fn has_md5(&self, local: SocketAddr, remote: Option<SocketAddr>) -> Result<bool, DiagFailure> {
        let failed = |source| DiagFailure::Socket { what: "ask for a TCP socket", source };
        let fd = self.socket.as_raw_fd();
        send(fd, &sock_diag::tcp_request(local, remote), MsgFlags::empty()).map_err(failed)?;
        let mut buffer = vec![0; 64 << 10];
        let length = recv(fd, &mut buffer, MsgFlags::empty()).map_err(failed)?;
        match sock_diag::parse_md5(buffer.get(..length).unwrap_or_default()) {
            Err(DiagError::Refused(libc::ENOENT)) => Ok(false),
            result => Ok(result?),
        }
    }

    /// Multicast groups that applications of the namespace have joined. Reads /proc: for a check.
    pub(super) fn multicast_groups(&self) -> Vec<IpAddr> {
        // A kernel without IPv6 has no igmp6.
        let read = |file| crate::proc::read(format!("/proc/{}/net/{file}", self.init)).unwrap_or_default();
        let mut groups = multicast::joined_v4(&read("igmp"));
        groups.extend(multicast::joined_v6(&read("igmp6")));
        groups
    }

    /// Cookie of the namespace.
    pub(super) fn netns(&self) -> u64 {
        self.netns
    }

    /// A process whose root is the container's.
    pub(super) fn init(&self) -> Pid {
        self.init
    }

    /// Whether another socket that is not a connection has the same name.
    pub(super) fn is_bound_twice(&self, socket: &UnixSocket) -> bool {
        let same = |other: &&UnixSocket| other.name == socket.name && other.peer.is_none();
        self.sockets.values().filter(same).any(|other| other.inode != socket.inode)
    }

    /// A socket by its inode.
    pub(super) fn get(&self, inode: u64) -> Option<&UnixSocket> {
        self.sockets.get(&inode)
    }
}

/// What tells network namespaces apart for as long as the machine runs.
pub(super) fn netns_cookie(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut cookie = [0; 8];
    match get_option(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, &mut cookie)? {
        8 => Ok(u64::from_ne_bytes(cookie)),
        _ => Err(Errno::EPROTO),
    }
}
