//! kcmp(2): do two processes share a kernel object? (CONFIG_KCMP; Linux 3.5, epoll targets 4.13.)
//!
//! The kernel orders the objects of one kind, in an order of its own that lasts until it reboots, so that equal
//! ones are found by sorting. All calls need PTRACE_MODE_READ_REALCREDS on both processes. ESRCH: one is gone;
//! EBADF: no such descriptor; ENOENT: no such epoll entry.

use std::cmp::Ordering;
use std::os::fd::RawFd;

use nix::errno::Errno;

use crate::model::Pid;

const KCMP_FILE: i32 = 0;
const KCMP_VM: i32 = 1;
const KCMP_FILES: i32 = 2;
const KCMP_FS: i32 = 3;
const KCMP_EPOLL_TFD: i32 = 7;

/// `struct kcmp_epoll_slot` of `linux/kcmp.h`.
#[repr(C)]
struct EpollSlot {
    efd: u32,
    tfd: u32,
    toff: u32,
}

const _: () = assert!(size_of::<EpollSlot>() == 12);

/// Orders the open file descriptions behind descriptor `a.1` of process `a.0` and `b.1` of `b.0`.
pub fn file(a: (Pid, RawFd), b: (Pid, RawFd)) -> nix::Result<Ordering> {
    compare(a.0, b.0, KCMP_FILE, a.1 as u64, b.1 as u64)
}

/// Orders the address spaces of two tasks.
pub fn memory(a: Pid, b: Pid) -> nix::Result<Ordering> {
    compare(a, b, KCMP_VM, 0, 0)
}

/// Orders the descriptor tables of two tasks.
pub fn files(a: Pid, b: Pid) -> nix::Result<Ordering> {
    compare(a, b, KCMP_FILES, 0, 0)
}

/// Orders what two tasks have of root, current directory and umask.
pub fn file_system(a: Pid, b: Pid) -> nix::Result<Ordering> {
    compare(a, b, KCMP_FS, 0, 0)
}

/// Orders the description behind descriptor `file.1` of `file.0` and a description that the epoll instance
/// `epoll.1` of process `epoll.0` watches: the `offset`-th (from 0, in the order of its fdinfo) of those added
/// under the number `watched`.
pub fn epoll_target(
    file: (Pid, RawFd),
    epoll: (Pid, RawFd),
    watched: RawFd,
    offset: u32,
) -> nix::Result<Ordering> {
    let slot = EpollSlot { efd: epoll.1 as u32, tfd: watched as u32, toff: offset };
    compare(file.0, epoll.0, KCMP_EPOLL_TFD, file.1 as u64, &raw const slot as u64)
}

fn compare(a: Pid, b: Pid, kind: i32, first: u64, second: u64) -> nix::Result<Ordering> {
    // SAFETY: `second` is an integer, or, for KCMP_EPOLL_TFD, the address of a slot that `epoll_target` keeps
    // alive during the call and that the kernel only reads.
    let result = unsafe { libc::syscall(libc::SYS_kcmp, a.0, b.0, kind, first, second) };
    match Errno::result(result)? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        // 3: "not equal, but ordering information is unavailable"; no kernel since 3.5 returns it.
        _ => Err(Errno::ENOTSUP),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn me() -> Pid {
        Pid(std::process::id() as i32)
    }

    #[test]
    fn duplicates_share_a_description_and_a_second_open_does_not() {
        let first = std::fs::File::open("/dev/null").unwrap();
        let duplicate = first.try_clone().unwrap();
        let second = std::fs::File::open("/dev/null").unwrap();
        let order = |other: &std::fs::File| file((me(), first.as_raw_fd()), (me(), other.as_raw_fd()));
        assert_eq!(order(&duplicate), Ok(Ordering::Equal));
        assert_ne!(order(&second), Ok(Ordering::Equal));
        assert_eq!(file((me(), -1), (me(), 0)), Err(Errno::EBADF));
    }

    #[test]
    fn a_task_shares_its_own_descriptor_table() {
        assert_eq!(files(me(), me()), Ok(Ordering::Equal));
    }
}
