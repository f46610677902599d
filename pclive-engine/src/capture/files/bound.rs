//! Sockets that are bound to an address of their own, where the container is to live with other addresses.

use std::net::{IpAddr, SocketAddr};

use super::collection::blocker;
use super::refusal::Refusal;
use super::{FilesError, Mode, Table, holder};
use crate::model::socket::SocketKind;
use crate::model::{Blocker, Descriptor, FileKind, OpenFile, Pid, Place, Vpid};

impl Table {
    /// Sockets of the running container that need an address which is none of `addresses`: they could not be bound.
    /// Wildcard and loopback addresses are everywhere. `processes` lists the live processes as they are now; what is found
    /// twice is told, as by [`Table::check`].
    pub fn bound_elsewhere<E: From<FilesError>>(
        &self,
        addresses: &[IpAddr],
        mut processes: impl FnMut() -> Result<Vec<(Pid, Vpid)>, E>,
    ) -> Result<Vec<Blocker>, E> {
        let mut found = self.bound(&processes()?, addresses)?;
        if !found.is_empty() {
            let again = self.bound(&processes()?, addresses)?;
            found.retain(|blocker| again.contains(blocker));
        }
        Ok(found)
    }

    fn bound(&self, processes: &[(Pid, Vpid)], addresses: &[IpAddr]) -> Result<Vec<Blocker>, FilesError> {
        let found = self.collect(processes, Mode::Check)?;
        let holders = holder::scan(processes, Mode::Check)?;
        let mut blockers = Vec::new();
        for file in &found.files {
            let Some(local) = bound_to(file).filter(|local| !is_there(*local, addresses)) else { continue };
            let leads_there = |entry: &&Descriptor| entry.file == file.id;
            let first = found
                .descriptors
                .iter()
                .find_map(|(vpid, descriptors)| Some((*vpid, descriptors.iter().find(leads_there)?.fd)));
            let Some((vpid, fd)) = first else { continue };
            // A process that has ended meanwhile is in nobody's way.
            let Some(holder) = holders.iter().find(|holder| holder.vpid == vpid) else { continue };
            let refusal = Refusal::new(
                format!(
                    "socket bound to {local}, an address that the container does not have at the destination"
                ),
                "let the program bind to the wildcard address, or give the container the same address there",
            );
            blockers.push(blocker(holder, Place::Descriptor(fd), refusal));
        }
        Ok(blockers)
    }
}

/// The address that the destination would bind it to.
fn bound_to(file: &OpenFile) -> Option<SocketAddr> {
    let FileKind::Socket(socket) = &file.kind else { return None };
    match &socket.kind {
        SocketKind::TcpListener { local, .. } => Some(*local),
        SocketKind::TcpClosed { bound, dead: false, .. } => *bound,
        SocketKind::Udp { local, .. } => *local,
        SocketKind::TcpClosed { dead: true, .. }
        | SocketKind::TcpConnection(_)
        | SocketKind::UnixPair { .. }
        | SocketKind::UnixSingle { .. } => None,
    }
}

fn is_there(local: SocketAddr, addresses: &[IpAddr]) -> bool {
    let ip = local.ip().to_canonical();
    ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || addresses.contains(&ip)
}
