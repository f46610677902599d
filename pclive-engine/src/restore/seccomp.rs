//! Seccomp filters of a thread: the very last thing that is put in place.
//!
//! A runtime installs its profile before or after the container is "created", depending on no_new_privs. So what
//! is there already has to be the beginning of what is wanted; the rest is installed. The tracer's
//! `PTRACE_O_SUSPEND_SECCOMP` keeps the filters from looking at the engine's own calls.

use super::failure::RestoreStateError;
use crate::capture::failure::read_text;
use crate::capture::seccomp;
use crate::model::Vpid;
use crate::model::state::SeccompFilter;
use crate::proc::status;
use crate::remote::{Batch, RemoteTask};

const SECCOMP_SET_MODE_FILTER: u64 = 1;
/// `SECCOMP_FILTER_FLAG_LOG`, the only flag that a filter keeps.
const FLAG_LOG: u64 = 2;
/// `SECCOMP_FILTER_FLAG_SPEC_ALLOW`: mitigations are carried on their own. Linux 4.17.
const FLAG_SPEC_ALLOW: u64 = 4;
/// `sizeof(struct sock_filter)` and `BPF_MAXINSNS`.
const INSTRUCTION_BYTES: usize = 8;
const MAX_INSTRUCTIONS: usize = 4096;
/// `BPF_RET | BPF_K`, and the action that asks a supervisor.
const RETURN_CONSTANT: u16 = 6;
const USER_NOTIFICATION: u32 = 0x7fc0_0000;
const ACTION_MASK: u32 = 0xffff_0000;

/// Installs the filters that the thread does not have yet. `wanted` are indices into `table`, the oldest first.
pub(super) fn restore(
    task: &mut dyn RemoteTask,
    wanted: &[u32],
    table: &[SeccompFilter],
) -> Result<(), RestoreStateError> {
    let (pid, vpid) = (task.pid(), task.vpid());
    let wanted = look_up(vpid, wanted, table)?;
    let status = read_text(pid, "status", status::parse)?;
    let mut present = Vec::new();
    let order = seccomp::capture(pid, vpid, &status, &mut present)?;
    let present = look_up(vpid, &order, &present)?;
    if !wanted.starts_with(&present) {
        let what = format!(
            "{} seccomp filters, of which the first {} must be those that the created container has; they are \
             not: create it from the source's configuration",
            wanted.len(),
            present.len()
        );
        return Err(RestoreStateError::Unfit { vpid, what });
    }
    wanted[present.len()..].iter().try_for_each(|filter| install(task, filter))
}

fn look_up<'a>(
    vpid: Vpid,
    indices: &[u32],
    table: &'a [SeccompFilter],
) -> Result<Vec<&'a SeccompFilter>, RestoreStateError> {
    let filter = |index: &u32| table.get(*index as usize);
    indices.iter().map(filter).collect::<Option<_>>().ok_or_else(|| RestoreStateError::Invalid {
        vpid,
        what: format!("{} seccomp filters, but only {} programs", indices.len(), table.len()),
    })
}

fn install(task: &mut dyn RemoteTask, filter: &SeccompFilter) -> Result<(), RestoreStateError> {
    let vpid = task.vpid();
    let instructions = filter.program.len() / INSTRUCTION_BYTES;
    let whole = filter.program.len().is_multiple_of(INSTRUCTION_BYTES);
    if !whole || !(1..=MAX_INSTRUCTIONS).contains(&instructions) || filter.flags & !FLAG_LOG != 0 {
        let what = format!("a seccomp filter of {} bytes, flags {:#x}", filter.program.len(), filter.flags);
        return Err(RestoreStateError::Invalid { vpid, what });
    }
    if asks_a_supervisor(&filter.program) {
        let what = "a supervisor for the seccomp filter that it installed itself, which cannot be moved";
        return Err(RestoreStateError::Unfit { vpid, what: what.into() });
    }
    let mut batch = Batch::new(task);
    let program = batch.place(&filter.program)?;
    let mut descriptor = [0; 16];
    descriptor[..2].copy_from_slice(&(instructions as u16).to_ne_bytes());
    descriptor[8..].copy_from_slice(&program.address().to_ne_bytes());
    let descriptor = batch.place(&descriptor)?;
    let flags = filter.flags | FLAG_SPEC_ALLOW;
    let call = batch.call(libc::SYS_seccomp, &[SECCOMP_SET_MODE_FILTER, flags, descriptor.address()]);
    let answers = batch.run(task)?;
    let what = || "install a seccomp filter".to_owned();
    answers.result(call).map(drop).map_err(|source| match source {
        nix::Error::EACCES => RestoreStateError::Privilege {
            vpid,
            what: what(),
            needs: "CAP_SYS_ADMIN or no_new_privs",
            source,
        },
        _ => RestoreStateError::Call { vpid, what: what(), source },
    })
}

/// A filter may return `SECCOMP_RET_USER_NOTIF`.
fn asks_a_supervisor(program: &[u8]) -> bool {
    program.as_chunks::<INSTRUCTION_BYTES>().0.iter().any(|[a, b, _, _, k @ ..]| {
        u16::from_ne_bytes([*a, *b]) == RETURN_CONSTANT
            && u32::from_ne_bytes(*k) & ACTION_MASK == USER_NOTIFICATION
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_that_notifies_is_recognised() {
        let instruction = |code: u16, k: u32| {
            let mut bytes = [0; 8];
            bytes[..2].copy_from_slice(&code.to_ne_bytes());
            bytes[4..].copy_from_slice(&k.to_ne_bytes());
            bytes
        };
        let allow = instruction(RETURN_CONSTANT, 0x7fff_0000);
        let notify = instruction(RETURN_CONSTANT, USER_NOTIFICATION | 5);
        let load = instruction(0x20, USER_NOTIFICATION);
        assert!(asks_a_supervisor([load, notify].as_flattened()));
        assert!(!asks_a_supervisor([load, allow].as_flattened()));
    }

    #[test]
    fn index_without_a_program_is_refused() {
        assert!(matches!(look_up(Vpid(1), &[0], &[]), Err(RestoreStateError::Invalid { .. })));
    }
}
