//! What of a container's network stays behind, in words, so that nobody finds out later.
//!
//! Kernel: rtnetlink dumps of routes and policy rules, an nf_tables dump of tables, and the tables that the old
//! iptables has loaded (`/proc/net/ip_tables_names`). Nothing is changed, and nothing is read but names and numbers.

use std::io;

use netlink_packet_route::route::{RouteFlags, RouteMessage, RouteProtocol};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::capture::{MAIN_TABLE, dump};
use super::error::{Error, Result};
use super::lock::TABLE_PREFIX;
use super::namespace::Namespace;
use super::netlink::{FilterSocket, RouteSocket};

/// RT_TABLE_LOCAL, which the kernel fills by itself.
const LOCAL_TABLE: u8 = 255;
/// Priority and table of the rules that every namespace begins with: local, main, default (fib_rules(7), ip-rule(8)).
const FIRST_RULES: [(u32, u8); 3] = [(0, LOCAL_TABLE), (32766, MAIN_TABLE), (32767, 253)];
/// Names that one warning tells.
const MOST_NAMES: usize = 8;

/// What the container has in this namespace that is not made again at the destination; empty as a rule.
///
/// # Errors
/// When the namespace cannot be looked into.
pub fn unmoved(namespace: &Namespace) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    let (rules, routes) = policy_routing(namespace)?;
    if rules + routes > 0 {
        warnings.push(format!(
            "policy routing of the container stays behind ({rules} rules, {routes} routes outside the main table)"
        ));
    }
    let mut names = tables(namespace)?;
    names.extend(old_tables(namespace)?);
    if !names.is_empty() {
        let more = names.len().saturating_sub(MOST_NAMES);
        names.truncate(MOST_NAMES);
        let names: Vec<String> = names.iter().map(|name| name.escape_debug().to_string()).collect();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        warnings.push(format!(
            "firewall rules inside the container's network stay behind (tables {}{more}): the copy has what its runtime \
             makes there",
            names.join(", ")
        ));
    }
    Ok(warnings)
}

/// How many rules, and how many routes in tables of their own.
fn policy_routing(namespace: &Namespace) -> Result<(usize, usize)> {
    let mut socket = RouteSocket::open(namespace)?;
    let (mut rules, mut routes) = (0, 0);
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RuleMessage::default();
        request.header.family = family;
        let listed = dump(&mut socket, namespace, &RouteNetlinkMessage::GetRule(request), "policy rules")?;
        rules += listed.iter().filter(|entry| is_own_rule(entry)).count();
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let listed = dump(&mut socket, namespace, &RouteNetlinkMessage::GetRoute(request), "routes")?;
        routes += listed.iter().filter(|entry| is_elsewhere(entry)).count();
    }
    Ok((rules, routes))
}

fn is_own_rule(entry: &RouteNetlinkMessage) -> bool {
    let RouteNetlinkMessage::NewRule(rule) = entry else { return false };
    let priority = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    let place = (priority.unwrap_or_default(), rule.header.table);
    rule.header.action != RuleAction::ToTable || !FIRST_RULES.contains(&place)
}

fn is_elsewhere(entry: &RouteNetlinkMessage) -> bool {
    let RouteNetlinkMessage::NewRoute(RouteMessage { header, .. }) = entry else { return false };
    let made_by_kernel =
        header.protocol == RouteProtocol::Kernel || header.flags.contains(RouteFlags::Cloned);
    !made_by_kernel && header.table != MAIN_TABLE && header.table != LOCAL_TABLE
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
