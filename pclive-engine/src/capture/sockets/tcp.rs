//! TCP sockets at the source.
//!
//! The order of reading matters: the send queue first and the receive queue last, because a socket in repair mode
//! whose chosen queue is the send queue would count data as sent that it never sends.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockaddrStorage, getpeername, getsockname, recv};

use super::{
    Base, CapturedSocket, Connections, Identity, Mode, Reading, RepairGuard, SocketRefusal, UnixDiag, queue,
    raw,
};
use crate::fault::{self, Point};
use crate::model::socket::{SocketKind, TcpConnection, TcpState, TcpWindow};
use crate::sys::socket::{Queue, Readiness, get_int, get_option, queue_length, readiness};
use crate::sys::tcp::{self, RepairQueue, TcpInfo};

const CLOSE: u8 = 7;
const LISTEN: u8 = 10;
const TCP_FASTOPEN: i32 = 23;
const TCP_ULP: i32 = 31;
const TCP_AO_INFO: i32 = 40;

pub(super) fn capture(
    fd: OwnedFd,
    identity: &Identity,
    base: Base,
    diag: &UnixDiag,
    reading: Reading,
) -> Result<CapturedSocket, SocketRefusal> {
    let mode = reading.mode;
    let info = tcp::info(fd.as_fd()).map_err(|e| SocketRefusal::failed("read its TCP_INFO", e))?;
    let is_connection = !matches!(info.state, LISTEN | CLOSE);
    if reading.connections == Connections::Close && is_connection && leaves(&fd)? {
        return over(fd, identity, base, mode);
    }
    refuse_protocol(fd.as_fd())?;
    if mode == Mode::Check {
        refuse_authentication(&fd, diag)?;
    }
    match (info.state, TcpState::from_kernel(info.state)) {
        (LISTEN, _) => listener(&fd, &info, mode).map(|kind| base.plain(kind)),
        (CLOSE, _) => closed(&fd, identity, reading).map(|kind| base.plain(kind)),
        (_, Some(state)) => connection(fd, identity, base, state, &info, mode),
        (number, None) if mode == Mode::Dump => {
            Err(SocketRefusal::transient(format!("TCP connection that is being set up (state {number})")))
        }
        // A connect in progress: it may be over at the dump.
        (_, None) => closed(&fd, identity, reading).map(|kind| base.plain(kind)),
    }
}

/// Whether a connection, or the attempt at one, is with somebody outside the container.
pub(in crate::capture) fn leaves(fd: &OwnedFd) -> Result<bool, SocketRefusal> {
    let is_inside = |address: Option<SocketAddr>| {
        address.is_some_and(|address| address.ip().to_canonical().is_loopback())
    };
    Ok(!(is_inside(local_address(fd)?) && is_inside(remote_address(fd)?)))
}

/// A connection that does not come along, and the way to silence the original.
fn over(fd: OwnedFd, identity: &Identity, base: Base, mode: Mode) -> Result<CapturedSocket, SocketRefusal> {
    let guard = match mode {
        Mode::Check => None,
        Mode::Dump => {
            let failed = |errno| SocketRefusal::failed("try the repair mode of a TCP connection", errno);
            let guard = RepairGuard::engage(fd, base.socket.reuse_address).map_err(failed)?;
            guard.rest().map_err(failed)?;
            Some(guard)
        }
    };
    let kind = SocketKind::TcpClosed { family: identity.family, bound: None, dead: true };
    Ok(CapturedSocket { socket: base.with(kind), guard })
}

/// A protocol of the kernel on top of the connection (TLS).
fn refuse_protocol(fd: BorrowedFd<'_>) -> Result<(), SocketRefusal> {
    let mut name = [0; 16];
    let length = get_option(fd, libc::IPPROTO_TCP, TCP_ULP, &mut name).unwrap_or_default();
    let ulp = name.get(..length).unwrap_or_default().split(|byte| *byte == 0).next().unwrap_or_default();
    if ulp.is_empty() {
        return Ok(());
    }
    let what = format!("TCP connection with the kernel protocol \"{}\" (TCP_ULP)", ulp.escape_ascii());
    Err(SocketRefusal::lasting(what, "the application must not use it in a container that is migrated"))
}

/// Keys of segments (RFC 2385, 5925). They are set before the connection, so that the check sees them.
fn refuse_authentication(fd: &OwnedFd, diag: &UnixDiag) -> Result<(), SocketRefusal> {
    // ENOENT: none.
    let ao = get_option(fd.as_fd(), libc::IPPROTO_TCP, TCP_AO_INFO, &mut [0; 56]).is_ok();
    let md5 = match local_address(fd)? {
        Some(local) => diag.has_md5(local, remote_address(fd)?).map_err(|failure| {
            SocketRefusal::lasting(failure.to_string(), "see whether the kernel has CONFIG_INET_DIAG")
        })?,
        None => false,
    };
    if ao || md5 {
        let what = "TCP socket with authenticated segments (TCP_MD5SIG or TCP_AO)";
        return Err(SocketRefusal::lasting(
            what,
            "the application must not use it in a container that is migrated",
        ));
    }
    Ok(())
}

fn listener(fd: &OwnedFd, info: &TcpInfo, mode: Mode) -> Result<SocketKind, SocketRefusal> {
    let local = local_address(fd)?.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
    refuse_link_local(local)?;
    if get_int(fd.as_fd(), libc::IPPROTO_TCP, TCP_FASTOPEN).is_ok_and(|queue| queue != 0) {
        let hint = "switch TCP fast open off in the application";
        return Err(SocketRefusal::lasting(format!("TCP listener {local} with fast open"), hint));
    }
    // tcpi_unacked and tcpi_sacked of a listener: connections to accept, and their limit.
    if mode == Mode::Dump && info.unacked > 0 {
        let what = format!("TCP listener {local} with {} connections not yet accepted", info.unacked);
        return Err(SocketRefusal::transient(what));
    }
    Ok(SocketKind::TcpListener { local, backlog: info.sacked })
}

/// A socket without a connection: fresh, or its connection is over.
fn closed(fd: &OwnedFd, identity: &Identity, reading: Reading) -> Result<SocketKind, SocketRefusal> {
    let ready = readiness_of(fd)?;
    let unread = queue_length(fd.as_fd(), Queue::Unread).unwrap_or_default();
    if reading.mode == Mode::Dump && (ready.error || unread > 0) {
        if reading.connections == Connections::Close {
            return Ok(SocketKind::TcpClosed { family: identity.family, bound: None, dead: true });
        }
        return Err(SocketRefusal::transient(
            "TCP connection that the peer has reset, not yet noticed by the application",
        ));
    }
    let bound = local_address(fd)?;
    bound.map_or(Ok(()), refuse_link_local)?;
    Ok(SocketKind::TcpClosed { family: identity.family, bound, dead: ready.receive_shut })
}

fn connection(
    fd: OwnedFd,
    identity: &Identity,
    base: Base,
    state: TcpState,
    info: &TcpInfo,
    mode: Mode,
) -> Result<CapturedSocket, SocketRefusal> {
    let (Some(local), Ok(Some(remote))) = (local_address(&fd)?, remote_address(&fd)) else {
        return Err(SocketRefusal::transient("TCP connection that is ending"));
    };
    refuse_link_local(local)?;
    refuse_urgent(&fd, local, remote)?;
    let mut connection = outline(&fd, identity, state, info, local, remote)?;
    if mode == Mode::Check {
        return Ok(base.plain(SocketKind::TcpConnection(Box::new(connection))));
    }
    let failed = |what: &str, errno| {
        SocketRefusal::failed(&format!("{what} of TCP connection {local} - {remote}"), errno)
    };
    let guard = RepairGuard::engage(fd, base.socket.reuse_address)
        .map_err(|e| failed("switch on the repair mode", e))?;
    read_repaired(guard.fd(), &mut connection).map_err(|(what, errno)| failed(what, errno))?;
    fault::reached(Point::SourceConnectionMute);
    guard.rest().map_err(|e| failed("switch off the repair mode", e))?;
    let socket = base.with(SocketKind::TcpConnection(Box::new(connection)));
    Ok(CapturedSocket { socket, guard: Some(guard) })
}

/// The part of a connection that can be read without repair mode; queues and their numbers are empty.
fn outline(
    fd: &OwnedFd,
    identity: &Identity,
    state: TcpState,
    info: &TcpInfo,
    local: SocketAddr,
    remote: SocketAddr,
) -> Result<TcpConnection, SocketRefusal> {
    let receive_shut = !state.peer_finished() && readiness_of(fd)?.receive_shut;
    Ok(TcpConnection {
        local,
        remote,
        state,
        receive_shut,
        receive_sequence: 0,
        receive_queue: Vec::new(),
        send_sequence: 0,
        send_queue: Bytes::new(),
        unsent: 0,
        mss_clamp: 0,
        send_mss: info.send_mss,
        window_scale: info.window_scale,
        sack: info.sack,
        timestamp: info.timestamps.then_some(0),
        window: TcpWindow::default(),
        window_clamp: 0,
        inode: identity.inode,
    })
}

/// Everything that only repair mode tells. On `Err`: what could not be read.
fn read_repaired(fd: &OwnedFd, connection: &mut TcpConnection) -> Result<(), (&'static str, Errno)> {
    let socket = fd.as_fd();
    let [snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup] =
        tcp::repair_window(socket).map_err(|e| ("read the windows", e))?;
    connection.window = TcpWindow { snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup };
    connection.window_clamp = tcp::window_clamp(socket).map_err(|e| ("read the window clamp", e))?;
    connection.mss_clamp = tcp::max_segment(socket).map_err(|e| ("read the segment size", e))?;
    read_send_queue(fd, connection).map_err(|e| ("read the send queue", e))?;
    read_receive_queue(fd, connection).map_err(|e| ("read the receive queue", e))?;
    if connection.timestamp.is_some() {
        // Last: the clock runs on, and a value that is too small would be stuck at the peer.
        connection.timestamp = Some(tcp::timestamp(socket).map_err(|e| ("read the timestamp clock", e))?);
    }
    Ok(())
}

fn read_send_queue(fd: &OwnedFd, connection: &mut TcpConnection) -> Result<(), Errno> {
    let socket = fd.as_fd();
    tcp::set_repair_queue(socket, RepairQueue::Send)?;
    let end = tcp::queue_sequence(socket)?;
    let unacknowledged = bytes(queue_length(socket, Queue::Unacknowledged)?)?;
    let unsent = bytes(queue_length(socket, Queue::Unsent)?)?;
    // A FIN of ours takes a number, is the last thing in the queue, and is gone once acknowledged.
    let fin = u32::from(connection.state.we_finished());
    let fin_waits = if connection.state == TcpState::FinWait2 { 0 } else { fin };
    let length = unacknowledged.saturating_sub(fin_waits);
    connection.send_sequence = end.wrapping_sub(fin);
    connection.send_queue = queue::peek_exactly(fd, length as usize)?.into();
    connection.unsent = unsent.saturating_sub(fin_waits).min(length);
    Ok(())
}

fn read_receive_queue(fd: &OwnedFd, connection: &mut TcpConnection) -> Result<(), Errno> {
    let socket = fd.as_fd();
    tcp::set_repair_queue(socket, RepairQueue::Receive)?;
    let fin = u32::from(connection.state.peer_finished());
    connection.receive_sequence = tcp::queue_sequence(socket)?.wrapping_sub(fin);
    let length = bytes(queue_length(socket, Queue::Unread)?)?;
    connection.receive_queue = queue::peek_exactly(fd, length as usize)?;
    Ok(())
}

fn bytes(length: i32) -> Result<u32, Errno> {
    u32::try_from(length).map_err(|_| Errno::EPROTO)
}

/// Urgent data splits the receive queue in a way that repair mode does not tell.
fn refuse_urgent(fd: &OwnedFd, local: SocketAddr, remote: SocketAddr) -> Result<(), SocketRefusal> {
    match recv(raw(fd), &mut [0], MsgFlags::MSG_OOB | MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
        Err(Errno::EINVAL | Errno::ENOTCONN) => Ok(()),
        _ => Err(SocketRefusal::transient(format!("TCP connection {local} - {remote} with urgent data"))),
    }
}

/// A link-local address holds an interface number, which another host does not share.
pub(super) fn refuse_link_local(address: SocketAddr) -> Result<(), SocketRefusal> {
    match address.ip() {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Err(SocketRefusal::lasting(
            format!("socket with the link-local address {address}"),
            "use an address that moves with the container",
        )),
        IpAddr::V4(_) | IpAddr::V6(_) => Ok(()),
    }
}

fn readiness_of(fd: &OwnedFd) -> Result<Readiness, SocketRefusal> {
    readiness(fd.as_fd(), 0).map_err(|e| SocketRefusal::failed("poll it", e))
}

/// getsockname(2); `None` if unbound.
pub(super) fn local_address(fd: &OwnedFd) -> Result<Option<SocketAddr>, SocketRefusal> {
    let address: SockaddrStorage =
        getsockname(raw(fd)).map_err(|e| SocketRefusal::failed("read its local address", e))?;
    Ok(internet(&address).filter(|address| address.port() != 0))
}

/// getpeername(2); `None` if not connected.
pub(super) fn remote_address(fd: &OwnedFd) -> Result<Option<SocketAddr>, SocketRefusal> {
    match getpeername::<SockaddrStorage>(raw(fd)) {
        Ok(address) => Ok(internet(&address)),
        Err(Errno::ENOTCONN) => Ok(None),
        Err(errno) => Err(SocketRefusal::failed("read its peer's address", errno)),
    }
}

/// An internet address of nix -> std.
pub(super) fn internet(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}
