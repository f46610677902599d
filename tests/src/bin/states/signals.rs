//! Signals: what is to happen on them, which are blocked, and which wait.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask, raise};

use crate::{Check, State, calls, same};

pub(crate) const STATES: &[State] = &[
    ("blocked", blocked),
    ("handlers", handlers),
    ("alternate-stack", alternate_stack),
    ("pending", pending),
];

/// Real-time signals of this program, counted from the C library's first.
fn real_time(number: i32) -> i32 {
    libc::SIGRTMIN() + number
}

/// Calls of the handler of SIGUSR1.
static CALLS: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: libc::c_int) {
    CALLS.fetch_add(1, Ordering::SeqCst);
}

/// Blocked here, before any thread is born: signals whose pending instances other states keep.
fn blocked() -> Result<Check> {
    let mut set = SigSet::from_iter([Signal::SIGUSR2, Signal::SIGURG]);
    set.thread_block()?;
    block_real_time(&[real_time(1), real_time(2)])?;
    let look = || -> Result<SigSet> {
        let mut now = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_SETMASK, None, Some(&mut now))?;
        Ok(now)
    };
    set = look()?;
    ensure!(set.contains(Signal::SIGURG), "the mask was not taken");
    Ok(Box::new(move || same("signal mask", &set, &look()?)))
}

fn block_real_time(numbers: &[i32]) -> Result<()> {
    let mut set = SigSet::empty();
    for &number in numbers {
        calls::add_to_set(&mut set, number);
    }
    set.thread_block().context("cannot block")
}

fn handlers() -> Result<Check> {
    let flags = libc::SA_RESTART | libc::SA_NODEFER | libc::SA_ONSTACK;
    calls::handle(libc::SIGUSR1, count, flags, &[libc::SIGTERM, libc::SIGUSR2, real_time(4)])?;
    let mut before = None;
    Ok(Box::new(move || {
        // Remembered at the first check: other states set handlers after this one.
        let now: Vec<_> = (1..=64).map(calls::action).collect();
        for (index, expected) in before.get_or_insert_with(|| now.clone()).iter().enumerate() {
            same(&format!("action of signal {}", index + 1), expected, &now[index])?;
        }
        let calls = CALLS.load(Ordering::SeqCst);
        raise(Signal::SIGUSR1)?;
        same("calls of the handler", &(calls + 1), &CALLS.load(Ordering::SeqCst))
    }))
}

fn alternate_stack() -> Result<Check> {
    calls::set_alternate_stack(vec![0; 64 << 10].leak())?;
    let before = calls::alternate_stack()?;
    Ok(Box::new(move || same("alternate stack", &before, &calls::alternate_stack()?)))
}

/// Three queued signals with values, in order, and one without.
fn pending() -> Result<Check> {
    let signal = real_time(1);
    let fill = move || -> Result<()> {
        raise(Signal::SIGUSR2)?;
        Ok([11, 12, 13].into_iter().try_for_each(|value| calls::queue(signal, value))?)
    };
    block_real_time(&[signal])?;
    SigSet::from(Signal::SIGUSR2).thread_block()?;
    fill()?;
    Ok(Box::new(move || {
        let queued: Vec<_> = std::iter::from_fn(|| calls::take(&[signal])).collect();
        same("queued signals", &vec![(signal, 11), (signal, 12), (signal, 13)], &queued)?;
        let plain = calls::take(&[libc::SIGUSR2]).map(|(signal, _)| signal);
        same("pending signal", &Some(libc::SIGUSR2), &plain)?;
        fill()
    }))
}
