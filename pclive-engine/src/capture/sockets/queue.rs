//! Queues, read without taking anything out of them (MSG_PEEK).

use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recv, recvmsg};

use super::raw;
use crate::sys::socket::{get_int, set_int};

/// No queue of a socket is larger (net.core.rmem_max and tcp_rmem are far below).
pub(super) const LIMIT: usize = 256 << 20;

/// The chosen queue of a TCP socket in repair mode, or a unix stream. EMSGSIZE: it is not as long as `length`.
pub(super) fn peek_exactly(fd: &OwnedFd, length: usize) -> Result<Vec<u8>, Errno> {
    if length == 0 {
        return Ok(Vec::new());
    }
    if length > LIMIT {
        return Err(Errno::EFBIG);
    }
    let mut bytes = vec![0; length];
    let got = recv(raw(fd), &mut bytes, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT)?;
    if got == length { Ok(bytes) } else { Err(Errno::EMSGSIZE) }
}

/// `SO_PEEK_OFF` set to 0 for a while: every peek goes on where the last one ended.
#[derive(Debug)]
pub(super) struct Peek<'a> {
    fd: &'a OwnedFd,
    before: i32,
}

/// One peeked message.
#[derive(Debug)]
pub(super) struct Message {
    /// Payload.
    pub(super) payload: Vec<u8>,
    /// Sender, if it has an internet address.
    pub(super) from: Option<SocketAddr>,
    /// The address that it was sent to, if the socket tells (`IP_PKTINFO`).
    pub(super) to: Option<IpAddr>,
    /// The sender is a unix socket with a name.
    pub(super) named: bool,
    /// Control data did not fit.
    pub(super) control_cut: bool,
}

impl<'a> Peek<'a> {
    /// Starts at the head of the queue.
    pub(super) fn start(fd: &'a OwnedFd) -> Result<Self, Errno> {
        let before = get_int(fd.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF)?;
        set_int(fd.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0)?;
        Ok(Self { fd, before })
    }

    /// The next datagram; `None` at the end. EMSGSIZE: `buffer` is too small for it.
    pub(super) fn next(&self, buffer: &mut [u8]) -> Result<Option<Message>, Errno> {
        let mut control = nix::cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo, [libc::timespec; 4]);
        self.receive(buffer, Some(&mut control))
    }

    /// The same without room for control data, so that no descriptor that is in flight is received.
    pub(super) fn next_without_control(&self, buffer: &mut [u8]) -> Result<Option<Message>, Errno> {
        self.receive(buffer, None)
    }

    fn receive(&self, buffer: &mut [u8], control: Option<&mut Vec<u8>>) -> Result<Option<Message>, Errno> {
        let mut slices = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let control = control.map(|space| space.as_mut());
        let received = match recvmsg::<SockaddrStorage>(raw(self.fd), &mut slices, control, flags) {
            Ok(received) => received,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        if received.flags.contains(MsgFlags::MSG_TRUNC) {
            return Err(Errno::EMSGSIZE);
        }
        let (length, control_cut) = (received.bytes, received.flags.contains(MsgFlags::MSG_CTRUNC));
        let from = received.address.as_ref().and_then(super::tcp::internet);
        let named = received.address.as_ref().is_some_and(has_unix_name);
        let to = received.cmsgs().ok().and_then(|mut all| all.find_map(|message| destination(&message)));
        let payload = buffer.get(..length).unwrap_or_default().to_vec();
        Ok(Some(Message { payload, from, to, named, control_cut }))
    }
}

impl Drop for Peek<'_> {
    fn drop(&mut self) {
        if let Err(errno) = set_int(self.fd.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, self.before) {
            tracing::error!(%errno, "cannot put SO_PEEK_OFF of a socket back");
        }
    }
}

fn destination(message: &ControlMessageOwned) -> Option<IpAddr> {
    match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(IpAddr::V4(u32::from_be(info.ipi_addr.s_addr).into()))
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::V6(info.ipi6_addr.s6_addr.into())),
        _ => None,
    }
}

fn has_unix_name(address: &SockaddrStorage) -> bool {
    address.as_unix_addr().is_some_and(|unix| unix.path().is_some() || unix.as_abstract().is_some())
}
