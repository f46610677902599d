//! What a container takes of its host: memory and CPU time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::container::Container;
use crate::host::Host;

/// The kernel adds up what its CPUs have charged to a cgroup every 2 s (`FLUSH_TIME` in mm/memcontrol.c), by a timer that
/// does not wake an idle CPU; before that `memory.stat` may be wrong by 64 pages for each CPU.
const CHARGES_ADDED_UP: Duration = Duration::from_secs(3);

/// Memory of a container in bytes: of its processes, added up, and what its cgroup is charged with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Footprint {
    /// Resident memory; shared pages as often as they are mapped.
    pub resident: u64,
    /// The same, each page once.
    pub proportional: u64,
    /// Memory of no file that is in page tables.
    pub anonymous: u64,
    /// Anonymous memory that the cgroup is charged with.
    pub charged_anonymous: u64,
    /// Shared memory, and files in memory, that the cgroup is charged with.
    pub charged_shared: u64,
}

impl Footprint {
    /// Of a container that is on `host`. Takes 3 s.
    ///
    /// # Errors
    /// When the host has no memory controller.
    pub fn of(container: &Container, host: &Host) -> Result<Self> {
        let cgroup = cgroup(container, host, "memory", "memory.stat")?;
        std::thread::sleep(CHARGES_ADDED_UP);
        let mut footprint = Self::default();
        for pid in read(&cgroup.join("cgroup.procs"))?.split_whitespace() {
            // A process that has ended meanwhile takes nothing.
            let Ok(rollup) = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else { continue };
            let bytes = |name: &str| Ok::<_, anyhow::Error>(number(&rollup, name)? * 1024);
            footprint.resident += bytes("Rss:")?;
            footprint.proportional += bytes("Pss:")?;
            footprint.anonymous += bytes("Anonymous:")?;
        }
        let charged = read(&cgroup.join("memory.stat"))?;
        // The names of version 1, then those of version 2.
        footprint.charged_anonymous = number(&charged, "total_rss").or_else(|_| number(&charged, "anon"))?;
        footprint.charged_shared = number(&charged, "total_shmem").or_else(|_| number(&charged, "shmem"))?;
        Ok(footprint)
    }
}

/// By how much `copy` is more than `original`, percent of that; below zero if it is less.
pub fn growth(original: u64, copy: u64) -> f64 {
    100.0 * (copy as f64 - original as f64) / original.max(1) as f64
}

/// CPU time that a container has used on this host.
///
/// # Errors
/// When the host does not count it.
pub fn cpu_time(container: &Container, host: &Host) -> Result<Duration> {
    if let Ok(cgroup) = cgroup(container, host, "cpuacct", "cpuacct.usage") {
        let text = read(&cgroup.join("cpuacct.usage"))?;
        return Ok(Duration::from_nanos(text.trim().parse().context("cpuacct.usage is no number")?));
    }
    let stat = read(&cgroup(container, host, "cpu", "cpu.stat")?.join("cpu.stat"))?;
    Ok(Duration::from_micros(number(&stat, "usage_usec")?))
}

/// CPU time of the tasks that a container has now, since each began.
pub fn tasks_cpu_time(container: &Container, host: &Host) -> Result<Duration> {
    let cgroup = cgroup(container, host, "memory", "memory.stat")?;
    let tasks = read(&cgroup.join("cgroup.procs"))?;
    let stats =
        tasks.split_whitespace().filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok());
    Ok(stats.map(|stat| used(&stat)).sum())
}

/// Of `/proc/PID/stat`: in user mode and in the kernel.
fn used(stat: &str) -> Duration {
    /// What the kernel counts in, on this architecture.
    const TICK: Duration = Duration::from_millis(10);
    // The name may have blanks; behind it the first word is the third field.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: u32 = fields.skip(11).take(2).filter_map(|field| field.parse::<u32>().ok()).sum();
    TICK * ticks
}

/// The container's cgroup that has this file, of a version 1 controller or of version 2.
fn cgroup(container: &Container, host: &Host, controller: &str, file: &str) -> Result<PathBuf> {
    let relative = format!("{}/{}", host.cgroup().trim_start_matches('/'), container.name);
    let roots = [Path::new("/sys/fs/cgroup").join(controller), PathBuf::from("/sys/fs/cgroup")];
    let found = roots.map(|root| root.join(&relative)).into_iter().find(|place| place.join(file).exists());
    found.with_context(|| format!("{} has no controller {controller}", container.name))
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The number behind a word at the start of a line.
fn number(text: &str, name: &str) -> Result<u64> {
    let words = text.lines().map(|line| line.split_whitespace());
    let mut found = words.filter_map(|mut words| (words.next()? == name).then(|| words.next()?.parse().ok()));
    found.next().flatten().with_context(|| format!("no line {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn used_time_is_that_of_user_mode_and_kernel() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 3 0 250 50 9 9 20 0 1 0 100 0 0";
        assert_eq!(used(stat), Duration::from_secs(3));
        assert_eq!(used(""), Duration::ZERO);
    }
}
