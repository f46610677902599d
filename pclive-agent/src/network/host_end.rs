//! The host's ends of the veth pairs that the agent makes: their names, and how they are known again.
//!
//! Invariants: the name is a digest of the container's id and the interface's name, so that every agent computes
//! the same one; the link's alias says whose it is, and only a link with that alias is ever deleted.

use super::changes::{self, Handle, LinkChange};
use super::error::{Error, Result};
use super::interface::Mac;
use super::links::{self, Link};
use super::namespace::Namespace;
use super::netlink::RouteSocket;

/// Of every host end's name; 11 hexadecimal digits follow: 15 bytes, the most that the kernel takes.
pub const HOST_END_PREFIX: &str = "pcl-";
/// The alias has at most 255 bytes.
const MAX_ID_BYTES: usize = 128;

/// The name of the host's end of a container's interface.
pub(super) fn name(container: &str, interface: &str) -> String {
    format!("{HOST_END_PREFIX}{:011x}", digest(container, interface) >> 20)
}

/// A MAC for the host's end that is higher than others: a bridge without an address of its own takes the lowest of
/// its ports, and must not change. Two bytes are fixed, because one port of 64 with a random address has the first.
pub(super) fn mac(container: &str, interface: &str) -> Mac {
    let [a, b, c, d, ..] = digest(container, interface).to_be_bytes();
    Mac([0xfe, 0xff, a, b, c, d])
}

/// The alias of a host end: the mark by which the agent knows its own.
pub(super) fn alias(container: &str) -> String {
    if container.len() <= MAX_ID_BYTES {
        format!("pclive {container}")
    } else {
        format!("pclive {:016x}", digest(container, ""))
    }
}

/// The id of the lock of a container's host ends, which is in one namespace with those of others: no container's id
/// has a slash.
pub(super) fn lock_id(container: &str) -> String {
    format!("{container}/host")
}

fn digest(container: &str, interface: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(format!("{container}\0{interface}").as_bytes())
}

/// Deletes every host end of a container's interfaces in the agent's namespace. How many there were. A name that
/// somebody else's link has is left alone.
pub(super) fn remove(container: &str) -> Result<usize> {
    let home = Namespace::own()?;
    let mut socket = RouteSocket::open(&home)?;
    let own = owned(links::list(&mut socket, &home)?, container);
    own.iter().try_for_each(|handle| changes::delete_link(&mut socket, handle))?;
    Ok(own.len())
}

fn owned(links: Vec<Link>, container: &str) -> Vec<Handle> {
    let mark = alias(container);
    let own = links.into_iter().filter(|link| link.name.starts_with(HOST_END_PREFIX) && link.alias == mark);
    own.map(|link| Handle { index: link.index, name: link.name }).collect()
}

/// Makes room for a new host end: what a dead agent left is deleted.
pub(super) fn clear(
    socket: &mut RouteSocket,
    home: &Namespace,
    container: &str,
    host_end: &str,
) -> Result<()> {
    match links::find(socket, home, host_end)? {
        None => Ok(()),
        Some(link) if link.alias == alias(container) => {
            changes::delete_link(socket, &Handle { index: link.index, name: link.name })
        }
        Some(_) => Err(Error::NameTaken { host_end: host_end.to_owned() }),
    }
}

/// Marks a new host end, silences its own IPv6, attaches it to the bridge and brings it up.
pub(super) fn attach(
    socket: &mut RouteSocket,
    host_end: &Handle,
    container: &str,
    bridge: u32,
) -> Result<()> {
    let changes = [
        LinkChange::Alias(alias(container)),
        LinkChange::AddressGeneration(changes::GENERATE_NO_ADDRESS),
        LinkChange::Bridge(bridge),
        LinkChange::Up,
    ];
    changes.iter().try_for_each(|change| changes::link(socket, host_end, change))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_differ_by_container_and_interface() {
        let names = [name("a", "eth0"), name("a", "eth1"), name("b", "eth0"), name("ae", "th0")];
        assert!(names.iter().all(|name| name.len() == 15), "{names:?}");
        let distinct: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
    }

    #[test]
    fn host_end_mac_is_local_unicast_and_high() {
        assert_eq!(mac("a", "eth0").0[..2], [0xfe, 0xff]);
        assert_eq!(mac("a", "eth0").0[0] & 0b11, 0b10);
    }

    #[test]
    fn alias_of_a_long_id_fits() {
        assert!(alias(&"x".repeat(1000)).len() < 64);
    }
}
