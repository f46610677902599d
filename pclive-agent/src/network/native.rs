//! The network of a container that does not keep its connections: what the destination's runtime has given it.

use std::net::IpAddr;

use super::capture::capture;
use super::error::Result;
use super::interface::{Address, Interface};
use super::namespace::Namespace;

/// The interfaces of a created container whose original has `moved`: those that somebody has given addresses stay as they
/// are, the others become those of the original.
pub fn native(namespace: &Namespace, moved: &[Interface]) -> Result<Vec<Interface>> {
    let mut interfaces = capture(namespace)?;
    interfaces
        .retain(|interface| !interface.is_loopback() && interface.addresses.iter().any(Address::is_given));
    let missing = moved.iter().filter(|wanted| interfaces.iter().all(|other| other.name != wanted.name));
    let missing: Vec<Interface> = missing.cloned().collect();
    interfaces.extend(missing);
    Ok(interfaces)
}

/// Every address that others reach a container by.
pub fn addresses(interfaces: &[Interface]) -> impl Iterator<Item = IpAddr> {
    let outward = interfaces.iter().filter(|interface| !interface.is_loopback());
    outward
        .flat_map(|interface| &interface.addresses)
        .filter(|address| !address.is_link_local())
        .map(|address| address.ip)
}

/// Whether a container with `here` shares no address with its copy, which has `there`: what it has may be heard beside it.
pub fn differ(here: &[Interface], there: &[IpAddr]) -> bool {
    let mut own = addresses(here).peekable();
    own.peek().is_some() && own.all(|address| !there.contains(&address))
}
