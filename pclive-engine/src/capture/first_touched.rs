//! The pages that the threads of a stopped process touch as soon as they run, which are never left for later.
//!
//! The restartable-sequence area of a thread is written by the kernel whenever the thread comes back from it, also from
//! a remote call: a restorer that lacked it would never finish one. The top of the stack and the thread's own block are
//! needed at the first instruction: waiting for them would be a part of the downtime in all but name.

use super::failure::CaptureStateError;
use super::stop::StoppedProcess;
use crate::memory::ranges::RangeSet;
use crate::model::PAGE_SIZE;
use crate::remote::RemoteTask;
use crate::sys::ptrace_state;

/// What of the stack goes with a thread, bytes: its red zone and some frames.
const STACK_BELOW: u64 = PAGE_SIZE;
const STACK_ABOVE: u64 = 2 * PAGE_SIZE;

/// These pages, wherever they are.
pub(super) fn pages(process: &StoppedProcess) -> Result<RangeSet, CaptureStateError> {
    let mut set = RangeSet::new();
    let mut add = |start: u64, end: u64| {
        set.insert(start / PAGE_SIZE * PAGE_SIZE, end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(start));
    };
    for captive in &process.threads {
        let (pid, registers) = (captive.pid(), captive.registers());
        add(registers.rsp.saturating_sub(STACK_BELOW), registers.rsp.saturating_add(STACK_ABOVE));
        add(registers.fs_base, registers.fs_base.saturating_add(1));
        let area = ptrace_state::rseq(pid);
        let area = area.map_err(|source| CaptureStateError::Request { pid, what: "rseq area", source })?;
        if let Some(area) = area {
            add(area.address.0, area.address.0.saturating_add(u64::from(area.size).max(1)));
        }
    }
    Ok(set)
}
