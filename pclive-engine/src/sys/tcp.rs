//! `TCP_REPAIR` and `TCP_INFO` (Linux 3.5 and later; net/ipv4/tcp.c, linux/tcp.h).
//!
//! A socket in repair mode sends nothing by itself, lets sequence numbers and queues be read and written, and
//! closes without FIN or RST. It needs CAP_NET_ADMIN over the socket's network namespace.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;

use super::socket::{get_int, get_option, set_int, set_option};

const TCP: i32 = libc::IPPROTO_TCP;
const TCP_MAXSEG: i32 = 2;
const TCP_WINDOW_CLAMP: i32 = 10;
const TCP_INFO: i32 = 11;
const TCP_REPAIR: i32 = 19;
const TCP_REPAIR_QUEUE: i32 = 20;
const TCP_QUEUE_SEQ: i32 = 21;
const TCP_REPAIR_OPTIONS: i32 = 22;
const TCP_TIMESTAMP: i32 = 24;
const TCP_REPAIR_WINDOW: i32 = 29;

/// Values of `TCP_REPAIR`. Every switch-off resets `SO_REUSEADDR` to 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// On; `SO_REUSEADDR` is forced meanwhile.
    On,
    /// Off, and an established connection sends a window probe, which the peer answers; also if it was off before.
    Off,
    /// Off, nothing is sent (Linux 4.19).
    OffSilently,
}

/// setsockopt `TCP_REPAIR`. EPERM: listening, or no CAP_NET_ADMIN.
pub fn set_repair(fd: BorrowedFd<'_>, repair: Repair) -> nix::Result<()> {
    let value = match repair {
        Repair::On => 1,
        Repair::Off => 0,
        Repair::OffSilently => -1,
    };
    set_int(fd, TCP, TCP_REPAIR, value)
}

/// getsockopt `TCP_REPAIR`: whether it is on. ENOPROTOOPT or EOPNOTSUPP: no TCP socket.
pub fn is_in_repair(fd: BorrowedFd<'_>) -> nix::Result<bool> {
    Ok(get_int(fd, TCP, TCP_REPAIR)? != 0)
}

/// Values of `TCP_REPAIR_QUEUE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepairQueue {
    /// Received and not read.
    Receive,
    /// Not acknowledged.
    Send,
}

/// Chooses the queue that sequence number, peeks and writes are about.
pub fn set_repair_queue(fd: BorrowedFd<'_>, queue: RepairQueue) -> nix::Result<()> {
    let value = match queue {
        RepairQueue::Receive => 1,
        RepairQueue::Send => 2,
    };
    set_int(fd, TCP, TCP_REPAIR_QUEUE, value)
}

/// Sequence number of the byte after the chosen queue (a FIN counted).
pub fn queue_sequence(fd: BorrowedFd<'_>) -> nix::Result<u32> {
    Ok(get_int(fd, TCP, TCP_QUEUE_SEQ)?.cast_unsigned())
}

/// Sets the sequence number of the chosen, empty queue. EPERM: not closed, or not empty.
pub fn set_queue_sequence(fd: BorrowedFd<'_>, sequence: u32) -> nix::Result<()> {
    set_int(fd, TCP, TCP_QUEUE_SEQ, sequence.cast_signed())
}

/// `TCP_MAXSEG`: in repair mode the clamp of an established connection.
pub fn max_segment(fd: BorrowedFd<'_>) -> nix::Result<u32> {
    Ok(get_int(fd, TCP, TCP_MAXSEG)?.cast_unsigned())
}

/// Sets the user's limit of the segment size: 0 or 88 to 32767 bytes.
pub fn set_max_segment(fd: BorrowedFd<'_>, bytes: u32) -> nix::Result<()> {
    set_int(fd, TCP, TCP_MAXSEG, bytes.cast_signed())
}

/// `TCP_WINDOW_CLAMP`, bytes.
pub fn window_clamp(fd: BorrowedFd<'_>) -> nix::Result<u32> {
    Ok(get_int(fd, TCP, TCP_WINDOW_CLAMP)?.cast_unsigned())
}

/// Sets `TCP_WINDOW_CLAMP`; the kernel has a lower bound (1152).
pub fn set_window_clamp(fd: BorrowedFd<'_>, bytes: u32) -> nix::Result<()> {
    set_int(fd, TCP, TCP_WINDOW_CLAMP, bytes.cast_signed())
}

/// The timestamp clock of the connection; the lowest bit tells microseconds (Linux 6.7) from milliseconds.
pub fn timestamp(fd: BorrowedFd<'_>) -> nix::Result<u32> {
    Ok(get_int(fd, TCP, TCP_TIMESTAMP)?.cast_unsigned())
}

/// Sets the timestamp clock. EPERM: not in repair mode.
pub fn set_timestamp(fd: BorrowedFd<'_>, value: u32) -> nix::Result<()> {
    set_int(fd, TCP, TCP_TIMESTAMP, value.cast_signed())
}

/// Options that the handshake negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Negotiated {
    /// Maximum segment size clamp, bytes.
    MaxSegment(u32),
    /// Window scales, 0 to 14 each.
    WindowScale {
        /// Applied to the windows that the peer announces.
        send: u8,
        /// Applied to those that we announce.
        receive: u8,
    },
    /// Selective acknowledgements.
    Sack,
    /// Timestamps.
    Timestamps,
}

/// setsockopt `TCP_REPAIR_OPTIONS`. EPERM: not in repair mode, not established, or data was sent.
pub fn set_negotiated(fd: BorrowedFd<'_>, options: &[Negotiated]) -> nix::Result<()> {
    let mut bytes = Vec::with_capacity(options.len() * 8);
    for option in options {
        // TCPOPT_* numbers of the wire format.
        let (code, value) = match *option {
            Negotiated::MaxSegment(clamp) => (2, clamp),
            Negotiated::WindowScale { send, receive } => (3, u32::from(send) | u32::from(receive) << 16),
            Negotiated::Sack => (4, 0),
            Negotiated::Timestamps => (8, 0_u32),
        };
        bytes.extend_from_slice(&u32::to_ne_bytes(code));
        bytes.extend_from_slice(&value.to_ne_bytes());
    }
    set_option(fd, TCP, TCP_REPAIR_OPTIONS, &bytes)
}

/// getsockopt `TCP_REPAIR_WINDOW`: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup.
pub fn repair_window(fd: BorrowedFd<'_>) -> nix::Result<[u32; 5]> {
    let mut bytes = [0; 20];
    if get_option(fd, TCP, TCP_REPAIR_WINDOW, &mut bytes)? != bytes.len() {
        return Err(Errno::EPROTO);
    }
    Ok([0, 4, 8, 12, 16].map(|at| word(&bytes, at)))
}

/// setsockopt `TCP_REPAIR_WINDOW`. EINVAL: the numbers contradict each other or the sequence numbers.
pub fn set_repair_window(fd: BorrowedFd<'_>, window: [u32; 5]) -> nix::Result<()> {
    let mut bytes = [0; 20];
    for (slot, value) in bytes.chunks_exact_mut(4).zip(window) {
        slot.copy_from_slice(&value.to_ne_bytes());
    }
    set_option(fd, TCP, TCP_REPAIR_WINDOW, &bytes)
}

/// The part of `struct tcp_info` that the engine needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpInfo {
    /// `TCP_*` state number.
    pub state: u8,
    /// Timestamps negotiated.
    pub timestamps: bool,
    /// Selective acknowledgements negotiated.
    pub sack: bool,
    /// Window scales (send, receive), if negotiated.
    pub window_scale: Option<(u8, u8)>,
    /// Segment size in use, bytes.
    pub send_mss: u32,
    /// A listener: established connections that wait for accept(2).
    pub unacked: u32,
    /// A listener: the backlog's limit.
    pub sacked: u32,
    /// Congestion window, segments.
    pub congestion_window: u32,
}

/// getsockopt `TCP_INFO`.
pub fn info(fd: BorrowedFd<'_>) -> nix::Result<TcpInfo> {
    // The first 104 bytes have been there since Linux 2.6.
    let mut bytes = [0; 104];
    if get_option(fd, TCP, TCP_INFO, &mut bytes)? != bytes.len() {
        return Err(Errno::EPROTO);
    }
    let [state, _, _, _, _, options, scales, ..] = bytes;
    Ok(TcpInfo {
        state,
        timestamps: options & 1 != 0,
        sack: options & 2 != 0,
        window_scale: (options & 4 != 0).then_some((scales & 0xf, scales >> 4)),
        send_mss: word(&bytes, 16),
        unacked: word(&bytes, 24),
        sacked: word(&bytes, 28),
        congestion_window: word(&bytes, 80),
    })
}

/// The native-endian word at `at`; zero past the end.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_ne_bytes).unwrap_or_default()
}
