//! A process under the memory tracker: the engine's slot in it, and its address space.
//!
//! The slot is mapped and the userfaultfd made by remote calls while every thread of the process is stopped: a child
//! that another thread forks in between would inherit both. The descriptor is fetched and closed in the process: if
//! the agent dies, the kernel drops the tracker, and what is left behind is one unused mapping that is not handed
//! down to children.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::CaptureError;
use super::calls::InterruptedCalls;
use super::stop::{with_process_stopped, with_thread_stopped};
use super::tree::TreeProcess;
use crate::memory::{AddressSpace, MemoryError};
use crate::model::Pid;
use crate::proc::maps::parse_maps;
use crate::remote::{Call, Captive, RemoteError, RemoteTask, Slot, Spot};
use crate::sys::pidfd;

/// `UFFD_USER_MODE_ONLY` (Linux 5.11): enough for asynchronous write protection, and allowed without privilege.
const USER_MODE_ONLY: i32 = 1;

/// A tracked process.
#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) start_time: u64,
    pub(super) slot: Slot,
    pub(super) space: AddressSpace,
}

impl Tracked {
    /// Puts a running process under the tracker; it stops for a moment.
    pub(super) fn start(
        process: &TreeProcess,
        timeout: Duration,
        calls: &mut InterruptedCalls,
    ) -> Result<Self, CaptureError> {
        let settle = |captive: &mut Captive| settle(process.pid, captive);
        let (slot, tracker) = with_process_stopped(process, timeout, calls, settle)?;
        Ok(Self::new(process, slot, tracker)?)
    }

    /// The same for a process that is stopped already.
    pub(super) fn start_stopped(process: &TreeProcess, leader: &mut Captive) -> Result<Self, CaptureError> {
        let (slot, tracker) = settle(process.pid, leader)?;
        Ok(Self::new(process, slot, tracker)?)
    }

    fn new(process: &TreeProcess, slot: Slot, tracker: OwnedFd) -> Result<Self, MemoryError> {
        let space = AddressSpace::new(process.pid, process.vpid, tracker)?;
        Ok(Self { start_time: process.start_time, slot, space })
    }

    /// False if the process has replaced its address space (execve): the slot went with the old one.
    pub(super) fn is_current(&self, pid: Pid) -> bool {
        self.slot.is_in(pid)
    }

    /// Takes the slot out of a running process again.
    pub(super) fn end(self, process: &TreeProcess, timeout: Duration) -> Result<(), CaptureError> {
        let slot = self.slot;
        with_thread_stopped(process, timeout, |captive| {
            // It may have executed another program since.
            if !slot.is_in(process.pid) {
                return Ok(());
            }
            captive.join(slot);
            Ok(captive.unsettle(vdso_of(process.pid)?)?)
        })
    }
}

/// Maps the slot and makes a userfaultfd, which the process does not keep, whatever becomes of the fetch.
fn settle(pid: Pid, captive: &mut Captive) -> Result<(Slot, OwnedFd), CaptureError> {
    let slot = match captive.slot() {
        Some(slot) => slot,
        None => captive.settle(vdso_of(pid)?, Spot::Anywhere)?,
    };
    let (start, _) = slot.range();
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
    let results = captive.run(&[
        Call::new(libc::SYS_madvise, &[start, Slot::BYTES, libc::MADV_DONTFORK as u64]),
        Call::new(libc::SYS_userfaultfd, &[flags as u64]),
    ])?;
    captive.succeeded(results[0], || "keep the engine's memory from children".into())?;
    let descriptor = captive.succeeded(results[1], || "make a userfaultfd".into())?;
    let failed = |source| CaptureError::FetchTracker { pid, source };
    let fetched =
        pidfd::open(pid).and_then(|process| pidfd::getfd(process, descriptor as i32)).map_err(failed);
    captive.run(&[Call::new(libc::SYS_close, &[descriptor])])?;
    Ok((slot, fetched?))
}

/// Where the vdso of a process is.
pub(super) fn vdso_of(pid: Pid) -> Result<(u64, u64), RemoteError> {
    let maps = crate::proc::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    let entries = parse_maps(&maps).unwrap_or_default();
    let vdso = entries.iter().find(|entry| entry.name == b"[vdso]");
    vdso.map(|entry| (entry.start, entry.end)).ok_or(RemoteError::NoVdso { pid })
}
