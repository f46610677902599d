//! A container on a host of the lab, by its runtime `runc`.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::host::Host;
use crate::link::BRIDGE;
use crate::wait::until;

/// How long a program may take to start.
const LIMIT: Duration = Duration::from_secs(20);

/// A container's name and its address, which moves with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its name at the runtime.
    pub name: String,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// What distinguishes its hardware address and its host-side interface.
    number: u8,
}

impl Container {
    /// The `number`th container of a lab, from 1 on.
    pub(crate) fn new(name: &str, number: u8) -> Self {
        let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 1, u16::from(number));
        Self { name: name.into(), v4: Ipv4Addr::new(10, 77, 1, number), v6, number }
    }

    /// Its IPv4 address as clients take it.
    pub fn ip(&self) -> IpAddr {
        self.v4.into()
    }

    fn mac(&self) -> String {
        format!("02:77:00:00:01:{:02x}", self.number)
    }

    /// Creates it from its bundle, plugs its network in, and starts it.
    ///
    /// Its standard output and error go to files of the host; see [`Container::log`].
    pub fn start(&self, host: &Host) -> Result<()> {
        self.create(host)?;
        self.plug(host)?;
        self.run(host)
    }

    /// Starts it in the network that its bundle names.
    pub fn start_in_its_network(&self, host: &Host) -> Result<()> {
        self.create(host)?;
        self.run(host)
    }

    /// The same, and what it writes to its standard output and error is lost.
    pub fn start_without_output(&self, host: &Host) -> Result<()> {
        let mut runc = host.runc();
        runc.arg("--log").arg(host.container_log(&self.name));
        self.create_with(host, runc, [Stdio::null(), Stdio::null()])?;
        self.run(host)
    }

    fn create(&self, host: &Host) -> Result<()> {
        let log = File::create(host.container_log(&self.name)).context("cannot make the container's log")?;
        self.create_with(host, host.runc(), [log.try_clone()?.into(), log.into()])
    }

    fn create_with(&self, host: &Host, runc: Command, [output, error]: [Stdio; 2]) -> Result<()> {
        let mut create = runc;
        create.args(["create", "--bundle"]).arg(host.bundle(&self.name)).arg(&self.name);
        let status = create.stdin(Stdio::null()).stdout(output).stderr(error).status()?;
        if !status.success() {
            bail!("cannot create {}: {}", self.name, self.log(host));
        }
        Ok(())
    }

    fn run(&self, host: &Host) -> Result<()> {
        host.runc_output(&["start", &self.name])?;
        let comm = format!("/proc/{}/comm", self.pid(host)?);
        until("the start of the container's program", LIMIT, || {
            // `runc start` returns before its init has become the program.
            Ok(!host.node().run(&["cat", &comm])?.starts_with("runc"))
        })
    }

    fn plug(&self, host: &Host) -> Result<()> {
        let pid = self.pid(host)?.to_string();
        let port = format!("veth{}", self.number);
        let node = host.node();
        node.run(&[
            "ip",
            "link",
            "add",
            &port,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "address",
            &self.mac(),
            "netns",
            &pid,
        ])?;
        node.run(&["ip", "link", "set", &port, "master", BRIDGE, "up"])?;
        let inside = |words: &[&str]| {
            node.run(&[&["nsenter", "--net", "--target", &pid, "--", "ip"], words].concat()).map(drop)
        };
        inside(&["link", "set", "lo", "up"])?;
        inside(&["address", "add", &format!("{}/16", self.v4), "dev", "eth0"])?;
        inside(&["address", "add", &format!("{}/64", self.v6), "dev", "eth0", "nodad"])?;
        inside(&["link", "set", "eth0", "up"])?;
        inside(&["route", "add", "default", "via", &host.v4().to_string()])
    }

    /// What the runtime says of it; `None` when the runtime does not know it.
    pub fn state(&self, host: &Host) -> Result<Option<Value>> {
        let listed = host.runc_output(&["list", "--format", "json"])?;
        let containers: Value = serde_json::from_str(&listed).context("cannot parse `runc list`")?;
        let found =
            containers.as_array().into_iter().flatten().find(|entry| entry["id"] == self.name.as_str());
        Ok(found.cloned())
    }

    /// Its status at the runtime of `host`: "running", "created", "stopped"; `None` when it is not there.
    pub fn status(&self, host: &Host) -> Result<Option<String>> {
        Ok(self.state(host)?.and_then(|state| state["status"].as_str().map(str::to_owned)))
    }

    /// The pid of its first process, as the host sees it.
    pub fn pid(&self, host: &Host) -> Result<i64> {
        let state = self.state(host)?.with_context(|| format!("{} does not exist", self.name))?;
        state["pid"].as_i64().filter(|&pid| pid > 0).with_context(|| format!("{} has no process", self.name))
    }

    /// Runs a program inside; its output.
    pub fn exec(&self, host: &Host, words: &[&str]) -> Result<String> {
        host.runc_output(&[&["exec", &self.name], words].concat())
    }

    /// Kills it and removes it from the runtime.
    pub fn delete(&self, host: &Host) -> Result<()> {
        host.runc_output(&["delete", "--force", &self.name]).map(drop)
    }

    /// What it has written to its standard output and error while it was on this host.
    pub fn log(&self, host: &Host) -> String {
        host.container_logs(&self.name).iter().filter_map(|log| std::fs::read_to_string(log).ok()).collect()
    }

    /// Whether the host still has a cgroup of this container, in any hierarchy.
    pub fn has_cgroup(&self, host: &Host) -> bool {
        let relative = format!("{}/{}", host.cgroup().trim_start_matches('/'), self.name);
        let Ok(hierarchies) = std::fs::read_dir("/sys/fs/cgroup") else { return false };
        hierarchies.flatten().any(|hierarchy| hierarchy.path().join(&relative).exists())
            || Path::new("/sys/fs/cgroup").join(&relative).exists()
    }
}
