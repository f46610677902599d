//! Silence: nothing enters or leaves the interfaces of a container.
//!
//! At the source the lock is engaged in the freeze, so that no packet meets a socket whose state is being read and
//! no RST escapes; at the destination it is engaged before the interfaces come up, so that the copy never answers
//! ARP or ND for the address while the original runs, and no switch learns a wrong port. `lo` is never locked.
//! There the host ends of its veth pairs are locked too, in the agent's namespace: a namespace that ends loses its
//! tables before its interfaces go down, and may say a last word in between (a neighbour solicitation, say).
//!
//! Kernel: table `netdev pclive-<id>` in the namespace of the devices with two base chains without rules and
//! policy drop, at ingress (Linux 4.2) and egress (5.16), made and deleted in one nfnetlink transaction each.
//! Everything that can fail or is slow (socket, module loading, a check of the transaction) is in
//! [`Lock::prepare`]; [`Lock::engage`] and [`Lock::release`] are one send and one receive each.
//!
//! Failure: a lock that is dropped is released. [`Tenure::Agent`] ends also when the agent dies: the kernel deletes
//! the table with the socket (NFT_TABLE_F_OWNER). [`Lock::outlive_agent`] ends that, for the commit.

use super::error::{Error, Result};
use super::interface::Interface;
use super::links;
use super::namespace::Namespace;
use super::netlink::{FilterSocket, RouteSocket};
use super::nftables::{Batch, Hook, Owner, Policy};

/// What the name of every table of ours starts with.
pub(super) const TABLE_PREFIX: &str = "pclive-";
/// Longer ids are hashed: a table's name has at most 255 bytes.
const MAX_ID_BYTES: usize = 128;

/// What happens to an engaged lock when the agent dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tenure {
    /// It is released: the source goes on.
    Agent,
    /// It stays until its namespace ends, a lock with the same id takes its place, or [`remove_stale_lock`]: the
    /// destination is silent.
    Namespace,
}

/// A transaction and the message whose acknowledgement ends it.
struct Transaction {
    bytes: Vec<u8>,
    last: u32,
}

/// The right to silence a container. Dropped: released.
pub struct Lock {
    devices: Vec<String>,
    /// None when there is nothing to lock (only `lo`).
    socket: Option<FilterSocket>,
    table: String,
    engage: Transaction,
    outlive: Transaction,
    release: Transaction,
    engaged: bool,
}

impl Lock {
    /// Everything but the lock itself. `id` (the container's) names the table; what a dead agent left under that
    /// name is replaced when the lock is engaged.
    pub fn prepare(
        namespace: &Namespace,
        id: &str,
        interfaces: &[Interface],
        tenure: Tenure,
    ) -> Result<Self> {
        Self::on(namespace, id, lockable(interfaces), tenure)
    }

    /// The same for these devices, whatever they are.
    pub(super) fn on(namespace: &Namespace, id: &str, devices: Vec<String>, tenure: Tenure) -> Result<Self> {
        let table = table_name(id);
        let held = format!("{table}-held");
        let owner = match tenure {
            Tenure::Agent => Owner::Socket,
            Tenure::Namespace => Owner::Nobody,
        };
        let socket = if devices.is_empty() { None } else { Some(FilterSocket::open(namespace)?) };
        if let Some(socket) = &socket {
            require(namespace, &devices)?;
            check(socket, &table, &devices)?;
        }
        let (engage, outlive) = (
            silence(&table, &[&table, &held], owner, &devices),
            silence(&held, &[&held], Owner::Nobody, &devices),
        );
        Ok(Self {
            devices,
            socket,
            engage,
            outlive,
            release: destroy(&[&table, &held]),
            table,
            engaged: false,
        })
    }

    /// Just before it is engaged, if it was prepared a while ago: the interfaces are there still.
    pub fn recheck(&self, namespace: &Namespace) -> Result<()> {
        if self.socket.is_some() { require(namespace, &self.devices) } else { Ok(()) }
    }

    /// From the return on, nothing passes. Doing it twice is doing it once.
    pub fn engage(&mut self) -> Result<()> {
        if !self.engaged {
            self.transact(&self.engage, "create")?;
            self.engaged = true;
        }
        Ok(())
    }

    /// Makes an engaged lock stay when the agent dies, whatever its tenure; [`Lock::release`] still ends it. For
    /// the source, just before it commits: from there on it must never speak again by itself.
    pub fn outlive_agent(&mut self) -> Result<()> {
        self.engage()?;
        self.transact(&self.outlive, "keep")
    }

    /// From the return on, everything passes. Doing it twice is doing it once.
    pub fn release(&mut self) -> Result<()> {
        if self.engaged {
            self.transact(&self.release, "delete")?;
            self.engaged = false;
        }
        Ok(())
    }

    /// Leaves an engaged lock in place for good: the namespace is about to end, or is no longer this agent's. With
    /// [`Tenure::Agent`], only after [`Lock::outlive_agent`].
    pub fn abandon(mut self) {
        self.engaged = false;
    }

    /// Whether nothing passes.
    pub fn is_engaged(&self) -> bool {
        self.engaged
    }

    fn transact(&self, transaction: &Transaction, verb: &'static str) -> Result<()> {
        let Some(socket) = &self.socket else { return Ok(()) };
        socket.transact(&transaction.bytes, transaction.last).map_err(|source| Error::Filter {
            verb,
            table: self.table.clone(),
            source,
        })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::warn!(error = &error as &dyn std::error::Error, "network lock not released");
        }
    }
}

/// Deletes the lock that an agent which died left in a namespace, if there is one.
pub fn remove_stale_lock(namespace: &Namespace, id: &str) -> Result<()> {
    let table = table_name(id);
    let transaction = destroy(&[&table, &format!("{table}-held")]);
    FilterSocket::open(namespace)?
        .transact(&transaction.bytes, transaction.last)
        .map_err(|source| Error::Filter { verb: "delete", table, source })
}

/// The names of the interfaces that a lock covers.
fn lockable(interfaces: &[Interface]) -> Vec<String> {
    let outward = interfaces.iter().filter(|interface| !interface.is_loopback());
    outward.map(|interface| interface.name.clone()).collect()
}

fn table_name(id: &str) -> String {
    if id.len() <= MAX_ID_BYTES {
        format!("{TABLE_PREFIX}{id}")
    } else {
        format!("{TABLE_PREFIX}{:032x}", xxhash_rust::xxh3::xxh3_128(id.as_bytes()))
    }
}

/// Since Linux 6.16 a chain may name a device that does not exist, and would lock nothing.
fn require(namespace: &Namespace, devices: &[String]) -> Result<()> {
    let present = links::list(&mut RouteSocket::open(namespace)?, namespace)?;
    match devices.iter().find(|device| !present.iter().any(|link| link.name == **device)) {
        Some(absent) => {
            Err(Error::InterfaceMissing { interface: absent.clone(), namespace: namespace.to_string() })
        }
        None => Ok(()),
    }
}

/// Asks the kernel whether the lock would work, with chains that accept: the kernel attaches them for the instant
/// of the check. Loads the modules that are needed.
fn check(socket: &FilterSocket, table: &str, devices: &[String]) -> Result<()> {
    let table = format!("{table}-check");
    for hook in [Hook::Ingress, Hook::Egress] {
        let mut batch = Batch::new();
        batch.new_table(&table, Owner::Socket);
        batch.new_chain(&table, hook, Policy::Accept, devices);
        let (bytes, last) = batch.check();
        socket.transact(&bytes, last).map_err(|source| match (hook, source.raw_os_error()) {
            (Hook::Egress, Some(nix::libc::EOPNOTSUPP | nix::libc::ENOENT)) => {
                Error::NoEgressHook { devices: devices.join(", "), source }
            }
            (Hook::Ingress | Hook::Egress, _) => {
                Error::Filter { verb: "check", table: table.clone(), source }
            }
        })?;
    }
    Ok(())
}

fn silence(table: &str, replaced: &[&str], owner: Owner, devices: &[String]) -> Transaction {
    let mut batch = Batch::new();
    replaced.iter().for_each(|name| batch.destroy_table(name));
    batch.new_table(table, owner);
    batch.new_chain(table, Hook::Ingress, Policy::Drop, devices);
    batch.new_chain(table, Hook::Egress, Policy::Drop, devices);
    let (bytes, last) = batch.commit();
    Transaction { bytes, last }
}

fn destroy(tables: &[&str]) -> Transaction {
    let mut batch = Batch::new();
    tables.iter().for_each(|name| batch.destroy_table(name));
    let (bytes, last) = batch.commit();
    Transaction { bytes, last }
}
