//! Namespaces of a thread.

use std::fs::File;
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, setns, unshare};

use crate::model::Pid;

/// Opens the network namespace of a process (`/proc/PID/ns/net`).
pub fn open_network(pid: Pid) -> std::io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/{pid}/ns/net"))?.into())
}

/// Opens the mount namespace of a process (`/proc/PID/ns/mnt`).
pub fn open_mounts(pid: Pid) -> std::io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/{pid}/ns/mnt"))?.into())
}

/// Moves the calling thread, and only it, into a network namespace (setns(2)).
pub fn enter_network(namespace: &OwnedFd) -> nix::Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET)
}

/// Moves the calling thread, and only it, into a mount namespace; root and working directory become its root
/// (setns(2)). The thread stops sharing them with the process first (unshare(2), CLONE_FS).
pub fn enter_mounts(namespace: &OwnedFd) -> nix::Result<()> {
    unshare(CloneFlags::CLONE_FS)?;
    setns(namespace, CloneFlags::CLONE_NEWNS)
}
