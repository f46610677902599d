//! Scheduling of another task: sched_setattr(2), sched_setaffinity(2), ioprio_set(2).
//!
//! All work from outside on any thread; changing one needs CAP_SYS_NICE or its user id. ESRCH: it is gone.

use nix::errno::Errno;

use crate::model::Pid;

const IOPRIO_WHO_PROCESS: i32 = 1;
/// Largest CPU mask asked for: 64 Ki CPUs.
const MAX_MASK_BYTES: usize = 8192;

/// `struct sched_attr` without its deadline parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Real-time priority.
    pub priority: u32,
}

const _: () = assert!(size_of::<libc::sched_attr>() == 48);

/// sched_getattr(2). Linux 3.14.
pub fn attributes(task: Pid) -> nix::Result<Attributes> {
    // SAFETY: all-zero bytes are a valid sched_attr (integers only).
    let mut attr: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::sched_attr>();
    // SAFETY: `attr` lives across the call and is `size` bytes long.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_getattr, task.0, &raw mut attr, size, 0) })?;
    Ok(Attributes {
        policy: attr.sched_policy,
        flags: attr.sched_flags,
        nice: attr.sched_nice,
        priority: attr.sched_priority,
    })
}

/// sched_setattr(2). EPERM: needs CAP_SYS_NICE; EINVAL: no such policy or priority. Linux 3.14.
pub fn set_attributes(task: Pid, wanted: Attributes) -> nix::Result<()> {
    let attr = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: wanted.policy,
        sched_flags: wanted.flags,
        sched_nice: wanted.nice,
        sched_priority: wanted.priority,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: `attr` lives across the call, which only reads it.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_setattr, task.0, &raw const attr, 0) }).map(drop)
}

/// sched_getaffinity(2): a bit for each CPU that the task may use, in whole 8-byte words.
pub fn affinity(task: Pid) -> nix::Result<Vec<u8>> {
    let mut mask = vec![0u8; MAX_MASK_BYTES];
    // SAFETY: the mask lives across the call and is as long as said.
    let result = unsafe { libc::syscall(libc::SYS_sched_getaffinity, task.0, mask.len(), mask.as_mut_ptr()) };
    mask.truncate(usize::try_from(Errno::result(result)?).unwrap_or(0));
    Ok(mask)
}

/// sched_setaffinity(2). EINVAL: no CPU of the mask is there or allowed by the cpuset.
pub fn set_affinity(task: Pid, mask: &[u8]) -> nix::Result<()> {
    // SAFETY: the mask lives across the call, which only reads as many bytes as said.
    let result = unsafe { libc::syscall(libc::SYS_sched_setaffinity, task.0, mask.len(), mask.as_ptr()) };
    Errno::result(result).map(drop)
}

/// ioprio_get(2) of one task: class in the upper bits, level in the lower 13; 0 = none of its own.
pub fn io_priority(task: Pid) -> nix::Result<u32> {
    // SAFETY: only integers are passed.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, task.0) };
    Ok(Errno::result(result)? as u32)
}

/// ioprio_set(2) of one task. EPERM: the real-time class needs CAP_SYS_NICE.
pub fn set_io_priority(task: Pid, priority: u32) -> nix::Result<()> {
    // SAFETY: only integers are passed.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, task.0, priority) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_settings_can_be_set_to_what_they_are() {
        let me = Pid(0);
        let before = attributes(me).unwrap();
        set_attributes(me, before).unwrap();
        assert_eq!(attributes(me), Ok(before));
        let mask = affinity(me).unwrap();
        set_affinity(me, &mask).unwrap();
        assert_eq!(affinity(me), Ok(mask));
    }

    #[test]
    fn io_priority_reads_as_it_was_set() {
        let best_effort_five = 2 << 13 | 5;
        set_io_priority(Pid(0), best_effort_five).unwrap();
        assert_eq!(io_priority(Pid(0)), Ok(best_effort_five));
    }

    #[test]
    fn empty_mask_is_refused() {
        assert_eq!(set_affinity(Pid(0), &[0; 8]), Err(Errno::EINVAL));
    }
}
