//! A host of the lab: a node with bundles, a runtime, `/run` and `/var/lib/pclive` of its own, and an agent.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};

use crate::bundle::Bundle;
use crate::command::{faulty_agent, output, workspace_binary};
use crate::link::{self, BRIDGE, Speed};
use crate::node::{Node, only_child};
use crate::wait::until;

/// The agent's control socket on a host.
pub const CONTROL: &str = "/run/pclive/agent.sock";
/// The host's interface to the switch.
const UPLINK: &str = "uplink";
/// Where an agent listens for its peers, by default.
pub const PEER_PORT: u16 = 7413;
/// How long an agent may take to come up or to end.
const LIMIT: Duration = Duration::from_secs(30);

/// Lines of an agent's log that are shown with a failure.
const LAST_LINES: usize = 40;

/// How the agents talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// By mutual TLS, with certificates of the lab's own CA: as it should be.
    Tls,
    /// In plain text, to see what TLS costs.
    Plain,
}

impl Links {
    /// The part of an agent's configuration; `directory` has its certificates.
    fn configuration(self, directory: &Path) -> String {
        match self {
            Self::Tls => format!("[tls]\nca = {:?}\n", directory.join("ca.pem")),
            Self::Plain => "[peer]\ninsecure = true\ninsecure_outside_loopback = true\n".into(),
        }
    }
}

/// A host.
#[derive(Debug)]
pub struct Host {
    agent: Mutex<Option<Child>>,
    node: Node,
    number: u8,
    /// What only this host has, as the harness sees it.
    directory: PathBuf,
    /// Where every host has its bundles, as the host sees it.
    bundles: PathBuf,
    cgroup: String,
    links: Links,
}

impl Host {
    /// Brings up the host `name` at 10.77.0.`number` on the switch. `lab` is the lab's directory.
    pub(crate) fn start(
        lab: &Path,
        name: &str,
        number: u8,
        switch: &Node,
        speed: Option<Speed>,
        links: Links,
    ) -> Result<Self> {
        let directory = lab.join(name);
        let bundles = lab.join("bundles");
        for path in
            ["bundles", "run", "state", "stdio", "logs", "cgroup", "tls"].map(|part| directory.join(part))
        {
            std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        std::fs::create_dir_all(&bundles).context("cannot make the bundle directory")?;
        let lab_name = lab.file_name().context("a lab without a name")?.to_string_lossy();
        let cgroup = format!("/{lab_name}/{name}");
        let node = Node::start(name)?;
        let this = Self { agent: Mutex::new(None), node, number, directory, bundles, cgroup, links };
        this.mount()?;
        this.connect(switch, speed)?;
        Ok(this)
    }

    /// What a host of its own would not share with another: `/run`, the bundles and the view of `/sys` (which shows
    /// the network namespace it was mounted in).
    fn mount(&self) -> Result<()> {
        let own = |part: &str| self.directory.join(part).display().to_string();
        self.node.run(&["mount", "--bind", &own("bundles"), &self.bundles.display().to_string()])?;
        self.node.run(&["mount", "--rbind", "/sys/fs/cgroup", &own("cgroup")])?;
        self.node.run(&["mount", "-t", "sysfs", "sysfs", "/sys"])?;
        self.node.run(&["mount", "--rbind", &own("cgroup"), "/sys/fs/cgroup"])?;
        self.node.run(&["mount", "--bind", &own("run"), "/run"]).map(drop)
    }

    /// Gives the host its certificates, and not the CA's key.
    pub(crate) fn certify(&self, authority: &Path) -> Result<()> {
        let own = self.directory.join("tls");
        for file in ["ca.pem".into(), format!("{}.pem", self.name()), format!("{}.key", self.name())] {
            std::fs::copy(authority.join(&file), own.join(&file))
                .with_context(|| format!("cannot copy {file}"))?;
        }
        Ok(())
    }

    fn connect(&self, switch: &Node, speed: Option<Speed>) -> Result<()> {
        let v4 = format!("{}/16", self.v4());
        let v6 = format!("fd77::{}/64", self.number);
        link::bridge(&self.node, &[&v4, &v6])?;
        link::plug(switch, &self.node, UPLINK, speed)?;
        self.node.run(&["ip", "link", "set", UPLINK, "master", BRIDGE])?;
        link::prefer_cubic(&self.node, &self.v4().to_string())
    }

    /// Gives the link to the switch another speed.
    pub(crate) fn set_speed(&self, switch: &Node, speed: Speed) -> Result<()> {
        link::limit(switch, &self.node, UPLINK, speed)
    }

    /// The namespaces.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.node.name()
    }

    /// Its address on the bridge.
    pub fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.number)
    }

    /// Where its agent listens for peers.
    pub fn peer_address(&self) -> SocketAddr {
        (self.v4(), PEER_PORT).into()
    }

    /// The cgroup, in every hierarchy, below which its containers live.
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// A bundle's directory as the host sees it: the same on every host.
    pub fn bundle(&self, container: &str) -> PathBuf {
        self.bundles.join(container)
    }

    /// Puts a bundle on this host. `shared` is the hosts' shared storage.
    pub(crate) fn install(&self, bundle: &Bundle, shared: &Path) -> Result<()> {
        bundle.write(&self.directory.join("bundles").join(bundle.name()), shared, &self.cgroup)
    }

    /// Takes a bundle away from this host (not from others).
    pub fn hide_bundle(&self, container: &str) -> Result<()> {
        let bundles = self.directory.join("bundles");
        std::fs::rename(bundles.join(container), bundles.join(format!(".{container}")))
            .context("cannot hide the bundle")
    }

    /// Puts a bundle back that was hidden.
    pub fn show_bundle(&self, container: &str) -> Result<()> {
        let bundles = self.directory.join("bundles");
        std::fs::rename(bundles.join(format!(".{container}")), bundles.join(container))
            .context("cannot put the bundle back")
    }

    pub(crate) fn container_log(&self, container: &str) -> PathBuf {
        self.directory.join("logs").join(format!("{container}.log"))
    }

    /// Where a container's output goes on this host: from its start, and after it has arrived.
    pub(crate) fn container_logs(&self, container: &str) -> [PathBuf; 2] {
        [self.container_log(container), self.directory.join("stdio").join(format!("{container}.log"))]
    }

    /// Makes the network `name`, with this address on its `eth0`, as platforms do before they start a container in it.
    pub fn network(&self, name: &str, address: &str) -> Result<()> {
        let (node, port) = (&self.node, format!("net-{name}"));
        node.run(&["ip", "netns", "add", name])?;
        let pair = ["ip", "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", name];
        node.run(&pair)?;
        node.run(&["ip", "link", "set", &port, "master", BRIDGE, "up"])?;
        let inside = |words: &[&str]| node.run(&[&["ip", "-n", name], words].concat()).map(drop);
        inside(&["link", "set", "lo", "up"])?;
        inside(&["address", "add", address, "dev", "eth0"])?;
        inside(&["link", "set", "eth0", "up"])
    }

    /// `runc` on this host.
    pub fn runc(&self) -> Command {
        self.node.command("runc")
    }

    /// Runs `runc` to its end; its standard output.
    pub fn runc_output(&self, words: &[&str]) -> Result<String> {
        output(self.runc().args(words)).with_context(|| format!("on {}", self.name()))
    }

    /// The pid of the agent, as the harness sees it.
    pub fn agent_pid(&self) -> Result<i32> {
        let agent = self.agent.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        Ok(only_child(agent.as_ref().context("no agent runs")?)?.as_raw())
    }

    /// The name of what the kernel's tracer keeps of this host: the lab's, and its own.
    pub(crate) fn trace_name(&self) -> String {
        let lab = self.directory.parent().and_then(Path::file_name).unwrap_or_default();
        format!("{}-{}", lab.display(), self.name())
    }

    /// The directory of its agent's journal.
    pub fn journal(&self) -> PathBuf {
        self.directory.join("state/migrations")
    }

    /// Its agent's audit record.
    pub fn audit(&self) -> PathBuf {
        self.directory.join("state/audit.jsonl")
    }

    /// Starts the agent and waits until its control socket answers connections.
    pub fn start_agent(&self) -> Result<()> {
        self.start_agent_with("")
    }

    /// The same with more lines for `[migration]` of its configuration.
    pub fn start_agent_with(&self, lines: &str) -> Result<()> {
        self.launch(&workspace_binary("pclive-agent")?, None, lines)
    }

    /// Starts an agent that ends, stands still or waits at a named point of a migration (`POINT:kill`, `POINT:stop`,
    /// `POINT:hold`).
    pub fn start_agent_with_fault(&self, fault: &str) -> Result<()> {
        self.start_faulty_agent("")?;
        self.arm(fault)
    }

    /// Starts an agent that can be armed, with more lines for `[migration]` of its configuration.
    pub fn start_faulty_agent(&self, lines: &str) -> Result<()> {
        self.launch(&faulty_agent()?, Some(&self.fault()), lines)
    }

    /// What the agent is to do, once, at a point.
    pub fn arm(&self, fault: &str) -> Result<()> {
        let _ = std::fs::remove_file(self.held());
        // Whole at once: the agent may be looking.
        let new = self.directory.join("fault.new");
        std::fs::write(&new, fault).context("cannot arm the agent")?;
        std::fs::rename(new, self.fault()).context("cannot arm the agent")
    }

    /// Nothing is to happen any more. False: it has.
    pub fn disarm(&self) -> bool {
        std::fs::remove_file(self.fault()).is_ok()
    }

    /// Waits until the agent is at the point at which it was told to wait.
    pub fn await_hold(&self) -> Result<()> {
        until("the agent's coming to the point", LIMIT, || Ok(self.held().exists()))
    }

    /// Lets an agent go on that waits at a point.
    pub fn end_hold(&self) -> Result<()> {
        std::fs::remove_file(self.held()).context("the agent does not wait")
    }

    fn fault(&self) -> PathBuf {
        self.directory.join("fault")
    }

    fn held(&self) -> PathBuf {
        self.directory.join("fault.held")
    }

    /// Waits until the agent has ended by itself.
    pub fn await_agent_end(&self) -> Result<()> {
        let taken = self.agent.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        let Some(mut agent) = taken else { return Ok(()) };
        let ended = until("the agent's end", LIMIT, || Ok(agent.try_wait()?.is_some()));
        if ended.is_err() {
            *self.agent.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(agent);
        }
        ended.with_context(|| self.last_words())
    }

    fn launch(&self, binary: &Path, fault: Option<&Path>, lines: &str) -> Result<()> {
        let mut command = self.node.command(&binary.display().to_string());
        command.envs(fault.map(|fault| ("FAULT_INJECTION", fault)));
        let config = self.directory.join("agent.toml");
        // Most tests that end an agent are not interested in the patience with a link that may come back.
        let patience =
            if lines.contains("reconnect_timeout_ms") { "" } else { "reconnect_timeout_ms = 3000\n" };
        std::fs::write(&config, self.agent_config() + patience + lines)
            .context("cannot write the agent's configuration")?;
        let log = File::options().create(true).append(true).open(self.directory.join("agent.log"))?;
        command.arg("--config").arg(&config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut agent = command.spawn().context("cannot run nsenter")?;
        let socket = self.directory.join(CONTROL.trim_start_matches('/'));
        let up = until("the agent's control socket", LIMIT, || {
            if let Some(status) = agent.try_wait()? {
                bail!("the agent ended with {status}");
            }
            Ok(std::os::unix::net::UnixStream::connect(&socket).is_ok())
        });
        up.with_context(|| format!("agent of {}: {}", self.name(), self.agent_log()))?;
        *self.agent.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(agent);
        Ok(())
    }

    /// The agent's configuration: its peers, and its files below the lab; the rest by default.
    fn agent_config(&self) -> String {
        let peers = [("host-a", 1), ("host-b", 2), ("host-without-agent", 9)];
        let peers =
            peers.map(|(name, number)| format!("{name} = \"10.77.0.{number}:{PEER_PORT}\"\n")).concat();
        format!(
            "[agent]\nstate_dir = {:?}\n{}[network]\nbridge = \"br0\"\n[peers]\n{peers}[migration]\nstdio_dir = {:?}\n",
            self.directory.join("state"),
            self.links.configuration(&self.directory.join("tls")),
            self.directory.join("stdio"),
        )
    }

    /// Ends the agent with a signal and waits for it. Nothing happens when there is none.
    pub fn stop_agent(&self, signal: Signal) -> Result<()> {
        let taken = self.agent.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        let Some(mut agent) = taken else { return Ok(()) };
        // `nsenter` waits for the agent, its child in the node's PID namespace.
        kill(only_child(&agent)?, signal).context("cannot signal the agent")?;
        // It stands still when its child does, and would not see it end.
        let waiting = nix::unistd::Pid::from_raw(i32::try_from(agent.id()).context("a pid")?);
        kill(waiting, Signal::SIGCONT).context("cannot wake nsenter")?;
        until("the agent's end", LIMIT, || Ok(agent.try_wait()?.is_some()))
    }

    /// What the agent has logged so far.
    pub fn agent_log(&self) -> String {
        std::fs::read_to_string(self.directory.join("agent.log")).unwrap_or_default()
    }

    /// The end of what the agent has logged, under the host's name.
    pub fn last_words(&self) -> String {
        let log = self.agent_log();
        let lines: Vec<&str> = log.lines().collect();
        format!(
            "--- agent of {}\n{}\n",
            self.name(),
            lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
        )
    }

    /// `pclivectl` on this host.
    pub fn ctl(&self) -> Result<Command> {
        let mut command = self.node.command(&workspace_binary("pclivectl")?.display().to_string());
        command.env("PCLIVE_AGENT", format!("unix://{CONTROL}"));
        Ok(command)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Whatever is left of it ends with the node.
        let _ = self.stop_agent(Signal::SIGKILL);
    }
}
