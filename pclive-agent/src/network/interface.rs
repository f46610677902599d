//! What an interface of a container is: the part of it that moves. Pure data; [`super::wire`] carries it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

/// An interface of a container's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// At most 15 bytes, as the container knows it.
    pub name: String,
    /// What makes it.
    pub kind: Kind,
    /// None when it is not an Ethernet device.
    pub mac: Option<Mac>,
    /// Bytes.
    pub mtu: u32,
    /// Set up by its administrator (IFF_UP); says nothing of the carrier.
    pub up: bool,
    /// Resolves addresses (no IFF_NOARP).
    pub arp: bool,
    /// `net.ipv6.conf.<name>.disable_ipv6` is 0.
    pub ipv6: bool,
    /// How the kernel makes IPv6 addresses of its own: IN6_ADDR_GEN_MODE_*. None without IPv6.
    pub address_generation: Option<u8>,
    /// Without 127.0.0.1 and ::1.
    pub addresses: Vec<Address>,
    /// Of the main table, without those that the kernel makes for an address.
    pub routes: Vec<Route>,
    /// Those whose link-layer address is known.
    pub neighbours: Vec<Neighbour>,
}

impl Interface {
    /// `lo`: configured, but never locked, announced or taken down.
    pub fn is_loopback(&self) -> bool {
        self.kind == Kind::Loopback
    }
}

impl Address {
    /// Of one link only.
    pub(super) fn is_link_local(&self) -> bool {
        matches!(self.ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
    }

    /// Somebody has given it, by hand or, an IPv4 address, by DHCP. IPv6 addresses with a lifetime come from routers (or DHCPv6,
    /// which looks the same).
    pub(super) fn is_given(&self) -> bool {
        self.ip.is_ipv4() || (self.lifetime.is_none() && !self.is_link_local())
    }

    /// Whether `ip` is in its network.
    pub(super) fn reaches(&self, ip: IpAddr) -> bool {
        let prefix = u32::from(self.prefix);
        match (self.ip, ip) {
            (IpAddr::V4(own), IpAddr::V4(ip)) => {
                (own.to_bits() ^ ip.to_bits()).checked_shr(32_u32.saturating_sub(prefix)).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(ip)) => {
                (own.to_bits() ^ ip.to_bits()).checked_shr(128_u32.saturating_sub(prefix)).unwrap_or(0) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// The driver of an interface, as far as it decides how the interface can be made again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `lo`.
    Loopback,
    /// A pair.
    Veth,
    /// A second MAC on another device. Becomes a veth.
    Macvlan,
    /// Shares the MAC of another device. Becomes a veth with a MAC of its own.
    Ipvlan,
    /// A device of the hardware that was moved in. Becomes a veth.
    Hardware,
    /// Cannot be made by the agent; the runtime must.
    Other(String),
}

impl Kind {
    /// The kind that the kernel calls so (IFLA_INFO_KIND; empty for hardware).
    pub(super) fn named(name: &str) -> Self {
        match name {
            "loopback" => Self::Loopback,
            "veth" => Self::Veth,
            "macvlan" => Self::Macvlan,
            "ipvlan" => Self::Ipvlan,
            "" => Self::Hardware,
            other => Self::Other(other.to_owned()),
        }
    }

    /// The reverse of [`Kind::named`].
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Loopback => "loopback",
            Self::Veth => "veth",
            Self::Macvlan => "macvlan",
            Self::Ipvlan => "ipvlan",
            Self::Hardware => "",
            Self::Other(name) => name,
        }
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The local address.
    pub ip: IpAddr,
    /// Bits.
    pub prefix: u8,
    /// RT_SCOPE_*: 0 the world, 253 the link, 254 the host.
    pub scope: u8,
    /// IPv4 only.
    pub broadcast: Option<Ipv4Addr>,
    /// The other end of a point-to-point address; the prefix is this one's.
    pub peer: Option<IpAddr>,
    /// None: for ever.
    pub lifetime: Option<Lifetime>,
    /// The kernel makes no route for the prefix (IFA_F_NOPREFIXROUTE).
    pub no_prefix_route: bool,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// Seconds that are left of an address; `u32::MAX` is for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// Until it is removed.
    pub valid_seconds: u32,
    /// Until new connections avoid it.
    pub preferred_seconds: u32,
}

/// A unicast route of the main table with one next hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The unspecified address with prefix 0 for the default route; tells the family.
    pub destination: IpAddr,
    /// Bits.
    pub prefix: u8,
    /// None: on the link.
    pub gateway: Option<IpAddr>,
    /// RTA_PREFSRC.
    pub preferred_source: Option<IpAddr>,
    /// RTA_PRIORITY.
    pub metric: u32,
    /// RT_SCOPE_*.
    pub scope: u8,
    /// RTPROT_*: who made it.
    pub protocol: u8,
    /// The gateway is on the link though no address says so.
    pub onlink: bool,
    /// RTAX_MTU, bytes.
    pub mtu: Option<u32>,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.destination, self.prefix)?;
        match self.gateway {
            Some(gateway) => write!(f, " via {gateway}"),
            None => Ok(()),
        }
    }
}

/// A host on the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Its address.
    pub ip: IpAddr,
    /// Its link-layer address.
    pub mac: Mac,
    /// Set by an administrator (NUD_PERMANENT): never asked for again.
    pub permanent: bool,
}
