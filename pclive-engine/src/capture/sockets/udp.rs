//! UDP sockets at the source. A datagram of length zero behind another one cannot be peeked, and is lost, as UDP
//! may lose it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use super::queue::{Message, Peek};
use super::tcp::{local_address, refuse_link_local, remote_address};
use super::{Connections, Identity, Mode, Reading, SocketRefusal, UnixDiag};
use crate::model::socket::{Datagram, SocketKind};
use crate::sys::socket::{get_int, set_int};

/// Largest UDP payload.
const DATAGRAM: usize = 65_535;
/// More datagrams than any receive buffer holds.
const LIMIT: usize = 1 << 20;

pub(super) fn capture(
    fd: &OwnedFd,
    identity: &Identity,
    diag: &UnixDiag,
    Reading { mode, connections }: Reading,
) -> Result<SocketKind, SocketRefusal> {
    let (local, peer) = (local_address(fd)?, remote_address(fd)?);
    if let (Mode::Check, Some(local), None) = (mode, local, peer) {
        refuse_member(local, &diag.multicast_groups())?;
    }
    for address in [local, peer].into_iter().flatten() {
        refuse_link_local(address)?;
    }
    if connections == Connections::Close
        && let (Some(own), Some(_)) = (local, peer)
        && !own.ip().to_canonical().is_loopback()
    {
        // Connected again, it gets the address that leads to its peer there. What has come to the old one is lost.
        let local = Some(SocketAddr::new(unspecified(own.ip()), own.port()));
        return Ok(SocketKind::Udp { family: identity.family, local, peer, queue: Vec::new() });
    }
    let queue = match (mode, local) {
        (Mode::Dump, Some(local)) => read_queue(fd, identity.family, local)
            .map_err(|e| SocketRefusal::failed("peek its datagrams", e))?,
        (Mode::Dump, None) | (Mode::Check, _) => Vec::new(),
    };
    Ok(SocketKind::Udp { family: identity.family, local, peer, queue })
}

fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// The kernel does not tell which socket has joined a group: each that could receive from it is refused.
fn refuse_member(local: SocketAddr, groups: &[IpAddr]) -> Result<(), SocketRefusal> {
    let receives = |group: &&IpAddr| match (local.ip(), **group) {
        (IpAddr::V4(ip), IpAddr::V4(group)) => ip.is_unspecified() || ip == group,
        (IpAddr::V6(ip), group) => ip.is_unspecified() || ip == group,
        (IpAddr::V4(_), IpAddr::V6(_)) => false,
    };
    match groups.iter().find(receives) {
        None => Ok(()),
        Some(group) => Err(SocketRefusal::lasting(
            format!("UDP socket {local} that may be a member of multicast group {group}"),
            "the application must leave its multicast groups before a migration",
        )),
    }
}

fn read_queue(fd: &OwnedFd, family: i32, local: SocketAddr) -> Result<Vec<Datagram>, Errno> {
    let mut buffer = vec![0; DATAGRAM];
    let mut queue = Vec::new();
    let peek = Peek::start(fd)?;
    let destinations = Destinations::ask(fd, family, local)?;
    while let Some(message) = peek.next(&mut buffer)? {
        if queue.len() == LIMIT {
            return Err(Errno::EFBIG);
        }
        queue.extend(datagram(message, local));
    }
    drop(destinations);
    Ok(queue)
}

/// `None`: a message without a sender cannot be built again.
fn datagram(message: Message, local: SocketAddr) -> Option<Datagram> {
    let ip = message.to.unwrap_or_else(|| local.ip());
    Some(Datagram {
        payload: message.payload,
        from: message.from?,
        to: SocketAddr::new(unwildcard(ip), local.port()),
    })
}

/// A datagram to an unknown address of this host: the loopback one reaches a socket that is bound to all.
fn unwildcard(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        IpAddr::V4(_) | IpAddr::V6(_) => ip,
    }
}

/// `IP_PKTINFO` set for a while, so that a socket bound to all addresses tells to which one a datagram went.
struct Destinations<'a> {
    fd: &'a OwnedFd,
    option: Option<(i32, i32)>,
}

impl<'a> Destinations<'a> {
    fn ask(fd: &'a OwnedFd, family: i32, local: SocketAddr) -> Result<Self, Errno> {
        let (level, name) = match family {
            libc::AF_INET6 => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
            _ => (libc::IPPROTO_IP, libc::IP_PKTINFO),
        };
        let needed = local.ip().is_unspecified() && get_int(fd.as_fd(), level, name)? == 0;
        if needed {
            set_int(fd.as_fd(), level, name, 1)?;
        }
        Ok(Self { fd, option: needed.then_some((level, name)) })
    }
}

impl Drop for Destinations<'_> {
    fn drop(&mut self) {
        if let Some((level, name)) = self.option
            && let Err(errno) = set_int(self.fd.as_fd(), level, name, 0)
        {
            tracing::error!(%errno, "cannot put IP_PKTINFO of a socket back");
        }
    }
}
