//! System V shared memory of the calling thread's IPC namespace (shmget(2), shmat(2), shmctl(2)).

use std::fs::File;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

use crate::model::Pid;

/// Opens the IPC namespace of a process (`/proc/PID/ns/ipc`).
pub fn open_namespace(pid: Pid) -> std::io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/{pid}/ns/ipc"))?.into())
}

/// Moves the calling thread, and only it, into an IPC namespace (setns(2)).
pub fn enter_namespace(namespace: &OwnedFd) -> nix::Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWIPC)
}

/// Makes the calling thread, and only it, act for this user and group. With `keep_rights` it may do what it could before
/// (`SECBIT_NO_SETUID_FIXUP`): huge pages need CAP_IPC_LOCK. Not the C library's call, which changes every thread.
pub fn become_user(uid: u32, gid: u32, keep_rights: bool) -> nix::Result<()> {
    const NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
    let keep = u32::MAX;
    if keep_rights {
        // SAFETY: the call takes numbers only and changes the calling thread only.
        Errno::result(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, NO_SETUID_FIXUP) })?;
    }
    // SAFETY: the call takes numbers only and changes credentials of the calling thread only.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresgid, keep, gid, keep) })?;
    // SAFETY: as above.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, keep, uid, keep) }).map(drop)
}

/// Makes a segment that is not there yet, with these permission bits, in huge pages of 2 MiB or in ordinary ones; returns its
/// id.
pub fn create(key: i32, size: usize, mode: u32, huge: bool) -> nix::Result<i32> {
    // Huge pages are reserved now or never: a program that has attached them counts on them.
    let kind = if huge { libc::SHM_HUGETLB | libc::MAP_HUGE_2MB } else { libc::SHM_NORESERVE };
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | kind | (mode & 0o777).cast_signed();
    // SAFETY: shmget takes numbers only.
    Errno::result(unsafe { libc::shmget(key, size, flags) })
}

/// Opens the file below a segment: it is attached for the moment in which `/proc/self/map_files` shows it.
pub fn open(id: i32, writable: bool) -> nix::Result<File> {
    let flags = if writable { 0 } else { libc::SHM_RDONLY };
    // SAFETY: with a null address the kernel takes addresses that nothing uses.
    let address = unsafe { libc::shmat(id, std::ptr::null(), flags) };
    if address.addr() == usize::MAX {
        return Err(Errno::last());
    }
    let opened =
        link_of(address.addr()).and_then(|link| File::options().read(true).write(writable).open(link));
    // SAFETY: the segment was attached there above, and nothing refers to its memory.
    unsafe { libc::shmdt(address) };
    opened.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

/// The `map_files` link of the mapping of this process that begins at `start`.
fn link_of(start: usize) -> std::io::Result<String> {
    let maps = std::fs::read_to_string("/proc/thread-self/maps")?;
    let prefix = format!("{start:x}-");
    let range = maps.lines().find(|line| line.starts_with(&prefix)).and_then(|line| line.split(' ').next());
    let range = range.ok_or_else(|| std::io::Error::from_raw_os_error(libc::ENOENT))?;
    Ok(format!("/proc/self/map_files/{range}"))
}

/// `IPC_SET`: owner, group and permission bits.
pub fn set_owner(id: i32, uid: u32, gid: u32, mode: u32) -> nix::Result<()> {
    // SAFETY: an all-zero shmid_ds is valid: plain numbers.
    let mut about: libc::shmid_ds = unsafe { std::mem::zeroed() };
    (about.shm_perm.uid, about.shm_perm.gid) = (uid, gid);
    about.shm_perm.mode = (mode & 0o777) as _;
    // SAFETY: IPC_SET reads one shmid_ds at the address of a live one.
    Errno::result(unsafe { libc::shmctl(id, libc::IPC_SET, &raw mut about) }).map(drop)
}

/// `IPC_RMID`: the segment goes when the last process detaches it.
pub fn remove(id: i32) -> nix::Result<()> {
    // SAFETY: IPC_RMID takes no buffer.
    Errno::result(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) }).map(drop)
}
