//! The interfaces of a namespace as the kernel lists them.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};

use super::error::{Error, Result};
use super::interface::{Kind, Mac};
use super::namespace::Namespace;
use super::netlink::RouteSocket;

/// One entry of `ip link`.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// IFLA_INFO_KIND; empty for hardware, "loopback" for lo.
    pub(super) kind: String,
    /// Ethernet only.
    pub(super) mac: Option<Mac>,
    pub(super) mtu: u32,
    pub(super) flags: LinkFlags,
    /// IFLA_IFALIAS: where the agent writes that an interface is its own.
    pub(super) alias: String,
    /// The interface has IPv6, and it is not disabled.
    pub(super) ipv6: bool,
    /// IN6_ADDR_GEN_MODE_*. None when the kernel keeps no IPv6 state for it.
    pub(super) address_generation: Option<u8>,
}

impl Link {
    /// Set up by its administrator.
    pub(super) fn is_up(&self) -> bool {
        self.flags.contains(LinkFlags::Up)
    }

    /// The driver's device that every namespace gets when the module is loaded (`tunl0`, `sit0` ...), unused.
    pub(super) fn is_idle_tunnel(&self) -> bool {
        const TUNNELS: [&str; 12] = [
            "ipip",
            "sit",
            "ip6tnl",
            "gre",
            "gretap",
            "erspan",
            "ip6gre",
            "ip6gretap",
            "ip6erspan",
            "vti",
            "vti6",
            "tunl",
        ];
        !self.is_up() && TUNNELS.contains(&self.kind.as_str())
    }

    /// What the interface is made by.
    pub(super) fn kind(&self) -> Kind {
        Kind::named(&self.kind)
    }

    fn parse(message: LinkMessage) -> Self {
        let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            kind: String::new(),
            mac: None,
            mtu: 0,
            flags: message.header.flags,
            alias: String::new(),
            ipv6: false,
            address_generation: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(bytes) if ethernet => link.mac = bytes.try_into().ok().map(Mac),
                LinkAttribute::LinkInfo(infos) => link.take_kind(&infos),
                LinkAttribute::AfSpecUnspec(families) => link.take_families(&families),
                _ => {}
            }
        }
        if link.flags.contains(LinkFlags::Loopback) {
            link.kind = "loopback".to_owned();
        }
        link
    }

    fn take_kind(&mut self, infos: &[LinkInfo]) {
        for info in infos {
            if let LinkInfo::Kind(kind) = info {
                self.kind = kind.to_string();
            }
        }
    }

    fn take_families(&mut self, families: &[AfSpecUnspec]) {
        for family in families {
            let AfSpecUnspec::Inet6(attributes) = family else { continue };
            for attribute in attributes {
                match attribute {
                    AfSpecInet6::DevConf(settings) => self.ipv6 = settings.disable_ipv6 == 0,
                    AfSpecInet6::AddrGenMode(mode) => self.address_generation = Some(mode.into()),
                    _ => {}
                }
            }
        }
    }
}

/// Every interface of the namespace that `socket` is in.
pub(super) fn list(socket: &mut RouteSocket, namespace: &Namespace) -> Result<Vec<Link>> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let entries = socket.dump(&request).map_err(|source| Error::List {
        what: "interfaces",
        namespace: namespace.to_string(),
        source,
    })?;
    let links = entries.into_iter().filter_map(|entry| match entry {
        RouteNetlinkMessage::NewLink(message) => Some(Link::parse(message)),
        _ => None,
    });
    Ok(links.collect())
}

/// The interface of that name, if there is one.
pub(super) fn find(socket: &mut RouteSocket, namespace: &Namespace, name: &str) -> Result<Option<Link>> {
    Ok(list(socket, namespace)?.into_iter().find(|link| link.name == name))
}
