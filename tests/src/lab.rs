//! The lab: a switch, a client and two hosts.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::bundle::Bundle;
use crate::command::{output, workspace_binary};
use crate::container::Container;
use crate::host::{Host, Links};
use crate::link::{self, Speed, TEN_GIGABIT};
use crate::node::Node;
use crate::{leftovers, needs};

/// Numbers the labs of this process.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Two hosts and a client on one switch. Dropping it removes all of it.
///
/// Fields are dropped in this order: processes first, then what they had open.
#[derive(Debug)]
pub struct Lab {
    /// The host on which containers start.
    pub a: Host,
    /// The other one.
    pub b: Host,
    /// Where the clients are.
    pub client: Node,
    switch: Node,
    containers: Mutex<u8>,
    directory: LabDirectory,
}

/// The lab's files; removed with its cgroups when dropped.
#[derive(Debug)]
struct LabDirectory(PathBuf);

impl Drop for LabDirectory {
    fn drop(&mut self) {
        if std::env::var_os("LAB_KEEP").is_none() {
            leftovers::remove(&self.0);
        }
    }
}

impl Lab {
    /// A lab with 10 Gbit/s between the hosts and an agent on each.
    pub fn new() -> Result<Self> {
        Self::with_links(Links::Tls)
    }

    /// The same with links of this kind.
    pub fn with_links(links: Links) -> Result<Self> {
        Self::with_speed(Some(TEN_GIGABIT), links)
    }

    /// The same with links of this speed; `None`: as fast as this machine copies.
    pub fn with_speed(speed: Option<Speed>, links: Links) -> Result<Self> {
        let lab = Self::build(speed, links)?;
        lab.certify()?;
        lab.a.start_agent()?;
        lab.b.start_agent()?;
        Ok(lab)
    }

    /// A lab whose hosts have no agent yet.
    pub fn without_agents(speed: Speed) -> Result<Self> {
        Self::build(Some(speed), Links::Tls)
    }

    /// Gives the links of both hosts another speed.
    pub fn set_speed(&self, speed: Speed) -> Result<()> {
        [&self.a, &self.b].into_iter().try_for_each(|host| host.set_speed(&self.switch, speed))
    }

    /// Makes a CA and a certificate for each host, as an administrator does.
    pub fn certify(&self) -> Result<()> {
        let authority = self.directory.0.join("ca");
        let certs = |arguments: &[&str]| {
            let mut ctl = std::process::Command::new(workspace_binary("pclivectl")?);
            output(ctl.args(["certs", "--dir"]).arg(&authority).args(arguments)).map(drop)
        };
        certs(&["init"])?;
        for host in [&self.a, &self.b] {
            certs(&["issue", host.name(), "--address", &host.v4().to_string()])?;
            host.certify(&authority)?;
        }
        Ok(())
    }

    fn build(speed: Option<Speed>, links: Links) -> Result<Self> {
        needs::check(&[])?;
        leftovers::sweep();
        let directory = LabDirectory(leftovers::claim(NUMBER.fetch_add(1, Ordering::Relaxed))?);
        let switch = Node::start("switch")?;
        link::bridge(&switch, &[])?;
        let client = Node::start("client")?;
        link::plug(&switch, &client, "eth0", None)?;
        link::add_address(&client, "eth0", "10.77.0.100/16")?;
        link::add_address(&client, "eth0", "fd77::100/64")?;
        let a = Host::start(&directory.0, "host-a", 1, &switch, speed, links)?;
        let b = Host::start(&directory.0, "host-b", 2, &switch, speed, links)?;
        Ok(Self { a, b, client, switch, containers: Mutex::new(0), directory })
    }

    /// Puts a bundle on both hosts and starts its container on host a.
    pub fn start(&self, bundle: &Bundle) -> Result<Container> {
        let container = self.install(bundle, &[&self.a, &self.b])?;
        container.start(&self.a)?;
        Ok(container)
    }

    /// Puts a bundle on these hosts; nothing starts.
    pub fn install(&self, bundle: &Bundle, hosts: &[&Host]) -> Result<Container> {
        let number = {
            let mut last = self.containers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            *last = last.checked_add(1).context("too many containers for one lab")?;
            *last
        };
        for host in hosts {
            host.install(bundle, &self.shared())?;
        }
        Ok(Container::new(bundle.name(), number))
    }

    /// Where root file systems that both hosts use are kept.
    fn shared(&self) -> PathBuf {
        self.directory.0.join("shared")
    }

    /// The lab's files: logs, bundles, each host's `/run`.
    pub fn directory(&self) -> &Path {
        &self.directory.0
    }

    /// How to get a shell on each node, for a person who looks at a lab that is held open.
    pub fn shells(&self) -> String {
        [self.a.node(), self.b.node(), &self.client, &self.switch]
            .map(|node| format!("{}: nsenter -t {} -n -m -u -p\n", node.name(), node.pid()))
            .concat()
    }
}
