//! Makes the source silent for good, after the commit.

use super::changes::{self, Handle, LinkChange};
use super::error::Result;
use super::host_end;
use super::interface::Interface;
use super::links;
use super::lock::remove_stale_lock;
use super::namespace::Namespace;
use super::netlink::RouteSocket;

/// Takes the container's interfaces down and their addresses away, so that nothing answers for them when the
/// namespace outlives the container, and deletes the host ends that the agent had made. Everything that is gone
/// already is no error; the first failure is the error, the rest is done all the same.
pub fn retire(namespace: &Namespace, container: &str, interfaces: &[Interface]) -> Result<()> {
    namespace.refuse_host()?;
    let mut socket = RouteSocket::open(namespace)?;
    let present = links::list(&mut socket, namespace)?;
    let mut first = Ok(());
    for interface in interfaces.iter().filter(|interface| !interface.is_loopback()) {
        let Some(link) = present.iter().find(|link| link.name == interface.name) else { continue };
        let handle = Handle { index: link.index, name: link.name.clone() };
        first = first.and(changes::link_if_there(&mut socket, &handle, &LinkChange::Down));
        for address in &interface.addresses {
            first = first.and(changes::delete_address(&mut socket, &handle, address));
        }
    }
    first.and(remove_host_ends(container).map(drop))
}

/// Deletes the host ends of the veth pairs that the agent had made for a container, and the lock of host ends that an
/// agent which died has left; how many ends there were. Also for a restarted agent, whose namespace handle is gone.
pub fn remove_host_ends(container: &str) -> Result<usize> {
    let removed = host_end::remove(container);
    unlock_host_ends(container).and(removed)
}

/// Deletes the lock of a container's host ends that an agent which died has left, if there is one.
pub fn unlock_host_ends(container: &str) -> Result<()> {
    remove_stale_lock(&Namespace::own()?, &host_end::lock_id(container))
}
