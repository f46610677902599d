//! What the kernel knows of an address space beside its mappings: addresses, auxiliary vector, and what
//! mlockall(2) asked for the future.

use super::failure::{CaptureStateError, expect, read_file, read_text};
use crate::model::state::MmState;
use crate::model::{Pid, Vpid};
use crate::proc::status::Status;
use crate::proc::{auxv, smaps, stat};
use crate::remote::{Answers, Batch, ScratchArea, Ticket};

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

/// `MCL_FUTURE` and `MCL_ONFAULT`, as far as the process has asked for them.
///
/// No interface tells it, but memory mapped since is locked: the engine's own scratch memory is such memory.
pub(super) fn lock_future(pid: Pid, status: &Status, scratch: ScratchArea) -> Result<u32, CaptureStateError> {
    if status.locked_kib == 0 {
        return Ok(0);
    }
    let entries = read_text(pid, "smaps", smaps::parse_smaps)?;
    let own = entries.iter().find(|entry| (entry.map.start..entry.map.end).contains(&scratch.start.0));
    let Some(flags) = own.map(|entry| entry.flags).filter(|flags| flags.locked) else { return Ok(0) };
    let on_fault = if flags.lock_on_fault { libc::MCL_ONFAULT } else { 0 };
    Ok((libc::MCL_FUTURE | on_fault) as u32)
}
