//! Packets that the namespace sends to itself in somebody's name: over the loopback interface, which the drop on
//! the container's interface does not touch, to one of its own addresses.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto};

/// Raw sockets, opened when first needed, in the network namespace of the calling thread.
#[derive(Debug, Default)]
pub(super) struct Loopback {
    v4: Option<OwnedFd>,
    v6: Option<OwnedFd>,
}

impl Loopback {
    /// Sends a packet with its IP header (of the family of `to`) to an address of this namespace. ENETUNREACH,
    /// ENETDOWN: the loopback interface is down.
    pub(super) fn send(&mut self, packet: &[u8], to: IpAddr) -> Result<(), Errno> {
        let (family, slot) = match to {
            IpAddr::V4(_) => (libc::AF_INET, &mut self.v4),
            IpAddr::V6(_) => (libc::AF_INET6, &mut self.v6),
        };
        let socket = match slot {
            Some(socket) => socket,
            // IPPROTO_RAW: packets come with their header.
            None => slot.insert(crate::sys::socket::socket(family, libc::SOCK_RAW, libc::IPPROTO_RAW)?),
        };
        let to = SockaddrStorage::from(SocketAddr::new(to, 0));
        sendto(socket.as_raw_fd(), packet, &to, MsgFlags::empty()).map(drop)
    }
}

/// IPv4 addresses in IPv6 form stand for IPv4 on the wire.
pub(super) fn on_wire(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
