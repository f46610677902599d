//! Reads the network of a running container.
//!
//! Kernel: rtnetlink dumps of links, addresses, the main table's routes and the neighbours, from a socket inside
//! the namespace. Nothing is changed. Fails when something is there that could not be made again at the
//! destination, so that it is known before the freeze.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::LinkFlags;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::{Error, Result};
use super::interface::{Address, Interface, Lifetime, Mac, Neighbour, Route};
use super::links::{self, Link};
use super::namespace::Namespace;
use super::netlink::RouteSocket;

/// RT_TABLE_MAIN.
pub(super) const MAIN_TABLE: u8 = 254;

/// Every interface of the namespace in the kernel's order, `lo` included (its up state and the addresses beside
/// 127.0.0.1 and ::1). Unused fallback tunnels (`tunl0`, `sit0` ...) are left out.
pub fn capture(namespace: &Namespace) -> Result<Vec<Interface>> {
    let mut socket = RouteSocket::open(namespace)?;
    let links = links::list(&mut socket, namespace)?;
    let addresses = list_addresses(&mut socket, namespace)?;
    let routes = list_routes(&mut socket, namespace)?;
    let neighbours = list_neighbours(&mut socket, namespace)?;
    let interfaces = links.into_iter().filter(|link| !link.is_idle_tunnel()).map(|link| {
        let index = link.index;
        let mut interface = describe(link);
        interface.addresses = of(index, &addresses);
        interface.addresses.retain(|address| !is_own_loopback(address));
        interface.routes = of(index, &routes);
        interface.neighbours = of(index, &neighbours);
        interface
    });
    Ok(interfaces.collect())
}

/// The entries of one interface.
fn of<T: Clone>(index: u32, entries: &[(u32, T)]) -> Vec<T> {
    entries.iter().filter(|(owner, _)| *owner == index).map(|(_, entry)| entry.clone()).collect()
}

fn describe(link: Link) -> Interface {
    Interface {
        kind: link.kind(),
        mac: if link.flags.contains(LinkFlags::Loopback) { None } else { link.mac },
        mtu: link.mtu,
        up: link.is_up(),
        arp: !link.flags.contains(LinkFlags::Noarp),
        ipv6: link.ipv6,
        address_generation: link.address_generation,
        name: link.name,
        addresses: Vec::new(),
        routes: Vec::new(),
        neighbours: Vec::new(),
    }
}

/// 127.0.0.1/8 and ::1/128, which the kernel gives `lo` when it comes up.
fn is_own_loopback(address: &Address) -> bool {
    match address.ip {
        IpAddr::V4(ip) => ip == Ipv4Addr::LOCALHOST && address.prefix == 8,
        IpAddr::V6(ip) => ip == Ipv6Addr::LOCALHOST,
    }
}

/// Addresses with the index of their interface.
pub(super) fn list_addresses(socket: &mut RouteSocket, namespace: &Namespace) -> Result<Vec<(u32, Address)>> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let entries = dump(socket, namespace, &request, "addresses")?;
    Ok(entries.into_iter().filter_map(address).collect())
}

fn address(entry: RouteNetlinkMessage) -> Option<(u32, Address)> {
    let RouteNetlinkMessage::NewAddress(message) = entry else { return None };
    let (mut near, mut far, mut broadcast, mut lifetime) = (None, None, None, None);
    let mut flags = AddressFlags::empty();
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => near = Some(ip),
            AddressAttribute::Address(ip) => far = Some(ip),
            AddressAttribute::Broadcast(ip) => broadcast = Some(ip),
            AddressAttribute::Flags(bits) => flags = bits,
            AddressAttribute::CacheInfo(info) => lifetime = Some((info.ifa_valid, info.ifa_preferred)),
            _ => {}
        }
    }
    // IFA_LOCAL is there for IPv4 and for point-to-point addresses; IFA_ADDRESS is then the other end.
    let ip = near.or(far)?;
    let lifetime = lifetime.filter(|times| *times != (u32::MAX, u32::MAX));
    let address = Address {
        ip,
        prefix: message.header.prefix_len,
        scope: message.header.scope.into(),
        broadcast,
        peer: far.filter(|far| *far != ip),
        lifetime: lifetime
            .map(|(valid_seconds, preferred_seconds)| Lifetime { valid_seconds, preferred_seconds }),
        no_prefix_route: flags.contains(AddressFlags::Noprefixroute),
    };
    Some((message.header.index, address))
}

fn list_routes(socket: &mut RouteSocket, namespace: &Namespace) -> Result<Vec<(u32, Route)>> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let request = RouteNetlinkMessage::GetRoute(request);
        for entry in dump(socket, namespace, &request, "routes")? {
            let RouteNetlinkMessage::NewRoute(message) = entry else { continue };
            routes.extend(route(message)?);
        }
    }
    Ok(routes)
}

/// None for what the kernel makes itself and for other tables.
fn route(message: RouteMessage) -> Result<Option<(u32, Route)>> {
    let header = message.header;
    let made_by_kernel =
        header.protocol == RouteProtocol::Kernel || header.flags.contains(RouteFlags::Cloned);
    if header.table != MAIN_TABLE || made_by_kernel {
        return Ok(None);
    }
    let unspecified: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut route = Route {
        destination: unspecified,
        prefix: header.destination_prefix_length,
        gateway: None,
        preferred_source: None,
        metric: 0,
        scope: header.scope.into(),
        protocol: header.protocol.into(),
        onlink: header.flags.contains(RouteFlags::Onlink),
        mtu: None,
    };
    let (mut index, mut obstacle) = (None, None);
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(ip) => route.destination = address_of(&ip).unwrap_or(unspecified),
            RouteAttribute::Gateway(ip) => route.gateway = address_of(&ip),
            RouteAttribute::PrefSource(ip) => route.preferred_source = address_of(&ip),
            RouteAttribute::Priority(metric) => route.metric = metric,
            RouteAttribute::Oif(oif) => index = Some(oif),
            RouteAttribute::Metrics(metrics) => route.mtu = mtu_of(&metrics),
            RouteAttribute::MultiPath(_) => obstacle = Some("it has several next hops"),
            RouteAttribute::NhId(_) => obstacle = Some("it uses a next-hop object"),
            RouteAttribute::Via(_) => obstacle = Some("its gateway is of another address family"),
            RouteAttribute::Encap(_) => obstacle = Some("it encapsulates"),
            _ => {}
        }
    }
    if header.kind != RouteType::Unicast {
        obstacle = Some("it is not a unicast route");
    }
    match (obstacle, index) {
        (Some(reason), _) => Err(Error::UnsupportedRoute { route: route.to_string(), reason }),
        (None, index) => Ok(index.map(|index| (index, route))),
    }
}

fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

fn mtu_of(metrics: &[RouteMetric]) -> Option<u32> {
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) if *mtu != 0 => Some(*mtu),
        _ => None,
    })
}

/// Neighbours whose link-layer address is known, with the index of their interface.
pub(super) fn list_neighbours(
    socket: &mut RouteSocket,
    namespace: &Namespace,
) -> Result<Vec<(u32, Neighbour)>> {
    let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let entries = dump(socket, namespace, &request, "neighbours")?;
    Ok(entries.into_iter().filter_map(neighbour).collect())
}

fn neighbour(entry: RouteNetlinkMessage) -> Option<(u32, Neighbour)> {
    let RouteNetlinkMessage::NewNeighbour(message) = entry else { return None };
    let known = matches!(
        message.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
    );
    let (mut ip, mut mac) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => ip = Some(address.into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => ip = Some(address.into()),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok().map(Mac),
            _ => {}
        }
    }
    let permanent = message.header.state == NeighbourState::Permanent;
    let neighbour = Neighbour { ip: ip?, mac: mac?, permanent };
    known.then_some((message.header.ifindex, neighbour))
}

pub(super) fn dump(
    socket: &mut RouteSocket,
    namespace: &Namespace,
    request: &RouteNetlinkMessage,
    what: &'static str,
) -> Result<Vec<RouteNetlinkMessage>> {
    socket.dump(request).map_err(|source| Error::List { what, namespace: namespace.to_string(), source })
}
