//! What the kernel knows of an address space beside its mappings: addresses, auxiliary vector, and what
//! mlockall(2) asked for the future.

use nix::Error;

use super::failure::{CaptureStateError, expect, read_file, read_text};
use crate::model::state::MmState;
use crate::model::{PAGE_SIZE, Pid, Vpid};
use crate::proc::{auxv, stat};
use crate::remote::{Answers, Batch, Piece, RemoteError, Ticket};

/// The call that reads the end of the heap, which no file shows.
#[derive(Debug)]
pub(super) struct MmPlan {
    brk: Ticket,
}

impl MmPlan {
    pub(super) fn plan(batch: &mut Batch) -> Self {
        Self { brk: batch.call(libc::SYS_brk, &[0]) }
    }

    pub(super) fn take(&self, answers: &Answers, pid: Pid, vpid: Vpid) -> Result<MmState, CaptureStateError> {
        let stat = read_text(pid, "stat", stat::parse)?;
        let (path, bytes) = read_file(pid, "auxv")?;
        auxv::check(&bytes).map_err(|error| CaptureStateError::Text { path, source: error.into() })?;
        Ok(MmState {
            start_code: stat.start_code,
            end_code: stat.end_code,
            start_data: stat.start_data,
            end_data: stat.end_data,
            start_brk: stat.start_brk,
            brk: expect(answers, self.brk, vpid, "end of the heap")?,
            start_stack: stat.start_stack,
            arg_start: stat.arg_start,
            arg_end: stat.arg_end,
            env_start: stat.env_start,
            env_end: stat.env_end,
            auxv: bytes,
        })
    }
}

/// Finds out what mlockall(2) asked for the future, which no interface tells: the spare page of the engine's memory is
/// mapped anew, and how the kernel treats it says whether it was locked at once.
#[derive(Debug)]
pub(super) struct FutureLock {
    map: Ticket,
    discard: Ticket,
    resident: (Ticket, Piece),
}

impl FutureLock {
    pub(super) fn plan(batch: &mut Batch) -> Result<Self, RemoteError> {
        let page = batch.spare_page();
        let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED) as u64;
        let map = batch.call(libc::SYS_mmap, &[page, PAGE_SIZE, protection, flags, u64::MAX, 0]);
        batch.call(libc::SYS_madvise, &[page, PAGE_SIZE, libc::MADV_DONTFORK as u64]);
        let vector = batch.reserve(1)?;
        let resident = batch.call(libc::SYS_mincore, &[page, PAGE_SIZE, vector.address()]);
        // Locked memory refuses it (madvise(2)).
        let discard = batch.call(libc::SYS_madvise, &[page, PAGE_SIZE, libc::MADV_DONTNEED as u64]);
        Ok(Self { map, discard, resident: (resident, vector) })
    }

    /// `MCL_FUTURE`, perhaps with `MCL_ONFAULT`, or 0.
    pub(super) fn take(&self, answers: &Answers, vpid: Vpid) -> Result<u32, CaptureStateError> {
        const WHAT: &str = "lock on future memory";
        match answers.result(self.map) {
            // It would be locked, and the limit of locked memory is reached.
            Err(Error::EAGAIN) => return Ok(libc::MCL_FUTURE as u32),
            mapped => mapped.map_err(|source| CaptureStateError::Call { vpid, what: WHAT, source })?,
        };
        match answers.result(self.discard) {
            Ok(_) => return Ok(0),
            Err(Error::EINVAL) => {}
            Err(source) => return Err(CaptureStateError::Call { vpid, what: WHAT, source }),
        }
        let (resident, vector) = self.resident;
        expect(answers, resident, vpid, WHAT)?;
        let populated = answers.bytes(vector).first().is_some_and(|byte| byte & 1 != 0);
        let on_fault = if populated { 0 } else { libc::MCL_ONFAULT };
        Ok((libc::MCL_FUTURE | on_fault) as u32)
    }
}
