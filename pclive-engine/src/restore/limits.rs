//! Resource limits.
//!
//! In two steps: limits that are higher than the created container's are raised before anything else is restored
//! (descriptors with high numbers, large mappings), the exact values are set last.

use super::failure::RestoreStateError;
use crate::capture::limits::{LIMITS, LimitsPlan};
use crate::model::state::Rlimit;
use crate::model::{Pid, Vpid};
use crate::remote::{Batch, RemoteTask};
use crate::sys::prlimit;

/// Names of the limits, in the order of their numbers.
const NAMES: [&str; LIMITS] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

/// Raises what has to be raised; nothing becomes lower.
pub(super) fn raise(task: &mut dyn RemoteTask, wanted: &[Rlimit]) -> Result<(), RestoreStateError> {
    check(task.vpid(), wanted)?;
    let mut batch = Batch::new(task);
    let plan = LimitsPlan::plan(&mut batch)?;
    let answers = batch.run(task)?;
    let present = plan.take(&answers, task.vpid())?;
    let raised: Vec<(usize, Rlimit)> = wanted
        .iter()
        .zip(&present)
        .enumerate()
        .filter(|(_, (wanted, present))| wanted.soft > present.soft || wanted.hard > present.hard)
        .map(|(resource, (wanted, present))| (resource, higher(wanted, present)))
        .collect();
    set(task, &raised)
}

fn higher(a: &Rlimit, b: &Rlimit) -> Rlimit {
    Rlimit { soft: a.soft.max(b.soft), hard: a.hard.max(b.hard) }
}

/// Sets the exact limits.
pub(super) fn settle(task: &mut dyn RemoteTask, wanted: &[Rlimit]) -> Result<(), RestoreStateError> {
    check(task.vpid(), wanted)?;
    let all: Vec<(usize, Rlimit)> = wanted.iter().copied().enumerate().collect();
    set(task, &all)
}

fn check(vpid: Vpid, wanted: &[Rlimit]) -> Result<(), RestoreStateError> {
    if wanted.len() == LIMITS && wanted.iter().all(|limit| limit.soft <= limit.hard) {
        return Ok(());
    }
    let what = format!("{} resource limits, or a soft limit above its hard limit", wanted.len());
    Err(RestoreStateError::Invalid { vpid, what })
}

fn set(task: &mut dyn RemoteTask, limits: &[(usize, Rlimit)]) -> Result<(), RestoreStateError> {
    if limits.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new(task);
    let mut calls = Vec::with_capacity(limits.len());
    for (resource, limit) in limits {
        let words = [limit.soft.to_ne_bytes(), limit.hard.to_ne_bytes()];
        let new = batch.place(words.as_flattened())?;
        calls.push(batch.call(libc::SYS_prlimit64, &[0, *resource as u64, new.address(), 0]));
    }
    let answers = batch.run(task)?;
    for (call, (resource, limit)) in calls.into_iter().zip(limits) {
        match answers.result(call) {
            Ok(_) => {}
            Err(nix::Error::EPERM) => set_from_outside(task.pid(), task.vpid(), *resource, *limit)?,
            Err(source) => {
                return Err(RestoreStateError::Call {
                    vpid: task.vpid(),
                    what: text(*resource, *limit),
                    source,
                });
            }
        }
    }
    Ok(())
}

/// The agent may have the privilege that the process lacks.
fn set_from_outside(pid: Pid, vpid: Vpid, resource: usize, limit: Rlimit) -> Result<(), RestoreStateError> {
    prlimit::set(pid, resource as u32, limit).map_err(|source| RestoreStateError::Privilege {
        vpid,
        what: text(resource, limit),
        needs: "CAP_SYS_RESOURCE, as does the agent, to raise a hard limit",
        source,
    })
}

fn text(resource: usize, limit: Rlimit) -> String {
    let name = NAMES.get(resource).copied().unwrap_or("RLIMIT_?");
    let value = |limit: u64| if limit == u64::MAX { "unlimited".into() } else { limit.to_string() };
    format!("set {name} to {} (hard limit {})", value(limit.soft), value(limit.hard))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_no_kernel_has_are_refused() {
        let good = Rlimit { soft: 1, hard: 2 };
        assert!(check(Vpid(1), &[good; LIMITS]).is_ok());
        assert!(check(Vpid(1), &[good; LIMITS - 1]).is_err());
        let mut bad = [good; LIMITS];
        bad[3].soft = 3;
        assert!(check(Vpid(1), &bad).is_err());
    }

    #[test]
    fn limit_is_named_in_the_manuals_words() {
        let text = text(7, Rlimit { soft: 1024, hard: u64::MAX });
        assert_eq!(text, "set RLIMIT_NOFILE to 1024 (hard limit unlimited)");
    }
}
