//! Scheduling policy, priorities and CPU affinity of a thread, read from outside.
//!
//! A mask that holds every CPU of the container's cpuset says nothing that the program has asked for: it is
//! carried as "any", so that a container that comes to a larger host may use it.

use std::path::Path;

use super::failure::CaptureStateError;
use crate::model::state::Scheduling;
use crate::model::{Pid, Vpid};
use crate::sys::sched;

/// The CPUs that a container may use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuSet(Vec<u8>);

impl CpuSet {
    /// The cpuset of a process: its cgroup's, or every CPU that is online.
    pub fn of(pid: Pid) -> Self {
        let path = std::fs::read_to_string(format!("/proc/{pid}/cpuset")).unwrap_or_default();
        let path = Path::new(path.trim().trim_start_matches('/'));
        let online = || read_list(Path::new("/sys/devices/system/cpu/online"));
        Self(path.ancestors().find_map(cgroup_cpus).or_else(online).unwrap_or_default())
    }

    /// True if the mask allows every CPU of the set.
    pub fn is_within(&self, mask: &[u8]) -> bool {
        let allowed = |(index, byte): (usize, &u8)| byte & !mask.get(index).copied().unwrap_or(0) == 0;
        self.0.iter().enumerate().all(allowed)
    }
}

/// The CPUs of a cgroup in any of the usual hierarchies; the path is relative to their roots.
fn cgroup_cpus(path: &Path) -> Option<Vec<u8>> {
    const PLACES: [(&str, &str); 3] = [
        ("/sys/fs/cgroup/cpuset", "cpuset.effective_cpus"),
        ("/sys/fs/cgroup", "cpuset.cpus.effective"),
        ("/sys/fs/cgroup/unified", "cpuset.cpus.effective"),
    ];
    PLACES.iter().find_map(|(root, file)| read_list(&Path::new(root).join(path).join(file)))
}

fn read_list(path: &Path) -> Option<Vec<u8>> {
    let mask = parse_list(&std::fs::read_to_string(path).ok()?)?;
    (!mask.is_empty()).then_some(mask)
}

/// `0-3,8` as a bit mask.
fn parse_list(text: &str) -> Option<Vec<u8>> {
    const MAX_CPUS: usize = 1 << 16;
    let mut mask = Vec::new();
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last >= MAX_CPUS {
            return None;
        }
        mask.resize(mask.len().max(last / 8 + 1), 0);
        (first..=last).for_each(|cpu| mask[cpu / 8] |= 1 << (cpu % 8));
    }
    Some(mask)
}

/// How a thread is scheduled.
pub(super) fn capture(pid: Pid, vpid: Vpid, cpus: &CpuSet) -> Result<Scheduling, CaptureStateError> {
    let failed =
        |what| move |source: nix::Error| CaptureStateError::Request { pid, what, source: source.into() };
    let attributes = sched::attributes(pid).map_err(failed("scheduling attributes"))?;
    if attributes.policy == libc::SCHED_DEADLINE as u32 {
        let what = "it is scheduled with deadlines (SCHED_DEADLINE)".into();
        return Err(CaptureStateError::Unsupported { vpid, what, hint: "give it another policy (chrt)" });
    }
    let mask = sched::affinity(pid).map_err(failed("CPU affinity"))?;
    Ok(Scheduling {
        policy: attributes.policy,
        flags: attributes.flags & libc::SCHED_FLAG_RESET_ON_FORK as u64,
        nice: attributes.nice,
        priority: attributes.priority,
        affinity: if cpus.is_within(&mask) { Vec::new() } else { trimmed(mask) },
        io_priority: sched::io_priority(pid).map_err(failed("I/O priority"))?,
    })
}

fn trimmed(mut mask: Vec<u8>) -> Vec<u8> {
    let used = mask.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    mask.truncate(used);
    mask
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn list_of_ranges_is_a_mask() {
        assert_eq!(parse_list("0-3,8\n"), Some(vec![0b1111, 1]));
        assert_eq!(parse_list(""), Some(vec![]));
        assert_eq!(parse_list("0-99999999"), None);
        assert_eq!(parse_list("x"), None);
    }

    #[test]
    fn mask_of_all_allowed_cpus_is_unrestricted() {
        let cpus = CpuSet(vec![0b0110]);
        assert!(cpus.is_within(&[0b1110]));
        assert!(cpus.is_within(&[0b0110]));
        assert!(!cpus.is_within(&[0b0010]));
        assert!(!cpus.is_within(&[]));
    }

    #[test]
    fn own_cpuset_is_not_empty() {
        assert_ne!(CpuSet::of(Pid(std::process::id() as i32)), CpuSet::default());
    }

    proptest! {
        #[test]
        fn any_list_is_parsed_or_refused(text in "[0-9,-]{0,30}") {
            let _ = parse_list(&text);
        }
    }
}
