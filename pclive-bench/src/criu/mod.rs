//! The same workload moved by runc with CRIU, as users do it: memory goes over the link to CRIU's page server, every other
//! image by tar, and runc restores from them. Images are in memory (tmpfs), the best case; nothing is encrypted.
//!
//! Where the kernel tracks writes for CRIU (soft-dirty), memory goes in rounds while the container runs; elsewhere all of
//! it goes while the container stands still. No machine with soft-dirty was at hand: the rounds were never run.

mod images;
mod migration;
mod stats;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use pclive_tests::command::finish;
use pclive_tests::measure::Moved;
use pclive_tests::{Bundle, Container, Host, Lab};

use crate::setting::Workload;
use migration::Migration;

/// The oldest version that is of interest.
const OLDEST_MAJOR: u32 = 4;
/// Rounds before the last, where writes are tracked.
const PRE_DUMPS: u32 = 2;
/// The container's network on both hosts.
const NETWORK: &str = "criu";
/// What a host calls its end of the container's interface.
const PORT_OF_CONTAINER: &str = "net-criu";
/// The container's hardware address: the same at both hosts, so that no client has to learn it.
const HARDWARE_ADDRESS: &str = "02:77:00:00:02:01";
/// Number of CAP_SYS_RESOURCE, without which limits of other users' processes cannot be read.
const CAP_SYS_RESOURCE: u32 = 24;

/// CRIU on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Criu {
    path: PathBuf,
    version: String,
    /// Whether the kernel tells it which pages were written.
    tracks_writes: bool,
    /// Whether it may read the limits of other users' processes.
    reads_limits: bool,
}

impl Criu {
    /// Looks at the program.
    ///
    /// # Errors
    /// When it does not start, is too old, or cannot work on this kernel.
    pub(crate) fn at(path: &Path) -> Result<Self> {
        let path = fs::canonicalize(path).with_context(|| format!("no CRIU at {}", path.display()))?;
        let ask = |words: &[&str]| finish(Command::new(&path).args(words));
        let said = ask(&["--version"])?;
        let said = String::from_utf8_lossy(&said.stdout);
        let version = version(&said).with_context(|| format!("{} is no CRIU: {said}", path.display()))?;
        let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        ensure!(
            major >= Some(OLDEST_MAJOR),
            "{} is CRIU {version}, but {OLDEST_MAJOR} or later is compared with; `tests/install-criu DIR` fetches one",
            path.display()
        );
        succeeded(&ask(&["check"])?)
            .with_context(|| format!("CRIU {version} does not work on this kernel"))?;
        let tracks_writes = ask(&["check", "--feature", "mem_dirty_track"])?.status.success();
        let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
        let reads_limits = has_capability(&status, CAP_SYS_RESOURCE);
        Ok(Self { path, version, tracks_writes, reads_limits })
    }

    /// Its version, and how it is used here.
    pub(crate) fn described(&self) -> String {
        let how = if self.tracks_writes {
            format!("{PRE_DUMPS} rounds before the dump")
        } else {
            "no rounds: this kernel does not track writes for it".into()
        };
        format!("CRIU {} ({how})", self.version)
    }

    /// Why it cannot move this workload here; `None` if it can.
    pub(crate) fn obstacle(&self, workload: &Workload) -> Option<&'static str> {
        let is_of_another_user = matches!(workload, Workload::Oltp(_));
        (is_of_another_user && !self.reads_limits)
            .then_some("its processes are another user's, whose limits CRIU reads with CAP_SYS_RESOURCE only")
    }

    /// Starts a container that CRIU can move: in a network that its host has made, on both hosts, and with an output that
    /// is no file of its host.
    pub(crate) fn start(&self, lab: &Lab, bundle: &Bundle) -> Result<Container> {
        let options = lab.directory().join("criu.conf");
        fs::write(&options, "network-lock nftables\n").context("cannot write CRIU's options")?;
        let bundle =
            bundle.clone().network(NETWORK).annotation("org.criu.config", &options.display().to_string());
        let container = lab.install(&bundle, &[&lab.a, &lab.b])?;
        for host in [&lab.b, &lab.a] {
            host.network(NETWORK, &format!("{}/16", container.v4))?;
            let address = ["ip", "-n", NETWORK, "link", "set", "eth0", "address", HARDWARE_ADDRESS];
            host.node().run(&address)?;
            unplug(host)?;
        }
        plug(&lab.a)?;
        container.start_without_output(&lab.a)?;
        Ok(container)
    }

    /// Moves it from host a to host b.
    ///
    /// # Errors
    /// When a step fails, with what its log says of errors; the container is then where that step left it.
    pub(crate) fn migrate(&self, lab: &Lab, container: &Container) -> Result<Moved> {
        Migration::new(self, lab, container)?.run()
    }
}

/// Of what `criu --version` says.
fn version(said: &str) -> Option<String> {
    Some(said.lines().find_map(|line| line.strip_prefix("Version:"))?.trim().to_owned())
}

/// Whether the capability of this number is effective, by `/proc/PID/status`.
fn has_capability(status: &str, number: u32) -> bool {
    let set =
        status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    set.is_some_and(|set| set >> number & 1 == 1)
}

/// The container's interface is on the switch.
fn plug(host: &Host) -> Result<()> {
    host.node().run(&["ip", "link", "set", PORT_OF_CONTAINER, "up"]).map(drop)
}

/// It is not.
fn unplug(host: &Host) -> Result<()> {
    host.node().run(&["ip", "link", "set", PORT_OF_CONTAINER, "down"]).map(drop)
}

/// # Errors
/// With what the command said.
fn succeeded(output: &Output) -> Result<()> {
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_that_of_the_program() {
        assert_eq!(version("Version: 4.1.1\nGitID: v4.1.1\n").as_deref(), Some("4.1.1"));
        assert_eq!(version("GNU tar 1.34\n"), None);
    }

    #[test]
    fn capability_is_a_bit_of_the_effective_set() {
        let status = "CapPrm:\t000001ffffffffff\nCapEff:\t000001fffeffffff\n";
        assert!(has_capability(status, 23) && has_capability(status, 25));
        assert!(!has_capability(status, CAP_SYS_RESOURCE));
        assert!(!has_capability("CapPrm:\t000001ffffffffff\n", CAP_SYS_RESOURCE));
    }
}
