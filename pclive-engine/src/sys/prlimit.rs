//! prlimit(2) on another process.

use nix::errno::Errno;

use crate::model::Pid;
use crate::model::state::Rlimit;

const _: () = assert!(size_of::<libc::rlimit64>() == 16);

/// Sets resource limit `resource` (`RLIMIT_*`) of a process. EPERM: another user's process, or a higher hard
/// limit, without CAP_SYS_RESOURCE.
pub fn set(pid: Pid, resource: u32, limit: Rlimit) -> nix::Result<()> {
    let new = libc::rlimit64 { rlim_cur: limit.soft, rlim_max: limit.hard };
    let none = std::ptr::null_mut::<libc::rlimit64>();
    // SAFETY: `new` lives across the call, which only reads it; a null old limit is allowed.
    Errno::result(unsafe { libc::prlimit64(pid.0, resource, &raw const new, none) }).map(drop)
}

/// Resource limit `resource` (`RLIMIT_*`) of a process. EPERM: another user's process, without CAP_SYS_RESOURCE.
pub fn get(pid: Pid, resource: u32) -> nix::Result<Rlimit> {
    let mut old = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let none = std::ptr::null::<libc::rlimit64>();
    // SAFETY: `old` lives across the call, which writes it; a null new limit is allowed.
    Errno::result(unsafe { libc::prlimit64(pid.0, resource, none, &raw mut old) })?;
    Ok(Rlimit { soft: old.rlim_cur, hard: old.rlim_max })
}
