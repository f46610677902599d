//! Sockets.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// A socket and what can be set on every one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// Options that `setsockopt(2)` takes back as they are.
    pub options: Vec<SocketOption>,
    /// The kind.
    pub kind: SocketKind,
}

/// An option value as `getsockopt(2)` returned it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOption {
    /// `SOL_*` / `IPPROTO_*`.
    pub level: i32,
    /// Option name.
    pub name: i32,
    /// Raw value.
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
        queue: Vec<Vec<u8>>,
        /// `SHUT_*` state as sock_diag(7) tells it: bit 0 receive, bit 1 send.
        shutdown: u8,
    },
    /// A TCP socket that is neither listening nor connected.
    TcpClosed {
        /// `AF_INET` or `AF_INET6`.
        family: i32,
        /// Local address, if bound.
        bound: Option<SocketAddr>,
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
        /// Received and not read: payload and sender.
        queue: Vec<(Vec<u8>, SocketAddr)>,
    },
}

/// What `TCP_REPAIR` gives and takes (Linux `net/ipv4/tcp.c`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpConnection {
    /// Local address.
    pub local: SocketAddr,
    /// Remote address.
    pub remote: SocketAddr,
    /// `TCP_*` state number (1 = ESTABLISHED, 8 = CLOSE_WAIT ...).
    pub state: u8,
    /// Sequence number of the next byte to read out of the receive queue's end.
    pub receive_sequence: u32,
    /// Received and not read.
    pub receive_queue: Vec<u8>,
    /// Sequence number at the end of the send queue.
    pub send_sequence: u32,
    /// Sent and not acknowledged, followed by not sent.
    pub send_queue: Vec<u8>,
    /// How much at the end of `send_queue` was never sent, in bytes.
    pub unsent: u32,
    /// Maximum segment size clamp.
    pub mss_clamp: u32,
    /// Send and receive window scale, if negotiated.
    pub window_scale: Option<(u8, u8)>,
    /// Selective acknowledgement permitted.
    pub sack: bool,
    /// Timestamps: the clock value (`TCP_TIMESTAMP`), if negotiated.
    pub timestamp: Option<u32>,
    /// `struct tcp_repair_window`: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup.
    pub window: [u32; 5],
    /// Inode at the source.
    pub inode: u64,
}
