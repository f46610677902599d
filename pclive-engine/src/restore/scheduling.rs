//! Scheduling policy, priorities and CPU affinity of a thread, set from outside; only what differs is touched.

use super::failure::{RestoreStateError, request};
use crate::model::Pid;
use crate::model::Vpid;
use crate::model::state::Scheduling;
use crate::sys::sched::{self, Attributes};

/// Policies that are carried: `SCHED_OTHER`, `FIFO`, `RR`, `BATCH`, `IDLE`, `EXT`.
const POLICIES: [u32; 6] = [0, 1, 2, 3, 5, 7];

/// Restores a thread's scheduling; returns a warning if it may use fewer CPUs than at the source.
pub(super) fn restore(
    pid: Pid,
    vpid: Vpid,
    wanted: &Scheduling,
) -> Result<Option<String>, RestoreStateError> {
    if !POLICIES.contains(&wanted.policy) || !(-20..=19).contains(&wanted.nice) || wanted.priority > 99 {
        let what = format!(
            "scheduling policy {}, nice {}, priority {}",
            wanted.policy, wanted.nice, wanted.priority
        );
        return Err(RestoreStateError::Invalid { vpid, what });
    }
    let warning = set_affinity(pid, vpid, &wanted.affinity)?;
    set_attributes(pid, wanted)?;
    if sched::io_priority(pid).map_err(request(pid, "read the I/O priority"))? != wanted.io_priority {
        sched::set_io_priority(pid, wanted.io_priority).map_err(request(pid, "set the I/O priority"))?;
    }
    Ok(warning)
}

fn set_attributes(pid: Pid, wanted: &Scheduling) -> Result<(), RestoreStateError> {
    let wanted = Attributes {
        policy: wanted.policy,
        flags: wanted.flags & libc::SCHED_FLAG_RESET_ON_FORK as u64,
        nice: wanted.nice,
        priority: wanted.priority,
    };
    let present = sched::attributes(pid).map_err(request(pid, "read the scheduling attributes"))?;
    if present != wanted {
        sched::set_attributes(pid, wanted).map_err(request(pid, "set the scheduling policy and priority"))?;
    }
    Ok(())
}

/// An empty mask leaves the thread with all that the created container may use.
fn set_affinity(pid: Pid, vpid: Vpid, wanted: &[u8]) -> Result<Option<String>, RestoreStateError> {
    if wanted.is_empty() {
        return Ok(None);
    }
    let present = sched::affinity(pid).map_err(request(pid, "read the CPU affinity"))?;
    let mut mask: Vec<u8> = present.iter().zip(wanted).map(|(present, wanted)| present & wanted).collect();
    if mask.iter().all(|byte| *byte == 0) {
        let what =
            "CPUs of which this host (or the container's cpuset) has none; change its affinity (taskset)";
        return Err(RestoreStateError::Unfit { vpid, what: what.into() });
    }
    mask.resize(present.len(), 0);
    if mask != present {
        sched::set_affinity(pid, &mask).map_err(request(pid, "set the CPU affinity"))?;
    }
    let lost = wanted.iter().enumerate().any(|(at, byte)| byte & !mask.get(at).copied().unwrap_or(0) != 0);
    Ok(lost.then(|| format!("thread {vpid} may use fewer CPUs than at the source: the others are not here")))
}
