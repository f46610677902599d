//! What a socket from the peer must look like before anything is built from it. Pure.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::error::SocketsError;
use crate::model::FileId;
use crate::model::socket::{Datagram, Socket, SocketKind, TcpConnection, UnixName};
use crate::model::socket_options::{Scope, find};

/// `sizeof(sun_path) - 1`.
const UNIX_NAME: usize = 107;
/// Largest UDP payload.
const DATAGRAM: usize = 65_507;
/// Most bytes in a queue of a socket: far above `tcp_wmem` and `wmem_max` in use anywhere.
const QUEUE: usize = 256 << 20;
/// Window scales above are not valid (RFC 7323).
const MAX_SCALE: u8 = 14;

type Check = Result<(), &'static str>;

/// Checks every socket by itself and the unix sockets against each other.
pub fn all(sockets: &[(FileId, &Socket, i32)]) -> Result<(), SocketsError> {
    let invalid = |file, what| Err(SocketsError::Invalid { file, what });
    let mut unix = HashMap::new();
    for (file, socket, _) in sockets {
        one(socket).map_err(|what| SocketsError::Invalid { file: *file, what })?;
        if let SocketKind::UnixPair { inode, .. } | SocketKind::UnixSingle { inode, .. } = &socket.kind
            && unix.insert(*inode, &socket.kind).is_some()
        {
            return invalid(*file, "its inode is another socket's too");
        }
    }
    for (file, socket, _) in sockets {
        if let SocketKind::UnixPair { inode, peer, socket_type, .. } = &socket.kind
            && *peer != 0
            && (peer == inode || !unix.get(peer).is_some_and(|other| is_peer(other, *inode, *socket_type)))
        {
            return invalid(*file, "its peer is not among the sockets");
        }
        if let SocketKind::UnixSingle { socket_type, target, .. } = &socket.kind
            && *target != 0
            && !unix.get(target).is_some_and(|other| is_target(other, *socket_type))
        {
            return invalid(*file, "its target is not among the sockets");
        }
    }
    Ok(())
}

fn is_peer(other: &SocketKind, inode: u64, own_type: i32) -> bool {
    matches!(other, SocketKind::UnixPair { peer, socket_type, .. } if (*peer, *socket_type) == (inode, own_type))
}

fn is_target(other: &SocketKind, own_type: i32) -> bool {
    let named = matches!(other, SocketKind::UnixSingle { name: Some(_), socket_type: libc::SOCK_DGRAM, .. });
    named && own_type == libc::SOCK_DGRAM
}

/// Which options a socket may have; `None` for an unknown family.
pub(super) fn scope(kind: &SocketKind) -> Option<Scope> {
    match kind {
        SocketKind::UnixPair { .. } | SocketKind::UnixSingle { .. } => Some(Scope::UNIX),
        SocketKind::TcpClosed { family, .. } => by_family(*family, Scope::TCP4, Scope::TCP6),
        SocketKind::TcpListener { local, .. } => by_family(family(*local), Scope::TCP4, Scope::TCP6),
        SocketKind::TcpConnection(tcp) => by_family(family(tcp.local), Scope::TCP4, Scope::TCP6),
        SocketKind::Udp { family, .. } => by_family(*family, Scope::UDP4, Scope::UDP6),
    }
}

/// `AF_INET` or `AF_INET6`.
pub(super) fn family(address: SocketAddr) -> i32 {
    if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

fn by_family(family: i32, v4: Scope, v6: Scope) -> Option<Scope> {
    match family {
        libc::AF_INET => Some(v4),
        libc::AF_INET6 => Some(v6),
        _ => None,
    }
}

fn one(socket: &Socket) -> Check {
    let scope = scope(&socket.kind).ok_or("unknown address family")?;
    options(socket, scope)?;
    match &socket.kind {
        SocketKind::UnixPair { socket_type, shutdown, queue, .. } => {
            fits(queue.iter().map(Vec::len))?;
            unix(*socket_type, *shutdown)
        }
        SocketKind::UnixSingle { socket_type, name, backlog, shutdown, queue, .. } => {
            fits(queue.iter().map(Vec::len))?;
            require(backlog.is_none() || *socket_type != libc::SOCK_DGRAM, "a datagram socket that listens")?;
            name.as_ref().map_or(Ok(()), unix_name)?;
            unix(*socket_type, *shutdown)
        }
        SocketKind::TcpClosed { family: own, bound, .. } => bound.map_or(Ok(()), |b| same_family(*own, b)),
        SocketKind::TcpListener { local, .. } => require(local.port() != 0, "a listener without a port"),
        SocketKind::TcpConnection(tcp) => connection(tcp),
        SocketKind::Udp { family: own, local, peer, queue } => {
            for address in local.iter().chain(peer) {
                same_family(*own, *address)?;
            }
            fits(queue.iter().map(|datagram| datagram.payload.len()))?;
            queue.iter().try_for_each(datagram)
        }
    }
}

fn options(socket: &Socket, scope: Scope) -> Check {
    for (index, option) in socket.options.iter().enumerate() {
        let spec = find(option.level, option.name).ok_or("an option that is never carried")?;
        require(spec.scope.meets(scope), "an option of another family")?;
        require(spec.form.fits(&option.value), "an option with a wrong length")?;
        let earlier = socket.options.iter().take(index);
        require(
            !earlier.clone().any(|o| (o.level, o.name) == (option.level, option.name)),
            "an option twice",
        )?;
    }
    require(socket.buffers.locks <= 3, "unknown buffer locks")
}

fn unix(socket_type: i32, shutdown: u8) -> Check {
    let known = [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET].contains(&socket_type);
    require(known, "unknown type of unix socket")?;
    require(shutdown <= 3, "unknown shutdown state")
}

fn unix_name(name: &UnixName) -> Check {
    match name {
        UnixName::Abstract(name) => require(name.len() <= UNIX_NAME, "its name is too long"),
        UnixName::Path { path, .. } => {
            require(path.len() <= UNIX_NAME, "its path is too long")?;
            require(path.starts_with(b"/") && !path.contains(&0), "its path is not absolute")?;
            require(
                !path.ends_with(b"/") && !path.ends_with(b"/..") && !path.ends_with(b"/."),
                "its path names no file",
            )
        }
    }
}

fn connection(tcp: &TcpConnection) -> Check {
    same_family(family(tcp.local), tcp.remote)?;
    require(tcp.local.port() != 0 && tcp.remote.port() != 0, "a connection without a port")?;
    require(
        !tcp.local.ip().is_unspecified() && !tcp.remote.ip().is_unspecified(),
        "a connection to no address",
    )?;
    fits([tcp.send_queue.len(), tcp.receive_queue.len()])?;
    require(tcp.unsent as usize <= tcp.send_queue.len(), "more unsent bytes than the send queue has")?;
    require((1..=0xffff).contains(&tcp.mss_clamp), "its segment size is out of range")?;
    require(tcp.window_clamp > 0, "its window clamp is zero")?;
    let scales = tcp.window_scale.is_none_or(|(send, receive)| send.max(receive) <= MAX_SCALE);
    require(scales, "its window scale is out of range")
}

/// Each message of a queue costs the kernel more than its bytes.
fn fits(messages: impl IntoIterator<Item = usize>) -> Check {
    let bytes = messages.into_iter().fold(0usize, |sum, bytes| sum.saturating_add(bytes).saturating_add(256));
    require(bytes <= QUEUE, "more in a queue than fits")
}

fn datagram(datagram: &Datagram) -> Check {
    require(datagram.payload.len() <= DATAGRAM, "a datagram that is too long")?;
    same_family(family(datagram.from), datagram.to)
}

fn same_family(own: i32, address: SocketAddr) -> Check {
    require(family(address) == own, "its addresses are of different families")
}

fn require(condition: bool, otherwise: &'static str) -> Check {
    if condition { Ok(()) } else { Err(otherwise) }
}
