//! What a lab leaves when its process was killed: a directory and empty cgroups. The next lab removes them.
//!
//! A lab's directory is `/tmp/pclive-lab-PID-N`, with the start time of the process PID in the file `owner`; its
//! cgroups are `/pclive-lab-PID-N` in every hierarchy, its instances of the kernel's tracer `pclive-lab-PID-N-HOST`. They
//! are removed when that process is gone; the instances only where the tracer's file system is mounted.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::syscalls::INSTANCES;

/// Where labs keep their files.
const BASE: &str = "/tmp";
/// What every name of a lab starts with.
const PREFIX: &str = "pclive-lab-";
/// The cgroup hierarchies: one directory each (v1 and hybrid), or the hierarchy itself (v2).
const CGROUPS: &str = "/sys/fs/cgroup";

/// Makes the directory of lab `number` of this process.
pub fn claim(number: u32) -> Result<PathBuf> {
    let pid = std::process::id();
    let path = PathBuf::from(BASE).join(format!("{PREFIX}{pid}-{number}"));
    std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
    let born = start_time(pid).context("cannot read this process's start time")?;
    std::fs::write(path.join("owner"), born).context("cannot write the owner of the lab")?;
    Ok(path)
}

/// Removes what dead labs left. Failures are not errors: the next lab tries again.
pub fn sweep() {
    for path in children(Path::new(BASE)) {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        let Some(pid) = rest.split('-').next().and_then(|pid| pid.parse().ok()) else { continue };
        // Empty: it is just being written.
        let owner = std::fs::read_to_string(path.join("owner")).ok().filter(|owner| !owner.is_empty());
        if owner.is_some() && start_time(pid) != owner {
            remove(&path);
        }
    }
}

/// Removes a lab's directory, its cgroups and its traces. Nothing may run in them any more.
pub fn remove(lab: &Path) {
    if let Some(name) = lab.file_name().and_then(|name| name.to_str()) {
        let own = |path: &PathBuf| {
            let instance = path.file_name().and_then(|instance| instance.to_str());
            instance
                .and_then(|instance| instance.strip_prefix(name))
                .is_some_and(|rest| rest.starts_with('-'))
        };
        let traces = children(Path::new(INSTANCES));
        traces.iter().filter(|path| own(path)).for_each(|instance| drop(std::fs::remove_dir(instance)));
        for hierarchy in children(Path::new(CGROUPS)).into_iter().chain([PathBuf::from(CGROUPS)]) {
            remove_cgroup(&hierarchy.join(name));
            // Those of its agents.
            children(&hierarchy).iter().filter(|path| own(path)).for_each(|cgroup| remove_cgroup(cgroup));
        }
    }
    let _ = std::fs::remove_dir_all(lab);
}

fn remove_cgroup(cgroup: &Path) {
    children(cgroup).iter().filter(|path| path.is_dir()).for_each(|path| remove_cgroup(path));
    let _ = std::fs::remove_dir(cgroup);
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).collect()
}

/// When a process started, in clock ticks since boot: with the pid it names one process.
fn start_time(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19).map(str::to_owned)
}
