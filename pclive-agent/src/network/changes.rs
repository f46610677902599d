//! Changes of interfaces, addresses, routes and neighbours in one namespace, one request each.
//!
//! Kernel: rtnetlink NEW/SET/DEL messages. "Already there" when something is made, and "not there" when it is
//! deleted, are not errors: everything may be done twice.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, CacheInfo,
};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::capture::MAIN_TABLE;
use super::error::{Error, Result};
use super::interface::{Address, Mac, Neighbour, Route};
use super::namespace::Namespace;
use super::netlink::RouteSocket;

/// IN6_ADDR_GEN_MODE_NONE: the kernel makes no link-local address.
pub(super) const GENERATE_NO_ADDRESS: u8 = 1;

/// An interface by what the kernel needs and what a message names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Handle {
    pub(super) index: u32,
    pub(super) name: String,
}

/// A property of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LinkChange {
    Up,
    Down,
    Mac(Mac),
    Mtu(u32),
    /// No ARP and no ND.
    Noarp,
    /// Index of the bridge.
    Bridge(u32),
    Alias(String),
    /// IN6_ADDR_GEN_MODE_*.
    AddressGeneration(u8),
}

impl LinkChange {
    fn verb(&self) -> &'static str {
        match self {
            Self::Up => "bring up",
            Self::Down => "take down",
            Self::Mac(_) => "set the MAC address of",
            Self::Mtu(_) => "set the MTU of",
            Self::Noarp => "turn off address resolution on",
            Self::Bridge(_) => "attach to its bridge",
            Self::Alias(_) => "label",
            Self::AddressGeneration(_) => "set the address generation of",
        }
    }
}

/// Changes a link.
pub(super) fn link(socket: &mut RouteSocket, handle: &Handle, change: &LinkChange) -> Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = handle.index;
    let mut flag = |flag, on| {
        message.header.change_mask |= flag;
        if on {
            message.header.flags |= flag;
        }
    };
    match change {
        LinkChange::Up => flag(LinkFlags::Up, true),
        LinkChange::Down => flag(LinkFlags::Up, false),
        LinkChange::Noarp => flag(LinkFlags::Noarp, true),
        LinkChange::Mac(mac) => message.attributes.push(LinkAttribute::Address(mac.0.to_vec())),
        LinkChange::Mtu(mtu) => message.attributes.push(LinkAttribute::Mtu(*mtu)),
        LinkChange::Bridge(index) => message.attributes.push(LinkAttribute::Controller(*index)),
        LinkChange::Alias(alias) => message.attributes.push(LinkAttribute::IfAlias(alias.clone())),
        LinkChange::AddressGeneration(mode) => {
            let inet6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode((*mode).into())]);
            message.attributes.push(LinkAttribute::AfSpecUnspec(vec![inet6]));
        }
    }
    socket.change(RouteNetlinkMessage::SetLink(message), 0).map_err(|source| Error::Link {
        verb: change.verb(),
        interface: handle.name.clone(),
        source,
    })
}

/// [`link`], but a link that is gone needs no change: for taking things back.
pub(super) fn link_if_there(socket: &mut RouteSocket, handle: &Handle, change: &LinkChange) -> Result<()> {
    match link(socket, handle, change) {
        Err(Error::Link { source, .. }) if is(&source, Errno::ENODEV) => Ok(()),
        done => done,
    }
}

/// The end of a new veth pair.
pub(super) struct VethEnd<'a> {
    pub(super) name: &'a str,
    /// None: a random one.
    pub(super) mac: Option<Mac>,
}

/// Makes a veth pair, both ends down: `near` in the socket's namespace, `far` under its final name in `inside`.
pub(super) fn create_veth(
    socket: &mut RouteSocket,
    near: &VethEnd<'_>,
    far: &VethEnd<'_>,
    inside: &Namespace,
    mtu: u32,
) -> Result<()> {
    let mut peer = LinkMessage::default();
    peer.attributes = end_attributes(far, mtu);
    peer.attributes.push(LinkAttribute::NetNsFd(inside.as_fd().as_raw_fd()));
    let mut message = LinkMessage::default();
    message.attributes = end_attributes(near, mtu);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    create_link(socket, message, far.name)
}

fn create_link(socket: &mut RouteSocket, message: LinkMessage, interface: &str) -> Result<()> {
    socket
        .change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
        .map_err(|source| Error::Link { verb: "create", interface: interface.to_owned(), source })
}

fn end_attributes(end: &VethEnd<'_>, mtu: u32) -> Vec<LinkAttribute> {
    let mut attributes = vec![LinkAttribute::IfName(end.name.to_owned()), LinkAttribute::Mtu(mtu)];
    attributes.extend(end.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    attributes
}

/// Deletes a link, and the other end of a veth with it.
pub(super) fn delete_link(socket: &mut RouteSocket, handle: &Handle) -> Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = handle.index;
    tolerate(socket.change(RouteNetlinkMessage::DelLink(message), 0), &[Errno::ENODEV])
        .map_err(|source| Error::Link { verb: "delete", interface: handle.name.clone(), source })
}

/// Adds an address, without duplicate address detection: its other user is the source, which is about to stop.
pub(super) fn add_address(socket: &mut RouteSocket, handle: &Handle, address: &Address) -> Result<()> {
    let mut message = address_message(handle, address);
    let mut flags = AddressFlags::empty();
    flags.set(AddressFlags::Nodad, address.ip.is_ipv6());
    flags.set(AddressFlags::Noprefixroute, address.no_prefix_route);
    message.header.flags = AddressHeaderFlags::from_bits_truncate(flags.bits() as u8);
    message.attributes.push(AddressAttribute::Flags(flags));
    message.attributes.extend(address.broadcast.map(AddressAttribute::Broadcast));
    if let Some(lifetime) = address.lifetime {
        let mut info = CacheInfo::default();
        info.ifa_valid = lifetime.valid_seconds;
        info.ifa_preferred = lifetime.preferred_seconds;
        message.attributes.push(AddressAttribute::CacheInfo(info));
    }
    let done = socket.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL);
    tolerate(done, &[Errno::EEXIST]).map_err(|source| address_error("add", handle, address, source))
}

/// Deletes an address.
pub(super) fn delete_address(socket: &mut RouteSocket, handle: &Handle, address: &Address) -> Result<()> {
    let done = socket.change(RouteNetlinkMessage::DelAddress(address_message(handle, address)), 0);
    tolerate(done, &[Errno::EADDRNOTAVAIL, Errno::ENODEV])
        .map_err(|source| address_error("delete", handle, address, source))
}

fn address_message(handle: &Handle, address: &Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.ip);
    message.header.prefix_len = address.prefix;
    message.header.scope = address.scope.into();
    message.header.index = handle.index;
    message.attributes.push(AddressAttribute::Local(address.ip));
    message.attributes.push(AddressAttribute::Address(address.peer.unwrap_or(address.ip)));
    message
}

fn address_error(verb: &'static str, handle: &Handle, address: &Address, source: io::Error) -> Error {
    Error::Address { verb, address: address.to_string(), interface: handle.name.clone(), source }
}

/// Adds a route to the main table. Whether it was not there before.
pub(super) fn add_route(socket: &mut RouteSocket, handle: &Handle, route: &Route) -> Result<bool> {
    let message = RouteNetlinkMessage::NewRoute(route_message(handle, route));
    match socket.change(message, NLM_F_CREATE | NLM_F_EXCL) {
        Ok(()) => Ok(true),
        Err(error) if is(&error, Errno::EEXIST) => Ok(false),
        Err(source) => Err(route_error("add", handle, route, source)),
    }
}

/// Deletes a route of the main table.
pub(super) fn delete_route(socket: &mut RouteSocket, handle: &Handle, route: &Route) -> Result<()> {
    let done = socket.change(RouteNetlinkMessage::DelRoute(route_message(handle, route)), 0);
    tolerate(done, &[Errno::ESRCH, Errno::ENODEV, Errno::ENETDOWN])
        .map_err(|source| route_error("delete", handle, route, source))
}

fn route_message(handle: &Handle, route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(route.destination);
    header.destination_prefix_length = route.prefix;
    header.table = MAIN_TABLE;
    header.protocol = route.protocol.into();
    header.scope = route.scope.into();
    header.kind = RouteType::Unicast;
    header.flags.set(RouteFlags::Onlink, route.onlink);
    if route.prefix != 0 {
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(route.destination)));
    }
    message.attributes.extend(route.gateway.map(|ip| RouteAttribute::Gateway(ip.into())));
    message.attributes.extend(route.preferred_source.map(|ip| RouteAttribute::PrefSource(ip.into())));
    message.attributes.push(RouteAttribute::Oif(handle.index));
    if route.metric != 0 {
        message.attributes.push(RouteAttribute::Priority(route.metric));
    }
    message.attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    message
}

fn route_error(verb: &'static str, handle: &Handle, route: &Route, source: io::Error) -> Error {
    Error::Route { verb, route: route.to_string(), interface: handle.name.clone(), source }
}

/// Tells the kernel a neighbour's link-layer address. It is used at once and confirmed soon (NUD_STALE): a gateway
/// may have another MAC on this host.
pub(super) fn add_neighbour(socket: &mut RouteSocket, handle: &Handle, neighbour: &Neighbour) -> Result<()> {
    let mut message = neighbour_message(handle, neighbour);
    message.header.state =
        if neighbour.permanent { NeighbourState::Permanent } else { NeighbourState::Stale };
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(neighbour.mac.0.to_vec()));
    let done = socket.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE);
    done.map_err(|source| neighbour_error("add", handle, neighbour, source))
}

/// Forgets a neighbour.
pub(super) fn delete_neighbour(
    socket: &mut RouteSocket,
    handle: &Handle,
    neighbour: &Neighbour,
) -> Result<()> {
    let message = neighbour_message(handle, neighbour);
    let done = socket.change(RouteNetlinkMessage::DelNeighbour(message), 0);
    tolerate(done, &[Errno::ENOENT, Errno::ENODEV])
        .map_err(|source| neighbour_error("delete", handle, neighbour, source))
}

fn neighbour_message(handle: &Handle, neighbour: &Neighbour) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(neighbour.ip);
    message.header.ifindex = handle.index;
    message.attributes.push(NeighbourAttribute::Destination(neighbour.ip.into()));
    message
}

fn neighbour_error(verb: &'static str, handle: &Handle, neighbour: &Neighbour, source: io::Error) -> Error {
    Error::Neighbour { verb, neighbour: neighbour.ip, interface: handle.name.clone(), source }
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

/// Success also for the errnos that say there was nothing to do.
fn tolerate(done: io::Result<()>, harmless: &[Errno]) -> io::Result<()> {
    done.or_else(|error| if harmless.iter().any(|errno| is(&error, *errno)) { Ok(()) } else { Err(error) })
}
