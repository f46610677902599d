//! Tells the link where the container is now.
//!
//! Without it peers and switches go on sending to the old host for seconds. Gratuitous ARP (request and reply) for
//! every IPv4 address, unsolicited neighbour advertisements for every IPv6 address, and a question to every
//! gateway and neighbour that came along, whose answer corrects a MAC that differs on this host.
//!
//! Kernel: one packet(7) socket opened inside the namespace before it is needed; frames are built in advance, so
//! that announcing is one sendto(2) a frame. They pass the egress hook: announce after [`super::Applied::open`].

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use pclive_engine::sys::packet;

use super::error::{Error, Result};
use super::frames::{self, ARP, IPV6, Operation};
use super::interface::{Interface, Mac};
use super::links::{self, Link};
use super::namespace::Namespace;
use super::netlink::RouteSocket;

/// When the announcement is made again, after the first: a frame may get lost, and a switch may learn late.
const REPEATS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];
/// Questions an interface may ask.
const MAX_QUESTIONS: usize = 64;

/// A frame and where it leaves.
struct Outgoing {
    interface: i32,
    name: String,
    protocol: u16,
    frame: Vec<u8>,
}

/// An announcement that is ready to be made.
pub struct Announcer {
    socket: OwnedFd,
    outgoing: Vec<Outgoing>,
}

impl Announcer {
    /// Opens the socket and builds the frames. The interfaces exist already (after [`super::apply`]); the MAC that
    /// is announced is the one that they have.
    pub fn prepare(namespace: &Namespace, interfaces: &[Interface]) -> Result<Self> {
        let present = links::list(&mut RouteSocket::open(namespace)?, namespace)?;
        // Protocol 0: the socket receives nothing.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let opened = namespace.run(|| socket(AddressFamily::Packet, SockType::Raw, flags, None))?;
        let socket = opened.map_err(|errno| Error::Socket {
            kind: "packet",
            namespace: namespace.to_string(),
            source: errno.into(),
        })?;
        let mut outgoing = Vec::new();
        for interface in interfaces.iter().filter(|interface| interface.up && interface.arp) {
            if let Some(link) = present.iter().find(|link| link.name == interface.name) {
                outgoing.extend(announcement(interface, link));
            }
        }
        Ok(Self { socket, outgoing })
    }

    /// Sends everything once. A full queue is no error: the announcement is made again. The first failure is the
    /// error, the rest is sent all the same.
    pub fn announce(&self) -> Result<()> {
        let mut first = Ok(());
        for Outgoing { interface, name, protocol, frame } in &self.outgoing {
            let sent = match packet::send_frame(&self.socket, *interface, *protocol, frame) {
                Ok(_) | Err(nix::errno::Errno::ENOBUFS | nix::errno::Errno::EAGAIN) => Ok(()),
                Err(source) => Err(Error::Announce { interface: name.clone(), source }),
            };
            first = first.and(sent);
        }
        first
    }

    /// Announces again after 100 ms and after 1 s. To be spawned; may be aborted at any time.
    pub async fn repeat(self) -> Result<()> {
        for pause in REPEATS {
            tokio::time::sleep(pause).await;
            self.announce()?;
        }
        Ok(())
    }
}

fn announcement(interface: &Interface, link: &Link) -> Vec<Outgoing> {
    // Addresses without a MAC need no resolution.
    let Some(mac) = link.mac else { return Vec::new() };
    let mut built = Vec::new();
    for address in &interface.addresses {
        match address.ip {
            IpAddr::V4(ip) => built.extend(
                [Operation::Request, Operation::Reply]
                    .map(|operation| (ARP, frames::gratuitous_arp(operation, mac, ip))),
            ),
            IpAddr::V6(ip) => built.push((IPV6, frames::unsolicited_advertisement(mac, ip))),
        }
    }
    built.extend(questions(interface, mac));
    let outgoing = built.into_iter().map(|(protocol, frame)| Outgoing {
        interface: link.index as i32,
        name: link.name.clone(),
        protocol,
        frame,
    });
    outgoing.collect()
}

/// Asks gateways first, then neighbours, from an address of the interface of the same family.
fn questions(interface: &Interface, mac: Mac) -> Vec<(u16, Vec<u8>)> {
    let gateways = interface.routes.iter().filter_map(|route| route.gateway);
    let known = interface.neighbours.iter().filter(|known| !known.permanent).map(|known| known.ip);
    let mut asked = BTreeSet::new();
    let targets = gateways.chain(known).filter(|ip| asked.insert(*ip));
    let frames = targets.filter_map(|target| match target {
        IpAddr::V4(target) => source_v4(interface).map(|ip| (ARP, frames::arp_request(mac, ip, target))),
        IpAddr::V6(target) => {
            source_v6(interface, target).map(|ip| (IPV6, frames::solicitation(mac, ip, target)))
        }
    });
    frames.take(MAX_QUESTIONS).collect()
}

fn source_v4(interface: &Interface) -> Option<Ipv4Addr> {
    interface.addresses.iter().find_map(|address| match address.ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    })
}

/// Link-local asks link-local; else any.
fn source_v6(interface: &Interface, target: Ipv6Addr) -> Option<Ipv6Addr> {
    let mut own = interface.addresses.iter().filter_map(|address| match address.ip {
        IpAddr::V6(ip) => Some(ip),
        IpAddr::V4(_) => None,
    });
    let first = own.clone().next();
    own.find(|ip| ip.is_unicast_link_local() == target.is_unicast_link_local()).or(first)
}
