//! Signal actions, alternate stacks and pending signals.
//!
//! Kernel: rt_sigaction(2) and sigaltstack(2) in the task; `PTRACE_PEEKSIGINFO` (Linux 3.10) from outside.

use super::failure::{CaptureStateError, expect};
use crate::model::signal::{AltStack, PendingSignal, SignalAction};
use crate::model::{Pid, RemoteAddr, Vpid};
use crate::remote::{Answers, Batch, Piece, RemoteError, Ticket};
use crate::sys::ptrace_state::{self, SIGINFO_BYTES};

/// Signals are 1 to 64.
pub(crate) const SIGNALS: u8 = 64;
/// `struct kernel_sigaction`: handler, flags, restorer, mask.
pub(crate) const ACTION_BYTES: usize = 32;
/// Bytes of a signal set.
pub(crate) const SET_BYTES: u64 = 8;
/// `stack_t`.
pub(crate) const STACK_BYTES: usize = 24;
/// `SS_ONSTACK`: a fact about the stack pointer, not a setting.
const SS_ONSTACK: i32 = 1;

/// Calls that read the 64 signal actions.
#[derive(Debug)]
pub(super) struct Actions {
    table: Piece,
    tickets: Vec<Ticket>,
}

impl Actions {
    pub(super) fn plan(batch: &mut Batch) -> Result<Self, RemoteError> {
        let table = batch.reserve(usize::from(SIGNALS) * ACTION_BYTES)?;
        let read = |signal: u8| {
            let to = table.address() + u64::from(signal - 1) * ACTION_BYTES as u64;
            batch.call(libc::SYS_rt_sigaction, &[u64::from(signal), 0, to, SET_BYTES])
        };
        let tickets = (1..=SIGNALS).map(read).collect();
        Ok(Self { table, tickets })
    }

    /// The actions that differ from the default.
    pub(super) fn take(&self, answers: &Answers, vpid: Vpid) -> Result<Vec<SignalAction>, CaptureStateError> {
        for ticket in &self.tickets {
            expect(answers, *ticket, vpid, "signal actions")?;
        }
        let words: Vec<u64> = answers.u64s(self.table).collect();
        let action = |(signal, words): (u8, &[u64; 4])| SignalAction {
            signal,
            handler: words[0],
            flags: words[1],
            restorer: words[2],
            mask: words[3],
        };
        let differs = |action: &SignalAction| (action.handler, action.flags, action.mask) != (0, 0, 0);
        Ok((1..=SIGNALS).zip(words.as_chunks().0).map(action).filter(differs).collect())
    }
}

/// The call that reads the alternate stack of a thread.
#[derive(Debug)]
pub(super) struct AltStackPlan {
    stack: Piece,
    ticket: Ticket,
}

impl AltStackPlan {
    pub(super) fn plan(batch: &mut Batch) -> Result<Self, RemoteError> {
        let stack = batch.reserve(STACK_BYTES)?;
        let ticket = batch.call(libc::SYS_sigaltstack, &[0, stack.address()]);
        Ok(Self { stack, ticket })
    }

    pub(super) fn take(&self, answers: &Answers, vpid: Vpid) -> Result<AltStack, CaptureStateError> {
        expect(answers, self.ticket, vpid, "alternate signal stack")?;
        let mut words = answers.u64s(self.stack);
        let mut next = || words.next().unwrap_or_default();
        let (address, flags, size) = (RemoteAddr(next()), next() as u32 as i32, next());
        Ok(AltStack { address, flags: flags & !SS_ONSTACK, size })
    }
}

/// Signals pending for a thread, or with `shared` for its process; they stay pending. `bits` is what
/// `/proc/PID/status` shows: a signal in it without a queue entry (the queue was full) gets a bare `siginfo_t`.
pub(super) fn pending(
    pid: Pid,
    vpid: Vpid,
    shared: bool,
    bits: u64,
) -> Result<Vec<PendingSignal>, CaptureStateError> {
    if bits == 0 {
        return Ok(Vec::new());
    }
    let queued = ptrace_state::queued_signals(pid, shared).map_err(|source| CaptureStateError::Request {
        pid,
        what: "pending signals",
        source,
    })?;
    let mut missing = bits;
    let mut signals = Vec::with_capacity(queued.len());
    for siginfo in queued {
        let signal = number(&siginfo);
        if matches!(signal, libc::SIGKILL | libc::SIGSTOP) {
            return Err(CaptureStateError::Unsupported {
                vpid,
                what: format!("signal {signal} is about to be delivered"),
                hint: "try again",
            });
        }
        missing &= !bit(signal);
        signals.push(PendingSignal { siginfo: siginfo.to_vec() });
    }
    if missing & (bit(libc::SIGKILL) | bit(libc::SIGSTOP)) != 0 {
        let what = "it is being killed or stopped".into();
        return Err(CaptureStateError::Unsupported { vpid, what, hint: "try again" });
    }
    signals.extend((1..=i32::from(SIGNALS)).filter(|signal| missing & bit(*signal) != 0).map(bare));
    Ok(signals)
}

fn number(siginfo: &[u8; SIGINFO_BYTES]) -> i32 {
    siginfo.first_chunk().map_or(0, |word| i32::from_ne_bytes(*word))
}

fn bit(signal: i32) -> u64 {
    if (1..=i32::from(SIGNALS)).contains(&signal) { 1 << (signal - 1) } else { 0 }
}

/// What the kernel itself makes up for such a signal: the number, `SI_USER`, and nothing else.
fn bare(signal: i32) -> PendingSignal {
    let mut siginfo = vec![0; SIGINFO_BYTES];
    siginfo[..4].copy_from_slice(&signal.to_ne_bytes());
    PendingSignal { siginfo }
}
