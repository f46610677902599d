//! The cgroup freezer of a container: it holds the tasks even when the agent is gone.
//!
//! Kernel: cgroup v2 `cgroup.freeze` (Linux 5.2) or the v1 freezer controller. Guard: thaws on drop unless
//! [`Freezer::keep`] is called. It is engaged on tasks that ptrace has stopped already, so that nothing runs in
//! between.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::CaptureError;
use super::tree::TreeProcess;
use crate::model::Pid;

/// A freezer and the two words that it understands.
#[derive(Debug)]
pub(super) struct Freezer {
    directory: PathBuf,
    file: PathBuf,
    freeze: &'static str,
    thaw: &'static str,
    engaged: bool,
}

impl Freezer {
    /// Finds the freezer of the container of `init`, whose processes these are. Nothing is frozen yet.
    pub(super) fn find(init: Pid, processes: &[TreeProcess]) -> Result<Self, CaptureError> {
        let path = format!("/proc/{init}/cgroup");
        let text = fs::read_to_string(&path).map_err(|source| CaptureError::Read { path, source })?;
        let unified = cgroup_of(&text, str::is_empty);
        let legacy = cgroup_of(&text, |controllers| controllers.split(',').any(|name| name == "freezer"));
        let candidates = [
            (unified, "cgroup2", "cgroup.freeze", "1", "0"),
            (legacy, "freezer", "freezer.state", "FROZEN", "THAWED"),
        ];
        for (cgroup, hierarchy, name, freeze, thaw) in candidates {
            let Some(cgroup) = cgroup.filter(|cgroup| cgroup != "/") else { continue };
            for mount in mounts(hierarchy) {
                let directory = mount.join(cgroup.trim_start_matches('/'));
                let file = directory.join(name);
                if file.exists() && holds_only(&directory, processes) {
                    return Ok(Self { directory, file, freeze, thaw, engaged: false });
                }
            }
        }
        Err(CaptureError::NoFreezer { init })
    }

    /// Freezes the container, if the cgroup still holds nothing but `processes`.
    pub(super) fn engage(&mut self, init: Pid, processes: &[TreeProcess]) -> Result<(), CaptureError> {
        if !holds_only(&self.directory, processes) {
            return Err(CaptureError::NoFreezer { init });
        }
        self.write(self.freeze)?;
        self.engaged = true;
        Ok(())
    }

    /// True if somebody has asked for the tasks to stand still: also when a dead agent did.
    pub(super) fn is_engaged(&self) -> Result<bool, CaptureError> {
        let failed = |source| CaptureError::Freezer { path: self.file.display().to_string(), source };
        let word = fs::read_to_string(&self.file).map_err(failed)?;
        Ok(word.trim_end() != self.thaw)
    }

    /// Lets the tasks run again, or die if they have been killed.
    pub(super) fn thaw(mut self) -> Result<(), CaptureError> {
        self.engaged = false;
        self.write(self.thaw)
    }

    /// The same, and it can be engaged again. On `Err` dropping it tries once more.
    pub(super) fn disengage(&mut self) -> Result<(), CaptureError> {
        self.write(self.thaw)?;
        self.engaged = false;
        Ok(())
    }

    /// Leaves the container frozen for good.
    pub(super) fn keep(mut self) {
        self.engaged = false;
    }

    fn write(&self, word: &str) -> Result<(), CaptureError> {
        let failed = |source| CaptureError::Freezer { path: self.file.display().to_string(), source };
        fs::write(&self.file, word).map_err(failed)
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        if self.engaged
            && let Err(error) = self.write(self.thaw)
        {
            tracing::error!(%error, "the container stays frozen");
        }
    }
}

/// The path of the hierarchy whose controllers satisfy `is` (cgroups(7): `id:controllers:path`).
fn cgroup_of(text: &str, is: impl Fn(&str) -> bool) -> Option<String> {
    text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let controllers = parts.next()?;
        is(controllers).then(|| parts.next().map(str::to_owned)).flatten()
    })
}

/// Where a hierarchy is mounted: cgroup2, or the v1 hierarchy with this controller.
fn mounts(hierarchy: &str) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fits = |kind: &str, options: &str| match hierarchy {
        "cgroup2" => kind == "cgroup2",
        controller => kind == "cgroup" && options.split(',').any(|option| option == controller),
    };
    text.lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let (place, kind, options) = (words.get(1)?, words.get(2)?, words.get(3)?);
            fits(kind, options).then(|| PathBuf::from(place))
        })
        .collect()
}

/// True if the cgroup has processes and all of them are the container's: never freeze anything else.
fn holds_only(directory: &Path, processes: &[TreeProcess]) -> bool {
    let text: io::Result<String> = fs::read_to_string(directory.join("cgroup.procs"));
    let ids: Vec<i32> =
        text.unwrap_or_default().split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
    !ids.is_empty() && ids.iter().all(|id| processes.iter().any(|process| process.pid.0 == *id))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CGROUPS: &str = "7:pids:/box\n6:freezer,x:/box/1:2\n1:name=systemd:/\n0::/unified/box\n";

    #[test]
    fn hierarchies_are_found_by_controller() {
        assert_eq!(cgroup_of(CGROUPS, |c| c.split(',').any(|n| n == "freezer")).as_deref(), Some("/box/1:2"));
        assert_eq!(cgroup_of(CGROUPS, str::is_empty).as_deref(), Some("/unified/box"));
        assert_eq!(cgroup_of(CGROUPS, |c| c == "memory"), None);
    }
}
