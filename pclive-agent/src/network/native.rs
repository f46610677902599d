//! The network of a container that does not keep its connections: what the destination's runtime has given it.

use std::net::IpAddr;

use super::capture::capture;
use super::error::Result;
use super::interface::Interface;
use super::namespace::Namespace;

/// The interfaces of a created container whose original has `moved`: those that have addresses stay as they are, the
/// others become those of the original.
pub fn native(namespace: &Namespace, moved: &[Interface]) -> Result<Vec<Interface>> {
    let mut interfaces = capture(namespace)?;
    interfaces.retain(|interface| !interface.is_loopback() && lasting(interface).next().is_some());
    let missing = moved.iter().filter(|wanted| interfaces.iter().all(|other| other.name != wanted.name));
    let missing: Vec<Interface> = missing.cloned().collect();
    interfaces.extend(missing);
    Ok(interfaces)
}

/// Every address that others reach a container by.
pub fn addresses(interfaces: &[Interface]) -> impl Iterator<Item = IpAddr> {
    interfaces.iter().filter(|interface| !interface.is_loopback()).flat_map(lasting)
}

/// Addresses that somebody has given to an interface: not those that the kernel makes by itself.
fn lasting(interface: &Interface) -> impl Iterator<Item = IpAddr> {
    let given = interface.addresses.iter().filter(|address| address.lifetime.is_none());
    given.map(|address| address.ip).filter(|ip| match ip {
        IpAddr::V4(_) => true,
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    })
}
