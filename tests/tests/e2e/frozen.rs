//! What may not happen while the container stands still.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use pclive_tests::workload::redis::{Redis, bundle};
use pclive_tests::{Host, Lab};

use crate::{migrate, ready};

/// How long every command of the slow runtime takes: far longer than any downtime here.
const COMMAND: Duration = Duration::from_secs(3);

/// Starts the host's agent anew with a runtime whose commands take [`COMMAND`] longer than runc's.
fn slow_runtime(lab: &Lab, host: &Host) -> Result<()> {
    let binary = lab.directory().join("slow-runc");
    std::fs::write(&binary, format!("#!/bin/sh\nsleep {}\nexec runc \"$@\"\n", COMMAND.as_secs()))?;
    std::fs::set_permissions(&binary, Permissions::from_mode(0o755))?;
    host.stop_agent(Signal::SIGTERM)?;
    host.start_agent_with(&format!("[runtimes.runc]\nbinary = {binary:?}\n"))
}

#[test]
fn no_command_of_the_runtime_runs_while_the_container_stands_still() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    slow_runtime(&lab, &lab.a)?;
    slow_runtime(&lab, &lab.b)?;
    let container = lab.start(&bundle("redis-1"))?;
    let redis = Redis::new(&lab.client, container.v4);
    redis.populate(32 << 20)?;
    let clients = redis.clients(2, Duration::from_millis(1))?;
    let report = migrate(&container, &lab.a, &lab.b, &[])?;
    ensure!(Duration::from_nanos(report.total_ns) > COMMAND, "the slow runtime was not used: {report:?}");
    ensure!(Duration::from_nanos(report.downtime_ns) < COMMAND, "{report:?}");
    clients.wait_for_answers(100)?;
    let record = clients.stop()?;
    record.nothing_lost()?;
    ensure!(record.longest_gap < COMMAND, "a client waited for {:?}", record.longest_gap);
    Ok(())
}
