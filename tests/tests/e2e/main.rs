//! Migrations end to end: two agents on two hosts, real containers, real workloads, clients that watch.

mod budget;
mod cancel;
mod clients;
mod closing;
mod compression;
mod connections;
mod convergence;
mod crowd;
mod endings;
mod footprint;
mod frozen;
mod hooks;
mod keep;
mod links;
mod many;
mod mute;
mod postcopy;
mod postgres;
mod recovery;
mod redis;
mod refusals;
mod report;
mod servers;
mod soak;
mod states;
mod surroundings;
mod sweep;
mod torture;
mod verify;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pclive_tests::ctl::Report;
use pclive_tests::wait::until;
use pclive_tests::{Container, Host, needs};

/// How long the kernel may take to take a network namespace down.
const LIMIT: Duration = Duration::from_secs(10);

/// Whether the test can run here; see [`needs::met`].
fn ready(programs: &[&str]) -> bool {
    needs::met(programs)
}

/// Migrates and checks what must hold after every migration: it runs at the destination, as a container that the
/// runtime knows; at the source nothing of it is left.
fn migrate(container: &Container, from: &Host, to: &Host, options: &[&str]) -> Result<Report> {
    let report = from.migrate(&container.name, to, options).with_context(|| {
        format!(
            "{} is {:?} on {}; it has said {:?}",
            container.name,
            container.status(from),
            from.name(),
            container.log(from)
        )
    })?;
    runs_only_at(container, to, from)
        .with_context(|| format!("after a migration\n{}{}", from.last_words(), to.last_words()))?;
    ensure!(report.downtime_ns > 0 && report.total_ns >= report.downtime_ns, "an empty report: {report:?}");
    ensure!(report.rounds.last().is_some_and(|round| round.r#final), "no final round: {report:?}");
    Ok(report)
}

/// The container runs on `here`, can be entered, and has left nothing on `gone`.
fn runs_only_at(container: &Container, here: &Host, gone: &Host) -> Result<()> {
    ensure!(container.status(here)?.as_deref() == Some("running"), "not running on {}", here.name());
    let pid = container.pid(here)?;
    here.node().run(&["test", "-d", &format!("/proc/{pid}")])?;
    ensure!(container.status(gone)?.is_none(), "{} still knows the container", gone.name());
    ensure!(!container.has_cgroup(gone), "a cgroup is left on {}", gone.name());
    nothing_left_in_network(gone)
}

/// No firewall rule is left on the host, and no port of a container once the kernel has taken its namespace down.
fn nothing_left_in_network(host: &Host) -> Result<()> {
    let rules = host.node().run(&["nft", "list", "ruleset"])?;
    ensure!(rules.trim().is_empty(), "rules are left on {}: {rules}", host.name());
    let mut left = String::new();
    let gone = until("the end of the container's port", LIMIT, || {
        let ports = host.node().run(&["ip", "-o", "link", "show", "master", "br0"])?;
        left = ports.lines().filter(|line| !line.contains("uplink")).collect();
        Ok(left.is_empty())
    });
    gone.with_context(|| format!("left on {}: {left}", host.name()))
}
