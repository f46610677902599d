//! Interfaces as the peer protocol carries them. Everything that comes in is checked against a limit.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pclive_proto::peer;

use super::error::{Error, Result};
use super::interface::{Address, Interface, Kind, Lifetime, Mac, Neighbour, Route};

/// Interfaces a container may have.
const MAX_INTERFACES: usize = 64;
/// Addresses or neighbours an interface may have.
const MAX_ENTRIES: usize = 1024;
/// IFNAMSIZ without the NUL.
const MAX_NAME_BYTES: usize = 15;
/// The smallest MTU that an Ethernet device of Linux takes, and the largest.
const MTU: std::ops::RangeInclusive<u32> = 68..=65_536;

/// To the messages of the peer protocol.
pub fn encode(interfaces: &[Interface]) -> Vec<peer::Interface> {
    interfaces.iter().map(encode_interface).collect()
}

/// From the peer's messages; [`Error::Malformed`] names the first that cannot be.
pub fn decode(messages: &[peer::Interface]) -> Result<Vec<Interface>> {
    if messages.len() > MAX_INTERFACES {
        return Err(Error::Malformed { interface: String::new(), reason: "too many interfaces" });
    }
    messages
        .iter()
        .map(|message| {
            decode_interface(message).map_err(|reason| Error::Malformed {
                interface: message.name.chars().take(MAX_NAME_BYTES).collect(),
                reason,
            })
        })
        .collect()
}

fn encode_interface(interface: &Interface) -> peer::Interface {
    peer::Interface {
        name: interface.name.clone(),
        mac: interface.mac.map(|mac| mac.0.to_vec().into()).unwrap_or_default(),
        mtu: interface.mtu,
        addresses: interface.addresses.iter().map(encode_address).collect(),
        routes: interface.routes.iter().map(encode_route).collect(),
        kind: interface.kind.name().to_owned(),
        up: interface.up,
        no_arp: !interface.arp,
        no_ipv6: !interface.ipv6,
        address_generation: interface.address_generation.map(u32::from),
        neighbours: interface.neighbours.iter().map(encode_neighbour).collect(),
    }
}

fn encode_address(address: &Address) -> peer::Address {
    peer::Address {
        ip: bytes_of(address.ip),
        prefix: address.prefix.into(),
        scope: address.scope.into(),
        broadcast: address.broadcast.map(|ip| bytes_of(ip.into())).unwrap_or_default(),
        peer: address.peer.map(bytes_of).unwrap_or_default(),
        valid_seconds: address.lifetime.map_or(0, |lifetime| lifetime.valid_seconds),
        preferred_seconds: address.lifetime.map_or(0, |lifetime| lifetime.preferred_seconds),
        no_prefix_route: address.no_prefix_route,
    }
}

fn encode_route(route: &Route) -> peer::Route {
    let default = route.prefix == 0 && route.destination.is_unspecified();
    peer::Route {
        destination: if default { Default::default() } else { bytes_of(route.destination) },
        prefix: route.prefix.into(),
        gateway: route.gateway.map(bytes_of).unwrap_or_default(),
        preferred_source: route.preferred_source.map(bytes_of).unwrap_or_default(),
        metric: route.metric,
        ipv6: route.destination.is_ipv6(),
        scope: route.scope.into(),
        protocol: route.protocol.into(),
        onlink: route.onlink,
        mtu: route.mtu.unwrap_or_default(),
    }
}

fn encode_neighbour(neighbour: &Neighbour) -> peer::Neighbour {
    peer::Neighbour {
        ip: bytes_of(neighbour.ip),
        mac: neighbour.mac.0.to_vec().into(),
        permanent: neighbour.permanent,
    }
}

fn bytes_of<T: From<Vec<u8>>>(ip: IpAddr) -> T {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec().into(),
        IpAddr::V6(ip) => ip.octets().to_vec().into(),
    }
}

/// Why a message cannot be.
type Checked<T> = std::result::Result<T, &'static str>;

fn decode_interface(message: &peer::Interface) -> Checked<Interface> {
    let name = valid_name(&message.name)?;
    if !MTU.contains(&message.mtu) {
        return Err("the MTU is out of range");
    }
    let counts = [message.addresses.len(), message.routes.len(), message.neighbours.len()];
    if counts.into_iter().any(|count| count > MAX_ENTRIES) {
        return Err("too many addresses, routes or neighbours");
    }
    let kind = Kind::named(&message.kind);
    if (kind == Kind::Loopback) != (name == "lo") {
        return Err("lo is the loopback, and nothing else is");
    }
    Ok(Interface {
        name: name.to_owned(),
        kind,
        mac: if message.mac.is_empty() { None } else { Some(decode_mac(&message.mac)?) },
        mtu: message.mtu,
        up: message.up,
        arp: !message.no_arp,
        ipv6: !message.no_ipv6,
        address_generation: message.address_generation.map(small).transpose()?,
        addresses: message.addresses.iter().map(decode_address).collect::<Checked<_>>()?,
        routes: message.routes.iter().map(decode_route).collect::<Checked<_>>()?,
        neighbours: message.neighbours.iter().map(decode_neighbour).collect::<Checked<_>>()?,
    })
}

/// The kernel's own rule (dev_valid_name), and no formatting character: the kernel would make up a number.
fn valid_name(name: &str) -> Checked<&str> {
    let refused = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() > MAX_NAME_BYTES || matches!(name, "." | "..") || name.contains(refused)
    {
        return Err("the name is not one of an interface");
    }
    Ok(name)
}

fn decode_address(message: &peer::Address) -> Checked<Address> {
    let ip = decode_ip(&message.ip)?;
    let peer = optional(&message.peer)?;
    if peer.is_some_and(|peer| peer.is_ipv4() != ip.is_ipv4()) {
        return Err("an address and its peer are of different families");
    }
    let broadcast = match optional(&message.broadcast)? {
        Some(IpAddr::V6(_)) => return Err("a broadcast address is not IPv4"),
        Some(IpAddr::V4(ip)) => Some(ip),
        None => None,
    };
    let lifetime = Lifetime {
        valid_seconds: message.valid_seconds,
        preferred_seconds: message.preferred_seconds.min(message.valid_seconds),
    };
    Ok(Address {
        ip,
        prefix: decode_prefix(message.prefix, ip)?,
        scope: small(message.scope)?,
        broadcast,
        peer,
        lifetime: (message.valid_seconds != 0).then_some(lifetime),
        no_prefix_route: message.no_prefix_route,
    })
}

fn decode_route(message: &peer::Route) -> Checked<Route> {
    let unspecified: IpAddr =
        if message.ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let destination = optional(&message.destination)?.unwrap_or(unspecified);
    let gateway = optional(&message.gateway)?;
    let preferred_source = optional(&message.preferred_source)?;
    let families = [Some(destination), gateway, preferred_source];
    if families.into_iter().flatten().any(|ip| ip.is_ipv6() != message.ipv6) {
        return Err("a route mixes address families");
    }
    Ok(Route {
        prefix: decode_prefix(message.prefix, destination)?,
        destination,
        gateway,
        preferred_source,
        metric: message.metric,
        scope: small(message.scope)?,
        protocol: small(message.protocol)?,
        onlink: message.onlink,
        mtu: (message.mtu != 0).then_some(message.mtu),
    })
}

fn decode_neighbour(message: &peer::Neighbour) -> Checked<Neighbour> {
    Ok(Neighbour {
        ip: decode_ip(&message.ip)?,
        mac: decode_mac(&message.mac)?,
        permanent: message.permanent,
    })
}

fn decode_mac(bytes: &[u8]) -> Checked<Mac> {
    bytes.try_into().map(Mac).map_err(|_| "a MAC address is not 6 bytes")
}

fn optional(bytes: &[u8]) -> Checked<Option<IpAddr>> {
    if bytes.is_empty() { Ok(None) } else { decode_ip(bytes).map(Some) }
}

fn decode_ip(bytes: &[u8]) -> Checked<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .map_err(|_| "an address is not 4 or 16 bytes")
}

fn decode_prefix(prefix: u32, ip: IpAddr) -> Checked<u8> {
    let most = if ip.is_ipv4() { 32 } else { 128 };
    if prefix > most { Err("a prefix is longer than its address") } else { small(prefix) }
}

fn small(value: u32) -> Checked<u8> {
    u8::try_from(value).map_err(|_| "a number is out of range")
}
