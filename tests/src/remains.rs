//! What migrations can leave behind on a host: processes, namespaces, cgroups and what is set in them, ports, firewall
//! rules, mounts.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::container::Container;
use crate::host::Host;
use crate::wait::until;

/// How long the kernel may take to take namespaces down.
const LIMIT: Duration = Duration::from_secs(15);
/// What runs on a host by itself, beside its agent.
const OWN: [&str; 2] = ["host-init", "nsenter"];
/// How the names of both kinds of agents begin.
const AGENT: &str = "pclive-agent";

impl Host {
    /// Waits until nothing is on this host but its agent and these containers, which run and are held by nothing.
    ///
    /// # Errors
    /// With everything else that is there.
    pub fn await_clean(&self, containers: &[&Container]) -> Result<()> {
        let mut left = Vec::new();
        let clean = until(&format!("the end of what is left on {}", self.name()), LIMIT, || {
            left = self.remains(containers)?;
            Ok(left.is_empty())
        });
        clean.with_context(|| format!("on {} are left: {}", self.name(), left.join("; ")))
    }

    /// What is on this host beside its agent and these containers, in words.
    pub fn remains(&self, containers: &[&Container]) -> Result<Vec<String>> {
        let mut left = self.strange_processes(containers.len());
        left.extend(self.strange_cgroups(containers));
        let rules = self.node().run(&["nft", "list", "ruleset"])?;
        left.extend((!rules.trim().is_empty()).then(|| format!("rules {rules}")));
        let ports = self.node().run(&["ip", "-o", "link", "show", "master", "br0"])?;
        let ports: Vec<&str> = ports.lines().filter(|line| !line.contains("uplink")).collect();
        left.extend((ports.len() != containers.len()).then(|| format!("ports {ports:?}")));
        let known = self.runc_output(&["list", "--quiet"])?;
        let is_named = |name: &&str| containers.iter().any(|container| container.name == *name);
        left.extend(known.lines().filter(|name| !is_named(name)).map(|name| format!("container {name}")));
        for container in containers {
            left.extend(self.locks(container)?);
        }
        let mounts = std::fs::read_to_string(format!("/proc/{}/mounts", self.node().pid()))?;
        let of_runtime = mounts.lines().filter(|line| line.contains(AGENT) || line.contains("/run/runc/"));
        left.extend(of_runtime.map(|line| format!("mount {line}")));
        Ok(left)
    }

    /// Rules inside of a container.
    fn locks(&self, container: &Container) -> Result<Option<String>> {
        let pid = container.pid(self)?.to_string();
        let inside = ["nsenter", "--net", "--target", &pid, "--", "nft", "list", "ruleset"];
        let rules = self.node().run(&inside)?;
        Ok((!rules.trim().is_empty()).then(|| format!("rules inside of {}: {rules}", container.name)))
    }

    /// Processes of the host that are not its own, more than one agent, and more PID namespaces than containers.
    fn strange_processes(&self, containers: usize) -> Vec<String> {
        let own = pid_namespace(&Path::new("/proc").join(self.node().pid().to_string()));
        let mut left = Vec::new();
        let (mut agents, mut namespaces) = (0, Vec::new());
        let proc = PathBuf::from(format!("/proc/{}/root/proc", self.node().pid()));
        for entry in std::fs::read_dir(proc).into_iter().flatten().flatten() {
            let path = entry.path();
            // Other entries have no such file, and processes that have just ended need not be looked at.
            let Ok(comm) = std::fs::read_to_string(path.join("comm")) else { continue };
            let Some(namespace) = pid_namespace(&path) else { continue };
            if Some(&namespace) != own.as_ref() {
                namespaces.push(namespace);
                continue;
            }
            let comm = comm.trim();
            if comm.starts_with(AGENT) {
                agents += 1;
            } else if !OWN.contains(&comm) {
                left.push(format!("process {comm}"));
            }
        }
        namespaces.sort();
        namespaces.dedup();
        left.extend((agents > 1).then(|| format!("{agents} agents")));
        left.extend((namespaces.len() != containers).then(|| format!("{} PID namespaces", namespaces.len())));
        left
    }

    /// Cgroups of other containers, and limits that a migration has set.
    fn strange_cgroups(&self, containers: &[&Container]) -> Vec<String> {
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let roots = hierarchies.map(|entry| entry.path()).chain([PathBuf::from("/sys/fs/cgroup")]);
        let mut left = Vec::new();
        for root in roots {
            let parent = root.join(self.cgroup().trim_start_matches('/'));
            for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
                let path = entry.path();
                if !path.is_dir() {
                    continue;
                }
                let known = containers.iter().any(|container| path.ends_with(&container.name));
                left.extend((!known).then(|| format!("cgroup {}", path.display())));
                left.extend(limits(&path));
            }
        }
        left
    }
}

fn pid_namespace(process: &Path) -> Option<PathBuf> {
    std::fs::read_link(process.join("ns/pid")).ok()
}

fn limits(cgroup: &Path) -> Vec<String> {
    let set = |file: &str, harmless: &[&str]| {
        let text = std::fs::read_to_string(cgroup.join(file)).ok()?;
        let text = text.trim();
        (!harmless.contains(&text)).then(|| format!("{file} of {} is {text}", cgroup.display()))
    };
    let files = [
        ("cpu.cfs_quota_us", &["-1"][..]),
        ("cpu.max", &["max 100000"]),
        ("freezer.state", &["THAWED"]),
        ("cgroup.freeze", &["0"]),
    ];
    files.iter().filter_map(|(file, harmless)| set(file, harmless)).collect()
}
