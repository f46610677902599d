//! Gives a created container the network of its original, silently.
//!
//! An interface that the runtime has made is completed; one that is missing is made as a veth pair whose host end
//! is a port of the configured bridge. Nothing passes any of them until [`Applied::open`].
//!
//! Invariants: both locks, of the host ends and of the interfaces, are engaged before a link comes up (a new host end has
//! no carrier while its interface is down); what is there
//! already is not changed back and forth (applying twice is applying once); [`Applied`] undoes exactly what it did, in
//! reverse, unless it is kept.

use std::net::IpAddr;

use serde::Deserialize;

use super::capture::{list_addresses, list_neighbours};
use super::changes::{self, Handle, LinkChange, VethEnd};
use super::error::{Error, Result};
use super::host_end;
use super::interface::{Address, Interface, Kind, Neighbour, Route};
use super::links::{self, Link};
use super::lock::{Lock, Tenure};
use super::namespace::Namespace;
use super::netlink::RouteSocket;
use super::settings::{self, Setting};

/// How this host attaches containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// The bridge for interfaces that the runtime does not make. None: the runtime makes them all.
    pub bridge: Option<String>,
}

/// One thing done, as what takes it back.
#[derive(Debug)]
enum Undo {
    /// In the agent's namespace.
    DeleteHostEnd(Handle),
    Link(Handle, LinkChange),
    Address(Handle, Address),
    Route(Handle, Route),
    Neighbour(Handle, Neighbour),
    Setting(Setting),
}

/// The network of a created container. Dropped without [`Applied::keep`]: undone.
pub struct Applied {
    namespace: Namespace,
    container: String,
    home: RouteSocket,
    inside: RouteSocket,
    /// Of the host ends, and of the interfaces.
    locks: Vec<Lock>,
    done: Vec<Undo>,
    warnings: Vec<String>,
}

/// Applies `interfaces` to the namespace of a created container; nothing passes them before [`Applied::open`]. On
/// an error everything is as it was.
pub fn apply(
    namespace: Namespace,
    container: &str,
    interfaces: &[Interface],
    config: &NetworkConfig,
) -> Result<Applied> {
    namespace.refuse_host()?;
    let home = Namespace::own()?;
    let mut applied = Applied {
        home: RouteSocket::open(&home)?,
        inside: RouteSocket::open(&namespace)?,
        namespace,
        container: container.to_owned(),
        locks: Vec::new(),
        done: Vec::new(),
        warnings: Vec::new(),
    };
    applied.refuse_conflicts(&home, interfaces)?;
    applied.create_missing(&home, interfaces, config)?;
    let host_ends = applied.host_ends(&home, interfaces)?;
    applied.lock(Lock::on(&home, &host_end::lock_id(container), host_ends, Tenure::Namespace)?)?;
    applied.lock(Lock::prepare(&applied.namespace, container, interfaces, Tenure::Namespace)?)?;
    for interface in interfaces {
        applied.configure(interface)?;
    }
    Ok(applied)
}

impl Applied {
    /// Lets packets pass: two netlink transactions. Doing it twice is doing it once.
    pub fn open(&mut self) -> Result<()> {
        self.locks.iter_mut().map(Lock::release).fold(Ok(()), Result::and)
    }

    /// What could not be made the same, for the administrator.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The namespace that it was applied to.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The container runs: its network stays, also when this fails. Opens it if it is not open.
    pub fn keep(mut self) -> Result<()> {
        self.done.clear();
        self.open()
    }

    /// Takes everything back; the first failure is the error, the rest is done all the same.
    pub fn undo(mut self) -> Result<()> {
        self.take_back()
    }

    fn take_back(&mut self) -> Result<()> {
        let mut first = Ok(());
        while let Some(step) = self.done.pop() {
            let taken = self.take_back_one(&step);
            first = first.and(taken);
        }
        first.and(self.open())
    }

    fn take_back_one(&mut self, step: &Undo) -> Result<()> {
        match step {
            Undo::DeleteHostEnd(handle) => changes::delete_link(&mut self.home, handle),
            Undo::Link(handle, change) => changes::link_if_there(&mut self.inside, handle, change),
            Undo::Address(handle, address) => changes::delete_address(&mut self.inside, handle, address),
            Undo::Route(handle, route) => changes::delete_route(&mut self.inside, handle, route),
            Undo::Neighbour(handle, known) => changes::delete_neighbour(&mut self.inside, handle, known),
            Undo::Setting(setting) => match settings::exists(&self.namespace, setting)? {
                true => settings::write(&self.namespace, setting),
                false => Ok(()),
            },
        }
    }

    /// An address may be on its own interface already, and nowhere else in the container or on this host.
    fn refuse_conflicts(&mut self, home: &Namespace, interfaces: &[Interface]) -> Result<()> {
        let names = links::list(&mut self.inside, &self.namespace)?;
        let inside = list_addresses(&mut self.inside, &self.namespace)?;
        let host_names = links::list(&mut self.home, home)?;
        let host = list_addresses(&mut self.home, home)?;
        for interface in interfaces.iter().filter(|interface| !interface.is_loopback()) {
            let own = names.iter().find(|link| link.name == interface.name).map(|link| link.index);
            Self::refuse_other_network(&inside, own, interface)?;
            for address in &interface.addresses {
                if address.is_link_local() {
                    continue;
                }
                let elsewhere =
                    inside.iter().find(|(index, used)| Some(*index) != own && used.ip == address.ip);
                let on_host = host.iter().find(|(_, used)| used.ip == address.ip);
                let user = elsewhere.map(|(index, _)| format!("interface {}", name_of(&names, *index)));
                let user = user.or(on_host
                    .map(|(index, _)| format!("interface {} of this host", name_of(&host_names, *index))));
                if let Some(user) = user {
                    let interface = interface.name.clone();
                    return Err(Error::AddressInUse { address: address.ip, interface, user });
                }
            }
        }
        Ok(())
    }

    /// What the runtime has given to the interface `own` must be of a network that the original is in.
    fn refuse_other_network(
        inside: &[(u32, Address)],
        own: Option<u32>,
        interface: &Interface,
    ) -> Result<()> {
        let given = inside.iter().filter(|(index, given)| Some(*index) == own && given.is_given());
        let given: Vec<&Address> = given.map(|(_, given)| given).collect();
        for is_family in [IpAddr::is_ipv4 as fn(&IpAddr) -> bool, IpAddr::is_ipv6] {
            let wanted = interface.addresses.iter().filter(|address| is_family(&address.ip));
            let wanted: Vec<&Address> = wanted.filter(|address| !address.is_link_local()).collect();
            let mut given = given.iter().filter(|given| is_family(&given.ip)).peekable();
            if let (Some(wanted), Some(first)) = (wanted.first(), given.peek().copied())
                && !given.any(|given| interface.addresses.iter().any(|address| given.reaches(address.ip)))
            {
                let (address, interface, given) = (wanted.ip, interface.name.clone(), first.ip);
                return Err(Error::OtherNetwork { address, interface, given });
            }
        }
        Ok(())
    }

    fn lock(&mut self, mut lock: Lock) -> Result<()> {
        lock.engage()?;
        self.locks.push(lock);
        Ok(())
    }

    /// The names of the interfaces' other ends in the agent's namespace.
    fn host_ends(&mut self, home: &Namespace, interfaces: &[Interface]) -> Result<Vec<String>> {
        let mut inside = links::list(&mut self.inside, &self.namespace)?;
        inside.retain(|link| interfaces.iter().any(|interface| interface.name == link.name));
        let ends = links::host_ends(&mut self.home, home, &self.namespace, &inside)?;
        Ok(ends.into_values().map(|end| end.name).collect())
    }

    fn create_missing(
        &mut self,
        home: &Namespace,
        interfaces: &[Interface],
        config: &NetworkConfig,
    ) -> Result<()> {
        let present = links::list(&mut self.inside, &self.namespace)?;
        for interface in interfaces {
            if present.iter().any(|link| link.name == interface.name) {
                continue;
            }
            match &interface.kind {
                Kind::Veth | Kind::Macvlan | Kind::Ipvlan | Kind::Hardware => {
                    self.create_veth(home, interface, config)?;
                }
                Kind::Loopback => return Err(self.missing(interface)),
                Kind::Other(kind) => {
                    return Err(Error::UnsupportedKind {
                        interface: interface.name.clone(),
                        kind: kind.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    fn create_veth(&mut self, home: &Namespace, interface: &Interface, config: &NetworkConfig) -> Result<()> {
        let bridge = self.bridge(home, interface, config)?;
        let name = host_end::name(&self.container, &interface.name);
        host_end::clear(&mut self.home, home, &self.container, &name)?;
        let near = VethEnd { name: &name, mac: Some(host_end::mac(&self.container, &interface.name)) };
        // An ipvlan has the MAC of its host's device, which stays where it is.
        let mac = interface.mac.filter(|_| interface.kind != Kind::Ipvlan);
        let far = VethEnd { name: &interface.name, mac };
        changes::create_veth(&mut self.home, &near, &far, &self.namespace, interface.mtu)?;
        let made = links::find(&mut self.home, home, &name)?
            .ok_or_else(|| Error::InterfaceMissing { interface: name, namespace: home.to_string() })?;
        let handle = Handle { index: made.index, name: made.name };
        self.done.push(Undo::DeleteHostEnd(handle.clone()));
        host_end::attach(&mut self.home, &handle, &self.container, bridge)
    }

    /// The index of the configured bridge.
    fn bridge(&mut self, home: &Namespace, interface: &Interface, config: &NetworkConfig) -> Result<u32> {
        let interface = interface.name.clone();
        let Some(bridge) = config.bridge.clone() else { return Err(Error::NoBridge { interface }) };
        match links::find(&mut self.home, home, &bridge)? {
            None => Err(Error::BridgeMissing { interface, bridge }),
            Some(link) if link.kind != "bridge" => Err(Error::NotABridge { interface, bridge }),
            Some(link) => {
                if !link.is_up() {
                    self.warnings.push(format!("bridge {bridge} is down"));
                }
                Ok(link.index)
            }
        }
    }

    fn configure(&mut self, interface: &Interface) -> Result<()> {
        let link = self.link_of(interface)?;
        let handle = Handle { index: link.index, name: link.name.clone() };
        if !interface.is_loopback() {
            self.set_properties(interface, &link, &handle)?;
        }
        // Only the addresses of the original: one that the kernel generates would be another.
        let generation = link.address_generation.filter(|_| !interface.is_loopback());
        if let Some(mode) = generation {
            self.generate(&handle, changes::GENERATE_NO_ADDRESS)?;
            self.done.push(Undo::Link(handle.clone(), LinkChange::AddressGeneration(mode)));
        }
        if interface.up && !link.is_up() {
            changes::link(&mut self.inside, &handle, &LinkChange::Up)?;
            self.done.push(Undo::Link(handle.clone(), LinkChange::Down));
        }
        self.add_addresses(interface, &handle)?;
        if interface.up {
            self.add_routes(interface, &handle)?;
            self.add_neighbours(interface, &handle)?;
        }
        if let Some(mode) = generation {
            self.generate(&handle, interface.address_generation.unwrap_or(mode))?;
        }
        Ok(())
    }

    fn generate(&mut self, handle: &Handle, mode: u8) -> Result<()> {
        changes::link(&mut self.inside, handle, &LinkChange::AddressGeneration(mode))
    }

    fn set_properties(&mut self, interface: &Interface, link: &Link, handle: &Handle) -> Result<()> {
        if link.ipv6 != interface.ipv6 {
            let setting = Setting::disable_ipv6(&interface.name, !interface.ipv6);
            if settings::exists(&self.namespace, &setting)? {
                settings::write(&self.namespace, &setting)?;
                self.done.push(Undo::Setting(Setting::disable_ipv6(&interface.name, !link.ipv6)));
            }
        }
        if link.mtu != interface.mtu {
            changes::link(&mut self.inside, handle, &LinkChange::Mtu(interface.mtu))?;
            self.done.push(Undo::Link(handle.clone(), LinkChange::Mtu(link.mtu)));
        }
        if !interface.arp {
            changes::link(&mut self.inside, handle, &LinkChange::Noarp)?;
        }
        self.set_mac(interface, link, handle)
    }

    /// A device that may not take the MAC keeps its own: the announcement tells the peers.
    fn set_mac(&mut self, interface: &Interface, link: &Link, handle: &Handle) -> Result<()> {
        let (Some(wanted), Some(current)) = (interface.mac, link.mac) else { return Ok(()) };
        if wanted == current || interface.kind == Kind::Ipvlan {
            return Ok(());
        }
        match changes::link(&mut self.inside, handle, &LinkChange::Mac(wanted)) {
            Ok(()) => self.done.push(Undo::Link(handle.clone(), LinkChange::Mac(current))),
            Err(_) => self.warnings.push(format!(
                "interface {} keeps the MAC address {current}: it does not take {wanted}",
                interface.name
            )),
        }
        Ok(())
    }

    fn add_addresses(&mut self, interface: &Interface, handle: &Handle) -> Result<()> {
        let present = list_addresses(&mut self.inside, &self.namespace)?;
        for address in &interface.addresses {
            if present.iter().any(|(index, used)| *index == handle.index && used.ip == address.ip) {
                continue;
            }
            changes::add_address(&mut self.inside, handle, address)?;
            self.done.push(Undo::Address(handle.clone(), address.clone()));
        }
        Ok(())
    }

    /// Those on the link first: a gateway must be reachable when its route is made.
    fn add_routes(&mut self, interface: &Interface, handle: &Handle) -> Result<()> {
        let (via, on_link): (Vec<_>, Vec<_>) =
            interface.routes.iter().partition(|route| route.gateway.is_some());
        for route in on_link.into_iter().chain(via) {
            if changes::add_route(&mut self.inside, handle, route)? {
                self.done.push(Undo::Route(handle.clone(), route.clone()));
            }
        }
        Ok(())
    }

    fn add_neighbours(&mut self, interface: &Interface, handle: &Handle) -> Result<()> {
        let known = list_neighbours(&mut self.inside, &self.namespace)?;
        for neighbour in &interface.neighbours {
            if known.iter().any(|(index, other)| *index == handle.index && other.ip == neighbour.ip) {
                continue;
            }
            changes::add_neighbour(&mut self.inside, handle, neighbour)?;
            self.done.push(Undo::Neighbour(handle.clone(), neighbour.clone()));
        }
        Ok(())
    }

    fn link_of(&mut self, interface: &Interface) -> Result<Link> {
        let found = links::find(&mut self.inside, &self.namespace, &interface.name)?;
        found.ok_or_else(|| self.missing(interface))
    }

    fn missing(&self, interface: &Interface) -> Error {
        Error::InterfaceMissing { interface: interface.name.clone(), namespace: self.namespace.to_string() }
    }
}

impl Drop for Applied {
    fn drop(&mut self) {
        if let Err(error) = self.take_back() {
            tracing::warn!(
                container = self.container,
                error = &error as &dyn std::error::Error,
                "network not taken back"
            );
        }
    }
}

fn name_of(links: &[Link], index: u32) -> &str {
    links.iter().find(|link| link.index == index).map_or("?", |link| link.name.as_str())
}
