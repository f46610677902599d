//! Gives a container frames that arrived for it elsewhere, or earlier.
//!
//! A frame is sent out of the host's end of the container's veth pair, so that it arrives at the container's
//! interface like any other. An interface whose other end is not a veth in the agent's namespace gets none.
//!
//! Invariants: only frames that [`Arrival::check`] lets pass, within the limits; a frame that cannot be sent is
//! dropped and counted, as in a network.
//!
//! Kernel: one packet(7) socket in the agent's namespace with PACKET_VNET_HDR; one sendto(2) a frame, which does not
//! wait. Frames meet the ingress hook: after [`super::Applied::open`].

use std::os::fd::OwnedFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};
use pclive_engine::sys::packet;

use super::arrival::{Allowance, Arrival};
use super::error::{Error, Result};
use super::interface::{Interface, Mac};
use super::links;
use super::namespace::Namespace;
use super::netlink::RouteSocket;

/// Frames on their way through the host's queues, bytes.
const SEND_BYTES: usize = 4 << 20;

/// The host's end of an interface.
#[derive(Debug)]
struct End {
    index: i32,
    /// The address to which frames were sent.
    original: Mac,
    /// The address that the interface has here.
    current: Mac,
}

/// What became of the frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Sent to the container.
    pub injected: u64,
    /// Refused, beyond the limits, or not taken by the kernel.
    pub dropped: u64,
}

/// A way into a container's interfaces.
pub struct Injector {
    socket: OwnedFd,
    /// By the interfaces' places in the container's list.
    ends: Vec<Option<End>>,
    allowance: Allowance,
    tally: Tally,
    scratch: Vec<u8>,
}

impl Injector {
    /// Finds the host's ends of `interfaces`, which exist in `namespace`, and opens the socket. `limit_bytes` is how
    /// much may ever be injected.
    pub fn prepare(namespace: &Namespace, interfaces: &[Interface], limit_bytes: u64) -> Result<Self> {
        let home = Namespace::own()?;
        let inside = links::list(&mut RouteSocket::open(namespace)?, namespace)?;
        let ends = links::host_ends(&mut RouteSocket::open(&home)?, &home, namespace, &inside)?;
        let end = |interface: &Interface| {
            let link = inside.iter().find(|link| link.name == interface.name)?;
            let end = ends.get(&link.index)?;
            let current = link.mac?;
            Some(End { index: end.index as i32, original: interface.mac.unwrap_or(current), current })
        };
        Ok(Self {
            socket: open(&home)?,
            ends: interfaces.iter().map(end).collect(),
            allowance: Allowance::new(limit_bytes),
            tally: Tally::default(),
            scratch: Vec::new(),
        })
    }

    /// Injects one frame, or drops it.
    pub fn inject(&mut self, arrival: &Arrival) {
        match self.try_inject(arrival) {
            Ok(()) => self.tally.injected += 1,
            Err(why) => {
                self.tally.dropped += 1;
                tracing::debug!(interface = arrival.interface, "frame dropped: {why}");
            }
        }
    }

    /// What became of the frames so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    fn try_inject(&mut self, arrival: &Arrival) -> std::result::Result<(), &'static str> {
        let end = self.ends.get(arrival.interface as usize).and_then(Option::as_ref);
        let end = end.ok_or("its interface has no end on this host")?;
        arrival.check(end.original)?;
        if !self.allowance.take(arrival) {
            return Err("beyond the limit");
        }
        let (destination, rest) =
            arrival.contents.split_first_chunk::<6>().ok_or("shorter than its header")?;
        let destination = if arrival.is_unicast() { end.current.0 } else { *destination };
        self.scratch.clear();
        self.scratch.extend_from_slice(&arrival.offload);
        self.scratch.extend_from_slice(&destination);
        self.scratch.extend_from_slice(rest);
        let protocol = rest.get(6..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_be_bytes);
        match packet::send_frame(&self.socket, end.index, protocol, &self.scratch) {
            Ok(_) => Ok(()),
            Err(errno) => Err(errno.desc()),
        }
    }
}

fn open(home: &Namespace) -> Result<OwnedFd> {
    // Protocol 0: the socket receives nothing.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let opened = socket(AddressFamily::Packet, SockType::Raw, flags, None).and_then(|socket| {
        packet::set_offload_header(&socket)?;
        setsockopt(&socket, sockopt::SndBuf, &SEND_BYTES)?;
        Ok(socket)
    });
    opened.map_err(|errno| Error::Socket {
        kind: "packet",
        namespace: home.to_string(),
        source: errno.into(),
    })
}
