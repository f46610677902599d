//! Signal actions, alternate stacks and pending signals.
//!
//! Everything runs with all signals blocked, as remote calls do, so that nothing queued here is delivered before
//! the thread has its own mask.

use super::failure::{Checks, RestoreStateError, expect};
use crate::capture::signals::{ACTION_BYTES, SET_BYTES, SIGNALS, STACK_BYTES};
use crate::model::Vpid;
use crate::model::signal::{AltStack, PendingSignal, SignalAction};
use crate::proc::status::Status;
use crate::remote::{Batch, RemoteTask};
use crate::sys::ptrace_state::SIGINFO_BYTES;

/// Signals queued or taken in one batch.
const SIGNALS_AT_ONCE: usize = 64;
/// Batches that empty a queue, at most: a signal that keeps coming must not hold up the restore for ever.
const MAX_DRAINS: usize = 4096;

/// Adds the calls that set every signal action; those not in `actions` become the default.
pub(super) fn set_actions(
    batch: &mut Batch,
    checks: &mut Checks,
    vpid: Vpid,
    actions: &[SignalAction],
) -> Result<(), RestoreStateError> {
    let mut table = vec![[0u64; 4]; usize::from(SIGNALS)];
    for action in actions {
        let place = usize::from(action.signal).checked_sub(1).and_then(|index| table.get_mut(index));
        let Some(place) = place.filter(|_| settable(action.signal)) else {
            let what = format!("an action for signal {}", action.signal);
            return Err(RestoreStateError::Invalid { vpid, what });
        };
        *place = [action.handler, action.flags, action.restorer, action.mask];
    }
    let bytes: Vec<u8> = table.as_flattened().iter().flat_map(|word| word.to_ne_bytes()).collect();
    let table = batch.place(&bytes)?;
    for signal in (1..=SIGNALS).filter(|signal| settable(*signal)) {
        let from = table.address() + u64::from(signal - 1) * ACTION_BYTES as u64;
        let call = batch.call(libc::SYS_rt_sigaction, &[u64::from(signal), from, 0, SET_BYTES]);
        checks.add(call, "set the signal actions");
    }
    Ok(())
}

fn settable(signal: u8) -> bool {
    !matches!(i32::from(signal), libc::SIGKILL | libc::SIGSTOP)
}

/// Adds the call that sets the alternate stack of a thread, which must not run on it.
pub(super) fn set_alt_stack(
    batch: &mut Batch,
    checks: &mut Checks,
    stack: &AltStack,
) -> Result<(), RestoreStateError> {
    let mut bytes = [0; STACK_BYTES];
    bytes[..8].copy_from_slice(&stack.address.0.to_ne_bytes());
    bytes[8..12].copy_from_slice(&stack.flags.to_ne_bytes());
    bytes[16..].copy_from_slice(&stack.size.to_ne_bytes());
    let bytes = batch.place(&bytes)?;
    checks.add(batch.call(libc::SYS_sigaltstack, &[bytes.address(), 0]), "set the alternate signal stack");
    Ok(())
}

/// Takes away whatever is pending for the thread and for its process, as `status` shows it.
pub(super) fn drain(task: &mut dyn RemoteTask, status: &Status) -> Result<(), RestoreStateError> {
    if status.pending | status.shared_pending == 0 {
        return Ok(());
    }
    for _ in 0..MAX_DRAINS {
        let mut batch = Batch::new(task);
        let every_signal = batch.place(&u64::MAX.to_ne_bytes())?;
        let no_time = batch.reserve(16)?;
        let arguments = [every_signal.address(), 0, no_time.address(), SET_BYTES];
        let takes = [(); SIGNALS_AT_ONCE].map(|()| batch.call(libc::SYS_rt_sigtimedwait, &arguments));
        let answers = batch.run(task)?;
        for take in takes {
            match answers.result(take) {
                Ok(_) => {}
                Err(nix::Error::EAGAIN) => return Ok(()),
                Err(source) => {
                    let what = "empty the signal queue".into();
                    return Err(RestoreStateError::Call { vpid: task.vpid(), what, source });
                }
            }
        }
    }
    let what = "empty the signal queue".into();
    Err(RestoreStateError::Call { vpid: task.vpid(), what, source: nix::Error::EBUSY })
}

/// Queues signals for the thread, or for the whole process of a leader.
pub(super) fn queue(
    task: &mut dyn RemoteTask,
    signals: &[PendingSignal],
    receiver: Receiver,
) -> Result<(), RestoreStateError> {
    let vpid = task.vpid();
    let thread = vpid.0 as u64;
    for part in signals.chunks(SIGNALS_AT_ONCE) {
        let mut batch = Batch::new(task);
        let mut sent = Vec::with_capacity(part.len());
        for signal in part {
            let number = number(vpid, signal)?;
            let info = batch.place(&signal.siginfo)?.address();
            let call = match receiver {
                Receiver::Process => batch.call(libc::SYS_rt_sigqueueinfo, &[thread, number, info]),
                Receiver::Thread { leader } => {
                    batch.call(libc::SYS_rt_tgsigqueueinfo, &[leader.0 as u64, thread, number, info])
                }
            };
            sent.push((call, number));
        }
        let answers = batch.run(task)?;
        for (call, number) in sent {
            expect(&answers, call, task, || format!("queue the pending signal {number}"))?;
        }
    }
    Ok(())
}

/// Who gets a queued signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Receiver {
    /// The process: the task is its leader.
    Process,
    /// The thread, of the process with this leader.
    Thread {
        /// Id of the leader inside the container.
        leader: Vpid,
    },
}

fn number(vpid: Vpid, signal: &PendingSignal) -> Result<u64, RestoreStateError> {
    let number = signal.siginfo.first_chunk().map_or(0, |word| i32::from_ne_bytes(*word));
    let valid = u8::try_from(number).is_ok_and(|signal| (1..=SIGNALS).contains(&signal) && settable(signal));
    if !valid || signal.siginfo.len() != SIGINFO_BYTES {
        let what = format!("a pending signal {number} of {} bytes", signal.siginfo.len());
        return Err(RestoreStateError::Invalid { vpid, what });
    }
    Ok(number as u64)
}
