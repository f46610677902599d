//! What can go wrong with a container's network.

use std::io;
use std::net::IpAddr;

use nix::errno::Errno;

/// One failed operation, with its operands and the kernel's reason as the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are the operands that the message names")]
pub enum Error {
    #[error("cannot open the network namespace {namespace}")]
    OpenNamespace { namespace: String, source: io::Error },
    #[error("cannot start a thread for the network namespace {namespace}")]
    Thread { namespace: String, source: io::Error },
    #[error("cannot enter the network namespace {namespace}")]
    Enter { namespace: String, source: Errno },
    #[error("cannot move the network of the {namespace}: it is the host's own")]
    HostNetwork { namespace: String },
    #[error("cannot open a {kind} socket in the network namespace {namespace}")]
    Socket { kind: &'static str, namespace: String, source: io::Error },
    #[error("cannot list the {what} of the network namespace {namespace}")]
    List { what: &'static str, namespace: String, source: io::Error },
    #[error("cannot {verb} interface {interface}")]
    Link { verb: &'static str, interface: String, source: io::Error },
    #[error("cannot find interface {interface} in the network namespace {namespace}")]
    InterfaceMissing { interface: String, namespace: String },
    #[error("cannot {verb} address {address} of interface {interface}")]
    Address { verb: &'static str, address: String, interface: String, source: io::Error },
    #[error("cannot {verb} route {route} of interface {interface}")]
    Route { verb: &'static str, route: String, interface: String, source: io::Error },
    #[error("cannot {verb} neighbour {neighbour} of interface {interface}")]
    Neighbour { verb: &'static str, neighbour: IpAddr, interface: String, source: io::Error },
    #[error("cannot {verb} setting {setting}")]
    Setting { verb: &'static str, setting: String, source: io::Error },
    #[error("cannot carry route {route}: {reason}")]
    UnsupportedRoute { route: String, reason: &'static str },
    #[error("cannot create interface {interface}: a device of kind {kind:?} cannot be made here")]
    UnsupportedKind { interface: String, kind: String },
    #[error("cannot create interface {interface}: the runtime did not make it and no bridge is configured")]
    NoBridge { interface: String },
    #[error("cannot attach interface {interface} to bridge {bridge}: there is no such interface")]
    BridgeMissing { interface: String, bridge: String },
    #[error("cannot attach interface {interface} to {bridge}: it is not a bridge")]
    NotABridge { interface: String, bridge: String },
    #[error(
        "cannot create interface {host_end}: the name is taken by an interface that the agent did not make"
    )]
    NameTaken { host_end: String },
    #[error("cannot give address {address} to interface {interface}: {user} has it already")]
    AddressInUse { address: IpAddr, interface: String, user: String },
    #[error(
        "cannot give address {address} to interface {interface}: the runtime has given it {given}, of another network"
    )]
    OtherNetwork { address: IpAddr, interface: String, given: IpAddr },
    #[error("cannot {verb} packet filter table {table}")]
    Filter { verb: &'static str, table: String, source: io::Error },
    #[error("cannot block what leaves {devices}: the kernel has no netdev egress hook")]
    NoEgressHook { devices: String, source: io::Error },
    #[error("cannot announce the addresses of interface {interface}")]
    Announce { interface: String, source: Errno },
    #[error("cannot listen at interface {interface}")]
    Listen { interface: String, source: Errno },
    #[error("cannot use the peer's description of interface {interface:?}: {reason}")]
    Malformed { interface: String, reason: &'static str },
}

impl Error {
    /// What an administrator can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::HostNetwork { .. } => {
                Some("give the container a network namespace of its own: an address of the host cannot move")
            }
            Self::UnsupportedRoute { .. } => {
                Some("replace it by plain routes of the main table with one next hop each")
            }
            Self::UnsupportedKind { .. } => {
                Some("let the runtime make the interface when it creates the container, or use a veth")
            }
            Self::NoBridge { .. } => Some(
                "set network.bridge in the configuration of the destination's agent, or let the runtime make the interface",
            ),
            Self::BridgeMissing { .. } | Self::NotABridge { .. } => Some(
                "create the bridge on this host, or correct its name in the agent's network configuration",
            ),
            Self::AddressInUse { .. } => {
                Some("free the address at the destination: it moves with the container")
            }
            Self::OtherNetwork { .. } => Some(
                "connections need their address: attach the destination to the same network, or let them end with --tcp close",
            ),
            Self::NoEgressHook { .. } => {
                Some("use Linux 5.16 or newer with CONFIG_NETFILTER_EGRESS and nf_tables")
            }
            Self::Filter { .. } => {
                Some("nf_tables must be available, and no other agent may hold this container")
            }
            Self::NameTaken { .. } => Some("remove or rename that interface"),
            Self::OpenNamespace { .. }
            | Self::Thread { .. }
            | Self::Enter { .. }
            | Self::Socket { .. }
            | Self::List { .. }
            | Self::Link { .. }
            | Self::InterfaceMissing { .. }
            | Self::Address { .. }
            | Self::Route { .. }
            | Self::Neighbour { .. }
            | Self::Setting { .. }
            | Self::Announce { .. }
            | Self::Listen { .. }
            | Self::Malformed { .. } => None,
        }
    }
}

/// What an operation on a container's network gives.
pub type Result<T> = std::result::Result<T, Error>;
