//! packet(7): sending a frame out of one interface.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// sendto(2) on a packet socket: `frame`, with its Ethernet header, leaves the interface with the index `interface`
/// of the socket's namespace. `protocol` is its EtherType, host order. Does not wait. ENETDOWN: the interface is
/// down; ENXIO: there is none; EMSGSIZE: longer than the MTU; ENOBUFS, EAGAIN: the queue is full.
pub fn send_frame(socket: impl AsFd, interface: i32, protocol: u16, frame: &[u8]) -> nix::Result<usize> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: interface,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
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
