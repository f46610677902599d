//! UDP sockets at the destination: peer and queue.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{SockaddrStorage, connect};

use super::error::{Of, SocketsError};
use super::loopback::{Loopback, on_wire};
use super::{options, packet};
use crate::model::FileId;
use crate::model::socket::{Datagram, Socket};
use crate::sys::socket::readiness;

/// How long a packet over the loopback interface may take.
const LOOPBACK_MS: u16 = 100;

/// Connects a bound socket and sends its datagrams once more, in the senders' names. A datagram that does not
/// arrive is logged: UDP may lose it.
pub(super) fn finish(
    file: FileId,
    fd: &OwnedFd,
    socket: &Socket,
    peer: Option<SocketAddr>,
    queue: &[Datagram],
    loopback: &mut Loopback,
) -> Result<(), SocketsError> {
    if let Some(peer) = peer {
        connect(fd.as_raw_fd(), &SockaddrStorage::from(peer))
            .of(file, &format!("connect to {peer} the socket"))?;
    }
    if queue.is_empty() {
        return Ok(());
    }
    let bytes = queue.iter().map(|datagram| datagram.payload.len() + 1024).sum();
    options::widen(file, fd, socket.buffers, 0, bytes)?;
    for datagram in queue {
        let (from, to) = (on_wire(datagram.from), on_wire(datagram.to));
        let sent = loopback.send(&packet::datagram(from, to, &datagram.payload), to.ip());
        if let Err(errno) = sent {
            tracing::warn!(%from, %to, %errno, "a UDP datagram that waited to be read is lost");
        }
    }
    let arrived = readiness(fd.as_fd(), LOOPBACK_MS).of(file, "poll the socket")?;
    if !arrived.readable {
        tracing::warn!(count = queue.len(), "UDP datagrams that waited to be read are lost");
    }
    Ok(())
}
