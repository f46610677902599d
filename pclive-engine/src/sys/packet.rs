//! packet(7): sending a frame out of one interface, hearing what arrives at one.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

use super::socket::{get_option, set_int};

/// Bytes of `struct virtio_net_hdr`, which stands before every frame of a socket with [`set_offload_header`].
pub const OFFLOAD_HEADER_BYTES: usize = 10;
/// `PACKET_STATISTICS`: `struct tpacket_stats`, two unsigned ints.
const STATISTICS_BYTES: usize = 8;

/// One instruction of a classic packet filter (`struct sock_filter`, BPF in linux/filter.h).
pub type Instruction = libc::sock_filter;

/// sendto(2) on a packet socket: `frame`, with its Ethernet header, leaves the interface with the index `interface`
/// of the socket's namespace. `protocol` is its EtherType, host order. Does not wait. ENETDOWN: the interface is
/// down; ENXIO: there is none; EMSGSIZE: longer than the MTU; ENOBUFS, EAGAIN: the queue is full.
pub fn send_frame(socket: impl AsFd, interface: i32, protocol: u16, frame: &[u8]) -> nix::Result<usize> {
    let address = link_address(interface, protocol);
    // SAFETY: `frame` and `address` are live and readable for the lengths given, and the call only reads them.
    let sent = unsafe {
        libc::sendto(
            socket.as_fd().as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            libc::MSG_DONTWAIT,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    Errno::result(sent).map(|sent| sent as usize)
}

/// bind(2): from the return on, the socket receives frames of `protocol` (an EtherType or `ETH_P_ALL`, host order)
/// that pass the interface with the index `interface`. ENODEV: there is none; ENETDOWN: it is down.
pub fn listen_at(socket: impl AsFd, interface: i32, protocol: u16) -> nix::Result<()> {
    let address = link_address(interface, protocol);
    // SAFETY: `address` is live and readable for the length given, and the call only reads it.
    let bound = unsafe {
        libc::bind(
            socket.as_fd().as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    Errno::result(bound).map(drop)
}

/// `PACKET_VNET_HDR` (Linux 2.6.27): frames come and go with a `struct virtio_net_hdr` in front, which says what is
/// left to do for checksum and segmentation. Before the socket is bound.
pub fn set_offload_header(socket: impl AsFd) -> nix::Result<()> {
    set_int(socket.as_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)
}

/// `PACKET_IGNORE_OUTGOING` (Linux 4.20): the socket does not receive what its interface sends.
pub fn ignore_outgoing(socket: impl AsFd) -> nix::Result<()> {
    set_int(socket.as_fd(), libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)
}

/// `PACKET_STATISTICS`: frames that the socket lost since the last call, because its buffer was full.
pub fn take_lost(socket: impl AsFd) -> nix::Result<u32> {
    let mut statistics = [0; STATISTICS_BYTES];
    get_option(socket.as_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS, &mut statistics)?;
    let [_, _, _, _, lost @ ..] = statistics;
    Ok(u32::from_ne_bytes(lost))
}

/// `SO_ATTACH_FILTER`: the socket receives what `program` lets pass. EINVAL: the kernel does not accept the program;
/// EMSGSIZE: it has more than 65,535 instructions.
pub fn attach_filter(socket: impl AsFd, program: &[Instruction]) -> nix::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| Errno::EMSGSIZE)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: `filter` is live for the call and points to `len` readable instructions, which the kernel copies and
    // does not write.
    let attached = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    Errno::result(attached).map(drop)
}

fn link_address(interface: i32, protocol: u16) -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: interface,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    }
}
