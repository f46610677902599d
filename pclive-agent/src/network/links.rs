//! The interfaces of a namespace as the kernel lists them, and which of them are pairs.

use std::collections::HashMap;
use std::os::fd::AsRawFd;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};

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
    /// IFLA_LINK: the index of a veth's other end, in that one's namespace.
    peer: Option<u32>,
    /// IFLA_LINK_NETNSID: the number that this namespace has for the other end's.
    peer_namespace: Option<i32>,
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
            peer: None,
            peer_namespace: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Link(index) => link.peer = Some(index),
                LinkAttribute::LinkNetNsId(number) => link.peer_namespace = Some(number),
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

/// The ends in `home` of the veth pairs whose other ends are `inside`, the interfaces of `namespace`; by the index of
/// the interface inside. An index alone would not do: every namespace counts its own.
pub(super) fn host_ends(
    socket: &mut RouteSocket,
    home: &Namespace,
    namespace: &Namespace,
    inside: &[Link],
) -> Result<HashMap<u32, Link>> {
    // Listing gives every namespace of a peer its number.
    let candidates = list(socket, home)?;
    let Some(number) = number(socket, home, namespace)? else { return Ok(HashMap::new()) };
    let mut ends = HashMap::new();
    for end in candidates {
        let pair = inside.iter().find(|link| end.peer == Some(link.index) && link.peer == Some(end.index));
        if let Some(link) = pair.filter(|_| end.peer_namespace == Some(number) && end.kind() == Kind::Veth) {
            ends.insert(link.index, end);
        }
    }
    Ok(ends)
}

/// The number that `home` has for another namespace (RTM_GETNSID, Linux 4.0).
fn number(socket: &mut RouteSocket, home: &Namespace, namespace: &Namespace) -> Result<Option<i32>> {
    let mut question = NsidMessage::default();
    question.attributes.push(NsidAttribute::Fd(namespace.as_raw_fd() as u32));
    let answers = socket.ask(RouteNetlinkMessage::GetNsId(question)).map_err(|source| Error::List {
        what: "numbers of other namespaces",
        namespace: home.to_string(),
        source,
    })?;
    let attributes = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewNsId(message) => Some(message.attributes),
        _ => None,
    });
    Ok(attributes.flatten().find_map(|attribute| match attribute {
        // -1: none.
        NsidAttribute::Id(number) => Some(number).filter(|number| *number >= 0),
        _ => None,
    }))
}
