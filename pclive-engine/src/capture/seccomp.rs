//! Seccomp filters of a thread.
//!
//! Kernel: `PTRACE_SECCOMP_GET_FILTER` (Linux 4.4, CAP_SYS_ADMIN, an agent that is not filtered itself).

use super::failure::CaptureStateError;
use crate::model::state::SeccompFilter;
use crate::model::{Pid, Vpid};
use crate::proc::status::Status;
use crate::sys::ptrace_state;

/// `SECCOMP_MODE_STRICT`.
pub(super) const MODE_STRICT: u32 = 1;

/// The filters of a thread, the oldest first, as indices into `table`, which grows by those that are new.
pub(crate) fn capture(
    pid: Pid,
    vpid: Vpid,
    status: &Status,
    table: &mut Vec<SeccompFilter>,
) -> Result<Vec<u32>, CaptureStateError> {
    refuse_strict(vpid, status)?;
    if status.seccomp == 0 {
        return Ok(Vec::new());
    }
    let mut indices = Vec::new();
    while let Some(filter) = ptrace_state::seccomp_filter(pid, indices.len())
        .map_err(|source| CaptureStateError::Request { pid, what: "seccomp filters", source })?
    {
        indices.push(index_of(filter, table));
    }
    Ok(indices)
}

/// In strict mode any remote call would kill the task.
pub(super) fn refuse_strict(vpid: Vpid, status: &Status) -> Result<(), CaptureStateError> {
    if status.seccomp != MODE_STRICT {
        return Ok(());
    }
    let what = "it runs in strict seccomp mode".into();
    let hint = "wait until the program has ended";
    Err(CaptureStateError::Unsupported { vpid, what, hint })
}

fn index_of(filter: SeccompFilter, table: &mut Vec<SeccompFilter>) -> u32 {
    let known = table.iter().position(|other| *other == filter);
    known.unwrap_or_else(|| {
        table.push(filter);
        table.len() - 1
    }) as u32
}
