//! Bridges, and the veth pairs between them.

use anyhow::{Context, Result};

use crate::host::PEER_PORT;
use crate::node::Node;

/// The bridge of a host and of the switch.
pub const BRIDGE: &str = "br0";

/// The speed of the link between a host and the switch, in `tc` words.
#[derive(Debug, Clone, Copy)]
pub struct Speed {
    rate: &'static str,
    burst: &'static str,
}

/// 10 Gbit/s: 9.3 Gbit/s of TCP payload with cubic.
pub const TEN_GIGABIT: Speed = Speed { rate: "10gbit", burst: "4mb" };
/// 1 Gbit/s: 0.95 Gbit/s of TCP payload.
pub const GIGABIT: Speed = Speed { rate: "1gbit", burst: "256kb" };
/// 1 Mbit/s: 0.12 MB a second.
pub const MEGABIT: Speed = Speed { rate: "1mbit", burst: "16kb" };

/// Makes the node's bridge `br0` with these addresses (with prefix length). It has a MAC of its own choice: by
/// default it would take the lowest of its ports' and change it as containers come and go.
pub fn bridge(node: &Node, addresses: &[&str]) -> Result<()> {
    node.run(&["ip", "link", "add", BRIDGE, "type", "bridge", "forward_delay", "0", "mcast_snooping", "0"])?;
    let shown = node.run(&["ip", "-o", "link", "show", BRIDGE])?;
    let mac = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
    node.run(&["ip", "link", "set", BRIDGE, "address", mac.context("a bridge without a MAC")?])?;
    for address in addresses {
        add_address(node, BRIDGE, address)?;
    }
    node.run(&["ip", "link", "set", BRIDGE, "up"]).map(drop)
}

/// Adds an address; an IPv6 address is usable at once.
pub fn add_address(node: &Node, interface: &str, address: &str) -> Result<()> {
    let mut words = vec!["ip", "address", "add", address, "dev", interface];
    if address.contains(':') {
        words.push("nodad");
    }
    node.run(&words).map(drop)
}

/// Lets the node's own connections use cubic, which fills such a link where bbr does not.
///
/// By route, because a network namespace may not choose an algorithm that the machine restricts.
pub fn prefer_cubic(node: &Node, source: &str) -> Result<()> {
    let route = ["ip", "route", "change", "10.77.0.0/16", "dev", BRIDGE, "proto", "kernel", "scope", "link"];
    node.run(&[&route[..], &["src", source, "congctl", "cubic"]].concat()).map(drop)
}

/// Joins `interface`, new on `node`, to a new port of the switch's bridge. A `speed` limits both directions.
pub fn plug(switch: &Node, node: &Node, interface: &str, speed: Option<Speed>) -> Result<()> {
    let port = port(node);
    let pid = node.pid().to_string();
    // `ip` resolves a pid in its own PID namespace, so the pair is made by this machine's view of the pids.
    let mut ip = std::process::Command::new("nsenter");
    ip.args(["--target", &switch.pid().to_string(), "--net", "--"]);
    ip.args(["ip", "link", "add", &port, "type", "veth", "peer", "name", interface, "netns", &pid]);
    crate::command::output(&mut ip)?;
    switch.run(&["ip", "link", "set", &port, "master", BRIDGE, "up"])?;
    if let Some(speed) = speed {
        limit(switch, node, interface, speed)?;
    }
    node.run(&["ip", "link", "set", interface, "up"]).map(drop)
}

/// The switch's end of the link to a node.
fn port(node: &Node) -> String {
    format!("to-{}", node.name())
}

/// Limits what travels over `interface` of the node, in both directions; a limit that is there is replaced.
pub fn limit(switch: &Node, node: &Node, interface: &str, speed: Speed) -> Result<()> {
    let Speed { rate, burst } = speed;
    for (at, interface) in [(node, interface), (switch, &port(node))] {
        let words = ["tc", "qdisc", "replace", "dev", interface, "root", "tbf", "rate", rate, "burst", burst];
        at.run(&[&words[..], &["latency", "50ms"]].concat())?;
    }
    Ok(())
}

/// Keeps a host's agent from all others, and nobody else, until it is mended or dropped.
#[derive(Debug)]
pub struct Cut<'a> {
    node: &'a Node,
    mended: bool,
}

/// What becomes of a packet that arrives over a link that is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is dropped: nobody is told.
    Drop,
    /// It is answered with a reset.
    Reset,
}

impl<'a> Cut<'a> {
    /// Cuts the link to the agent on `node`.
    pub fn new(node: &'a Node, verdict: Verdict) -> Result<Self> {
        let verdict = match verdict {
            Verdict::Drop => "drop",
            Verdict::Reset => "reject with tcp reset",
        };
        let rules = format!(
            "add table inet cut\nadd chain inet cut input {{ type filter hook input priority 0 ; }}\n\
             add rule inet cut input meta l4proto tcp tcp dport {PEER_PORT} {verdict}\n\
             add rule inet cut input meta l4proto tcp tcp sport {PEER_PORT} {verdict}"
        );
        node.run(&["nft", &rules])?;
        Ok(Self { node, mended: false })
    }

    /// The agents can talk again.
    pub fn mend(mut self) -> Result<()> {
        self.mended = true;
        self.remove()
    }

    fn remove(&self) -> Result<()> {
        self.node.run(&["nft", "delete", "table", "inet", "cut"]).map(drop)
    }
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        if !self.mended {
            // The namespace goes with the lab.
            let _ = self.remove();
        }
    }
}
