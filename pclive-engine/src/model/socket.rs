//! Sockets.
//!
//! Sequence numbers count bytes of data: a FIN takes a number of its own, which [`TcpConnection`] leaves out and
//! its `state` tells.

use std::net::SocketAddr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A socket and what can be set on every one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// Who made it (`st_uid`, as the agent sees it): ports are shared (`SO_REUSEPORT`) within one user only.
    pub uid: u32,
    /// Group of the maker.
    pub gid: u32,
    /// `SO_REUSEADDR`; apart from the other options because it is set for a while on every socket that is built.
    pub reuse_address: bool,
    /// Buffer sizes.
    pub buffers: Buffers,
    /// Options of [`super::socket_options`] that are not at their default.
    pub options: Vec<SocketOption>,
    /// The kind.
    pub kind: SocketKind,
}

/// Buffer sizes as `getsockopt(2)` returns them: twice what an application asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Buffers {
    /// `SO_SNDBUF`, bytes.
    pub send: u32,
    /// `SO_RCVBUF`, bytes.
    pub receive: u32,
    /// `SO_BUF_LOCK`: bit 0 the send size, bit 1 the receive size was set by the application and the kernel does
    /// not tune it.
    pub locks: u8,
}

/// An option value as `getsockopt(2)` returned it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOption {
    /// `SOL_*` / `IPPROTO_*`.
    pub level: i32,
    /// Option name.
    pub name: i32,
    /// Raw value.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
}

/// Kinds of sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SocketKind {
    /// One end of a `socketpair(2)` (or of a connected unix stream whose both ends are in the container).
    UnixPair {
        /// Inode of this end at the source.
        inode: u64,
        /// Inode of the other end; 0 if that one is closed.
        peer: u64,
        /// `SOCK_STREAM`, `SOCK_DGRAM` or `SOCK_SEQPACKET`.
        socket_type: i32,
        /// Received and not read: one message each (a stream: one piece).
        #[serde(with = "super::codec::byte_strings")]
        queue: Vec<Vec<u8>>,
        /// `SHUT_*` state as sock_diag(7) tells it: bit 0 receive, bit 1 send.
        shutdown: u8,
        /// The closed peer had left something unread, and this end has not been told yet (`ECONNRESET`).
        reset: bool,
    },
    /// A unix socket that is no end of a pair: fresh, bound or listening.
    UnixSingle {
        /// Inode at the source.
        inode: u64,
        /// `SOCK_STREAM`, `SOCK_DGRAM` or `SOCK_SEQPACKET`.
        socket_type: i32,
        /// Address, if bound.
        name: Option<UnixName>,
        /// `listen(2)` backlog, if listening.
        backlog: Option<u32>,
        /// A datagram socket's target (connect(2)): inode of a bound socket of the container, which is not connected
        /// back; 0 without one.
        target: u64,
        /// Received and not read (datagrams of unnamed senders).
        #[serde(with = "super::codec::byte_strings")]
        queue: Vec<Vec<u8>>,
        /// As of a pair.
        shutdown: u8,
    },
    /// A TCP socket that is neither listening nor connected.
    TcpClosed {
        /// `AF_INET` or `AF_INET6`.
        family: i32,
        /// Local address, if bound.
        bound: Option<SocketAddr>,
        /// The socket had a connection, which is over: reads end, writes fail.
        dead: bool,
    },
    /// A listening TCP socket.
    TcpListener {
        /// Local address.
        local: SocketAddr,
        /// `listen(2)` backlog.
        backlog: u32,
    },
    /// An established (or half-closed) TCP connection.
    TcpConnection(Box<TcpConnection>),
    /// A UDP socket.
    Udp {
        /// `AF_INET` or `AF_INET6`.
        family: i32,
        /// Local address, if bound.
        local: Option<SocketAddr>,
        /// Peer, if connected.
        peer: Option<SocketAddr>,
        /// Received and not read.
        queue: Vec<Datagram>,
    },
}

/// A UDP datagram in a receive queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagram {
    /// Payload.
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
    /// Sender.
    pub from: SocketAddr,
    /// The address that it was sent to.
    pub to: SocketAddr,
}

/// Address of a unix socket (unix(7)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnixName {
    /// Abstract, without the leading NUL.
    Abstract(#[serde(with = "serde_bytes")] Vec<u8>),
    /// A file.
    Path {
        /// Path inside the container, absolute.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
        /// The file's permissions (`st_mode & 07777`) and owner; `None` if the path no longer leads to the socket.
        file: Option<SocketFile>,
    },
}

/// The file that a unix socket is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketFile {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What `TCP_REPAIR` gives and takes (Linux `net/ipv4/tcp.c`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpConnection {
    /// Local address.
    pub local: SocketAddr,
    /// Remote address.
    pub remote: SocketAddr,
    /// Where the connection is in its life.
    pub state: TcpState,
    /// The application shut the receiving side down itself (`SHUT_RD`).
    pub receive_shut: bool,
    /// Sequence number of the byte after the receive queue.
    pub receive_sequence: u32,
    /// Received and not read.
    #[serde(with = "serde_bytes")]
    pub receive_queue: Vec<u8>,
    /// Sequence number of the byte after the send queue.
    pub send_sequence: u32,
    /// Sent and not acknowledged, followed by not sent.
    pub send_queue: Bytes,
    /// How much at the end of `send_queue` was never sent, in bytes.
    pub unsent: u32,
    /// Maximum segment size clamp.
    pub mss_clamp: u32,
    /// Maximum segment size in use (`tcpi_snd_mss`).
    pub send_mss: u32,
    /// Send and receive window scale, if negotiated.
    pub window_scale: Option<(u8, u8)>,
    /// Selective acknowledgement permitted.
    pub sack: bool,
    /// Timestamps: the clock value (`TCP_TIMESTAMP`), if negotiated.
    pub timestamp: Option<u32>,
    /// The windows.
    pub window: TcpWindow,
    /// `TCP_WINDOW_CLAMP`, bytes: how far the receive window may grow.
    pub window_clamp: u32,
    /// Inode at the source.
    pub inode: u64,
}

/// `struct tcp_repair_window` (linux/tcp.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TcpWindow {
    /// Sequence number of the segment that set the send window last.
    pub snd_wl1: u32,
    /// Send window, bytes.
    pub snd_wnd: u32,
    /// Largest send window seen.
    pub max_window: u32,
    /// Receive window, bytes.
    pub rcv_wnd: u32,
    /// Sequence number up to which the last window update acknowledged.
    pub rcv_wup: u32,
}

/// The states of a connection that a descriptor can have and that can be carried (RFC 9293, tcp_states.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TcpState {
    /// Both directions open.
    Established,
    /// We sent FIN, which is not acknowledged.
    FinWait1,
    /// We sent FIN, which is acknowledged.
    FinWait2,
    /// The peer sent FIN.
    CloseWait,
    /// Both sent FIN; ours, the later one, is not acknowledged.
    LastAck,
    /// Both sent FIN at once; ours is not acknowledged.
    Closing,
}

impl TcpState {
    /// The kernel's number -> state; `None` for the states of other kinds of sockets.
    pub fn from_kernel(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Established),
            4 => Some(Self::FinWait1),
            5 => Some(Self::FinWait2),
            8 => Some(Self::CloseWait),
            9 => Some(Self::LastAck),
            11 => Some(Self::Closing),
            _ => None,
        }
    }

    /// The peer's FIN is in: its sequence number is used up.
    pub fn peer_finished(self) -> bool {
        match self {
            Self::CloseWait | Self::LastAck | Self::Closing => true,
            Self::Established | Self::FinWait1 | Self::FinWait2 => false,
        }
    }

    /// Our FIN has a sequence number: the application has shut the sending side.
    pub fn we_finished(self) -> bool {
        match self {
            Self::FinWait1 | Self::FinWait2 | Self::LastAck | Self::Closing => true,
            Self::Established | Self::CloseWait => false,
        }
    }
}
