//! What of a container's network stays behind, in words, so that nobody finds out later.
//!
//! Kernel: rtnetlink dumps of routes and policy rules, an nf_tables dump of tables, and the tables that the old
//! iptables has loaded (`/proc/net/ip_tables_names`). Nothing is changed, and nothing is read but names and numbers.

use std::io;

use netlink_packet_route::route::{RouteFlags, RouteMessage, RouteProtocol, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::capture::{MAIN_TABLE, dump};
use super::error::{Error, Result};
use super::lock::TABLE_PREFIX;
use super::namespace::Namespace;
use super::netlink::{FilterSocket, RouteSocket};
use crate::error::chain;

/// RT_TABLE_LOCAL, which the kernel fills by itself.
const LOCAL_TABLE: u8 = 255;
/// Priority and table of the rules that every namespace begins with: local, main, default (ip-rule(8)).
const FIRST_RULES: [(u32, u8); 3] = [(0, LOCAL_TABLE), (32766, MAIN_TABLE), (32767, 253)];
/// Names that one warning tells.
const MOST_NAMES: usize = 8;

/// What the container has in this namespace that is not made again at the destination; empty as a rule. Where it cannot be
/// told, that is one of them: it is no reason not to migrate.
pub fn unmoved(namespace: &Namespace) -> Vec<String> {
    let looks = [routing_left(namespace), firewall_left(namespace)];
    let told = looks.into_iter().map(|look| {
        look.unwrap_or_else(|error| {
            Some(format!("what of the container's network stays behind is not known: {}", chain(&error)))
        })
    });
    told.flatten().collect()
}

fn routing_left(namespace: &Namespace) -> Result<Option<String>> {
    let (rules, routes) = policy_routing(namespace)?;
    let told = format!(
        "policy routing of the container stays behind ({rules} rules, {routes} routes outside the main table)"
    );
    Ok((rules + routes > 0).then_some(told))
}

fn firewall_left(namespace: &Namespace) -> Result<Option<String>> {
    let mut names = tables(namespace)?;
    names.extend(old_tables(namespace)?);
    if names.is_empty() {
        return Ok(None);
    }
    names.sort();
    names.dedup();
    let more = names.len().saturating_sub(MOST_NAMES);
    names.truncate(MOST_NAMES);
    let names: Vec<String> = names.iter().map(|name| name.escape_debug().to_string()).collect();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Ok(Some(format!(
        "firewall tables inside the container's network stay behind, with what rules they have ({}{more}): the copy has \
         what its runtime makes there",
        names.join(", ")
    )))
}

/// How many rules, and how many routes in tables of their own.
fn policy_routing(namespace: &Namespace) -> Result<(usize, usize)> {
    let mut socket = RouteSocket::open(namespace)?;
    let (mut rules, mut routes) = (0, 0);
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RuleMessage::default();
        request.header.family = family;
        let listed = dump(&mut socket, namespace, &RouteNetlinkMessage::GetRule(request), "policy rules")?;
        rules += listed.iter().filter(|entry| is_own_rule(entry, family)).count();
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let listed = dump(&mut socket, namespace, &RouteNetlinkMessage::GetRoute(request), "routes")?;
        routes += listed.iter().filter(|entry| is_elsewhere(entry, family)).count();
    }
    Ok((rules, routes))
}

/// Whether it is a rule of this family that the kernel did not begin with; without the family it lists those of others.
fn is_own_rule(entry: &RouteNetlinkMessage, family: AddressFamily) -> bool {
    let RouteNetlinkMessage::NewRule(rule) = entry else { return false };
    let priority = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    let place = (priority.unwrap_or_default(), rule.header.table);
    let is_first = rule.header.action == RuleAction::ToTable && FIRST_RULES.contains(&place);
    rule.header.family == family && !is_first
}

/// Whether it is a route of this family that somebody put into another table than main.
fn is_elsewhere(entry: &RouteNetlinkMessage, family: AddressFamily) -> bool {
    let RouteNetlinkMessage::NewRoute(RouteMessage { header, .. }) = entry else { return false };
    let made_by_kernel =
        header.protocol == RouteProtocol::Kernel || header.flags.contains(RouteFlags::Cloned);
    // In the local table the kernel has more than it calls its own: broadcast, multicast and anycast.
    let is_local = header.table == LOCAL_TABLE && header.kind != RouteType::Local;
    header.address_family == family && !made_by_kernel && header.table != MAIN_TABLE && !is_local
}

/// Tables of nf_tables, but for the agent's own.
fn tables(namespace: &Namespace) -> Result<Vec<String>> {
    let listed = FilterSocket::open(namespace)?.tables();
    let mut names = listed.map_err(|source| Error::List {
        what: "firewall tables",
        namespace: namespace.to_string(),
        source,
    })?;
    names.retain(|name| !name.starts_with(TABLE_PREFIX));
    Ok(names)
}

/// Tables that the iptables of old has loaded.
fn old_tables(namespace: &Namespace) -> Result<Vec<String>> {
    let read = |name: &str| match std::fs::read_to_string(format!("/proc/thread-self/net/{name}")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        text => text,
    };
    let listed =
        namespace.run(|| Ok::<_, io::Error>((read("ip_tables_names")?, read("ip6_tables_names")?)))?;
    let (v4, v6) = listed.map_err(|source| Error::List {
        what: "tables of iptables",
        namespace: namespace.to_string(),
        source,
    })?;
    Ok(v4.lines().chain(v6.lines()).map(str::to_owned).collect())
}
