//! TCP connections at the destination, up to the point where they could send.
//!
//! In repair mode connect(2) makes a connection out of numbers instead of a handshake. The order is the kernel's:
//! numbers before connect, the segment size too (the clamp that is set later does not reach the segment size in
//! use, which would stay at 524 bytes), negotiated options before any data, windows last.
//!
//! What was sent and not acknowledged goes to one of two places. A few segments are handed to the kernel as if
//! they had never been sent: it sends them at once, and the peer answers duplicates with the acknowledgement that
//! was lost. More than that does not fit the initial congestion window; it is put behind the "sent" mark, and a window
//! probe asks the peer how far it got. The kernel sends one only while the connection is established: half-closed ones
//! wait for its timer.
//!
//! Until the copy has sent as far as its original had, it drops what a peer says that has everything: it acknowledges
//! bytes that were never sent (tcp_ack in net/ipv4/tcp_input.c). So nothing may keep it from getting there. The last
//! segment ends where the original's did, because a full one may not fit the peer's window; that window counts as no
//! smaller than what was sent into it, because a peer may have drawn it back since; and a FIN that was sent is put behind
//! the mark with the data before it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, SockaddrStorage, connect, send, shutdown};

use super::error::{Of, SocketsError};
use super::go::Live;
use super::loopback::{Loopback, on_wire};
use super::{bind_to, create, options, packet, validate};
use crate::model::FileId;
use crate::model::socket::{Socket, TcpConnection, TcpState};
use crate::model::socket_options::Moment;
use crate::sys::socket::{readiness, set_int};
use crate::sys::tcp::{self, Negotiated, Repair, RepairQueue, TcpInfo};

/// Segments that fit the initial congestion window (10), where no route has made it smaller.
const RESENT_SEGMENTS: u32 = 8;
/// `MAX_TCP_WINDOW`: TCP_MAXSEG takes no more.
const MAX_SEGMENT: u32 = 32_767;
/// `TCP_MIN_MSS`.
const MIN_SEGMENT: u32 = 88;
/// The largest window (RFC 7323).
const MAX_WINDOW: u32 = 1 << 30;
/// How long a packet over the loopback interface may take.
const LOOPBACK_MS: u16 = 500;

/// The connection in repair mode, and what is left to do when the network is open.
pub(super) fn build(
    file: FileId,
    socket: &Socket,
    tcp: &TcpConnection,
    loopback: &mut Loopback,
) -> Result<(OwnedFd, Live), SocketsError> {
    let fd = create(file, socket, validate::family(tcp.local), libc::SOCK_STREAM)?;
    options::widen(file, &fd, socket.buffers, tcp.send_queue.len(), tcp.receive_queue.len())?;
    tcp::set_repair(fd.as_fd(), Repair::On).of(file, "switch on the repair mode")?;
    set_sequences(&fd, tcp).of(file, "set the sequence numbers")?;
    bind_to(file, &fd, tcp.local)?;
    establish(&fd, tcp).of(file, &format!("connect to {} the socket", tcp.remote))?;
    fill_receive(&fd, tcp).of(file, "fill the receive queue")?;
    if tcp.state.peer_finished() {
        receive_fin(&fd, tcp, loopback)
            .of(file, "repeat the peer's FIN (is the loopback interface up?) to the socket")?;
    }
    let queue = SendQueue::of(tcp, &tcp::info(fd.as_fd()).of(file, "read the TCP_INFO of the socket")?);
    fill_sent(&fd, &queue.marked).of(file, "fill the send queue")?;
    set_clock(&fd, tcp).of(file, "set the timestamp clock")?;
    options::apply(file, &fd, &socket.options, Moment::Late)?;
    settle(&fd, socket, tcp).of(file, "settle the state")?;
    let fin_is_marked = fin_was_sent(tcp) && !queue.marked.is_empty();
    if fin_is_marked {
        // In repair mode, with the send queue chosen: as if it were sent.
        shutdown(fd.as_raw_fd(), Shutdown::Write).of(file, "repeat our FIN to the socket")?;
    }
    let own = fd.try_clone().map_err(|e| e.raw_os_error().map_or(Errno::EMFILE, Errno::from_raw));
    let live = Live {
        file,
        fd: own.of(file, "duplicate the descriptor")?,
        reuse_address: socket.reuse_address,
        options: socket.options.clone(),
        buffers: (!tcp.send_queue.is_empty()).then_some(socket.buffers),
        ask: queue.again.is_empty() && !tcp.send_queue.is_empty(),
        again: queue.again,
        unsent: queue.unsent,
        finish: tcp.state.we_finished() && !fin_is_marked,
    };
    Ok((fd, live))
}

/// The send queue in its order; of the first two parts one is empty.
struct SendQueue {
    /// Sent, and put behind the "sent" mark.
    marked: Bytes,
    /// Sent, and short enough to be sent again.
    again: Bytes,
    /// Never sent.
    unsent: Bytes,
}

impl SendQueue {
    /// `copy`: the connection's copy, which may be on a network of smaller segments.
    fn of(tcp: &TcpConnection, copy: &TcpInfo) -> Self {
        let mut sent = tcp.send_queue.clone();
        let unsent = sent.split_off(sent_length(tcp));
        let segment = tcp.send_mss.min(tcp.mss_clamp).min(copy.send_mss).max(MIN_SEGMENT);
        let fits = u64::from(segment) * u64::from(copy.congestion_window.min(RESENT_SEGMENTS));
        if sent.len() as u64 <= fits {
            Self { marked: Bytes::new(), again: sent, unsent }
        } else {
            Self { marked: sent, again: Bytes::new(), unsent }
        }
    }
}

/// How much of the send queue was sent.
fn sent_length(tcp: &TcpConnection) -> usize {
    tcp.send_queue.len().saturating_sub(tcp.unsent as usize)
}

/// Our FIN is behind everything in the queue, and counts as sent when nothing before it waits. If it was not, because the
/// window was full to the last byte, the timer sends it.
fn fin_was_sent(tcp: &TcpConnection) -> bool {
    tcp.state.we_finished() && tcp.unsent == 0
}

/// The numbers from which the queues are filled.
fn set_sequences(fd: &OwnedFd, tcp: &TcpConnection) -> Result<(), Errno> {
    let start = |end: u32, queue: &[u8]| end.wrapping_sub(u32::try_from(queue.len()).unwrap_or(u32::MAX));
    tcp::set_repair_queue(fd.as_fd(), RepairQueue::Send)?;
    tcp::set_queue_sequence(fd.as_fd(), start(tcp.send_sequence, &tcp.send_queue))?;
    tcp::set_repair_queue(fd.as_fd(), RepairQueue::Receive)?;
    tcp::set_queue_sequence(fd.as_fd(), start(tcp.receive_sequence, &tcp.receive_queue))
}

fn establish(fd: &OwnedFd, tcp: &TcpConnection) -> Result<(), Errno> {
    tcp::set_max_segment(fd.as_fd(), tcp.mss_clamp.clamp(MIN_SEGMENT, MAX_SEGMENT))?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(tcp.remote))?;
    let mut negotiated = vec![Negotiated::MaxSegment(tcp.mss_clamp)];
    negotiated.extend(tcp.window_scale.map(|(send, receive)| Negotiated::WindowScale { send, receive }));
    negotiated.extend(tcp.sack.then_some(Negotiated::Sack));
    negotiated.extend(tcp.timestamp.map(|_| Negotiated::Timestamps));
    tcp::set_negotiated(fd.as_fd(), &negotiated)
}

fn fill_receive(fd: &OwnedFd, tcp: &TcpConnection) -> Result<(), Errno> {
    // The receive queue is the chosen one since its number was set.
    write_all(fd, &tcp.receive_queue, MsgFlags::empty())
}

fn fill_sent(fd: &OwnedFd, sent: &[u8]) -> Result<(), Errno> {
    if sent.is_empty() {
        return Ok(());
    }
    tcp::set_repair_queue(fd.as_fd(), RepairQueue::Send)?;
    write_all(fd, sent, MsgFlags::empty())
}

/// Writes without blocking; MSG_EOR: no segment goes on behind the end. ENOBUFS: the queue does not take it all.
pub(super) fn write_all(fd: &OwnedFd, mut bytes: &[u8], flags: MsgFlags) -> Result<(), Errno> {
    let flags = flags | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    while !bytes.is_empty() {
        match send(fd.as_raw_fd(), bytes, flags) {
            Ok(0) | Err(Errno::EAGAIN) => return Err(Errno::ENOBUFS),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The peer's FIN comes in once more, by a packet in its name: there is no other way into the states after it.
fn receive_fin(fd: &OwnedFd, tcp: &TcpConnection, loopback: &mut Loopback) -> Result<(), Errno> {
    // A window that is full takes no FIN.
    let end = tcp.receive_sequence;
    tcp::set_repair_window(fd.as_fd(), [end, 0xffff, 0xffff, 0xffff, end])?;
    let (from, to) = (on_wire(tcp.remote), on_wire(tcp.local));
    let acknowledge = tcp.send_sequence.wrapping_sub(u32::try_from(tcp.send_queue.len()).unwrap_or(u32::MAX));
    loopback.send(&packet::fin(from, to, end, acknowledge), to.ip())?;
    let ready = readiness(fd.as_fd(), LOOPBACK_MS)?;
    let arrived = ready.receive_shut || wait_for_fin(fd)?;
    if arrived { Ok(()) } else { Err(Errno::ETIMEDOUT) }
}

/// poll(2) returns early for a socket with data; the state tells.
fn wait_for_fin(fd: &OwnedFd) -> Result<bool, Errno> {
    let deadline = crate::model::Deadline::after(std::time::Duration::from_millis(LOOPBACK_MS.into()));
    while !deadline.passed() {
        let state = TcpState::from_kernel(tcp::info(fd.as_fd())?.state);
        if state.is_some_and(TcpState::peer_finished) {
            return Ok(true);
        }
        std::thread::yield_now();
    }
    Ok(false)
}

fn set_clock(fd: &OwnedFd, tcp: &TcpConnection) -> Result<(), Errno> {
    tcp.timestamp.map_or(Ok(()), |clock| tcp::set_timestamp(fd.as_fd(), clock))
}

fn set_windows(fd: &OwnedFd, tcp: &TcpConnection, receive: u32) -> Result<(), Errno> {
    let window = tcp.window;
    let sent = u32::try_from(sent_length(tcp)).unwrap_or(MAX_WINDOW);
    let send = window.snd_wnd.max(sent + u32::from(fin_was_sent(tcp)));
    let numbers = [window.snd_wl1, send, window.max_window.max(send), receive, window.rcv_wup];
    tcp::set_repair_window(fd.as_fd(), numbers)
}

/// Receive buffer, windows and their clamp, half-closed state; and sends at once what will be sent.
fn settle(fd: &OwnedFd, socket: &Socket, tcp: &TcpConnection) -> Result<(), Errno> {
    let sending = !tcp.send_queue.is_empty();
    let sizes = options::Sizes { send: false, receive: !tcp.receive_queue.is_empty() };
    if !sending || sizes.receive {
        options::settle(fd.as_fd(), socket.buffers, sizes)?;
    }
    // When the clamp grows, the kernel takes the receive window in force for the most that it may offer later. One
    // that is closed at the moment, because the program reads slowly, would open by less than a segment, which the
    // peer fills only after its probe timer. So it grows under a window as large as the clamp.
    set_windows(fd, tcp, tcp.window_clamp.min(MAX_WINDOW))?;
    tcp::set_window_clamp(fd.as_fd(), 1)?;
    tcp::set_window_clamp(fd.as_fd(), tcp.window_clamp)?;
    set_windows(fd, tcp, tcp.window.rcv_wnd)?;
    if tcp.receive_shut {
        shutdown(fd.as_raw_fd(), Shutdown::Read)?;
    }
    if sending {
        set_int(fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    }
    Ok(())
}

/// A connection that is over: reads end, writes fail. shutdown(2) says ENOTCONN and does it.
pub(super) fn mark_dead(fd: &OwnedFd) {
    let _ = shutdown(fd.as_raw_fd(), Shutdown::Both);
}
