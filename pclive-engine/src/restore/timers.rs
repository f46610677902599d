//! Interval timers and POSIX timers, which start to run again here, with what was left of them.
//!
//! POSIX timers get their old ids: on Linux 6.15 and later by asking for them (`PR_TIMER_CREATE_RESTORE_IDS`);
//! before that by making and deleting timers until the id comes up, because the kernel counts upwards.

use super::failure::{Checks, RestoreStateError, expect};
use crate::model::Vpid;
use crate::model::timer::{IntervalTimer, PosixTimer};
use crate::remote::{Answers, Batch, Piece, RemoteTask, Ticket};

/// `PR_TIMER_CREATE_RESTORE_IDS`. Linux 6.15.
const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
const NS_PER_SECOND: u64 = 1_000_000_000;
const NS_PER_MICROSECOND: u64 = 1_000;
/// `struct sigevent`.
const SIGEVENT_BYTES: usize = 64;
/// Timers handled in one batch.
const TIMERS_AT_ONCE: usize = 64;
/// Ids that are skipped at most, where each costs two calls.
const MAX_SKIPPED_IDS: i32 = 1 << 17;

/// Adds the calls that arm the three interval timers.
pub(super) fn set_intervals(
    batch: &mut Batch,
    checks: &mut Checks,
    timers: &[IntervalTimer; 3],
) -> Result<(), RestoreStateError> {
    let which = [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF];
    for (which, timer) in which.into_iter().zip(timers) {
        if *timer != IntervalTimer::default() {
            let value = batch.place(&words(timer, NS_PER_MICROSECOND))?;
            let call = batch.call(libc::SYS_setitimer, &[which as u64, value.address(), 0]);
            checks.add(call, "set an interval timer");
        }
    }
    Ok(())
}

/// `struct itimerval` or `struct itimerspec`. What is left of an armed timer is never rounded to 0, which would
/// disarm it.
fn words(timer: &IntervalTimer, unit_ns: u64) -> [u8; 32] {
    let left_ns = if timer.left_ns == 0 { 0 } else { timer.left_ns.max(unit_ns) };
    let words = [
        timer.interval_ns / NS_PER_SECOND,
        timer.interval_ns % NS_PER_SECOND / unit_ns,
        left_ns / NS_PER_SECOND,
        left_ns % NS_PER_SECOND / unit_ns,
    ];
    let mut bytes = [0; 32];
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// Makes the POSIX timers of a process, with their ids. The threads that they tell must exist.
pub(super) fn make_posix(task: &mut dyn RemoteTask, timers: &[PosixTimer]) -> Result<(), RestoreStateError> {
    if timers.is_empty() {
        return Ok(());
    }
    check_ids(task.vpid(), timers)?;
    if ids_can_be_asked_for(task)? {
        let made = timers.chunks(TIMERS_AT_ONCE).try_for_each(|part| make_by_asking(task, part));
        let mut batch = Batch::new(task);
        batch.call(libc::SYS_prctl, &[PR_TIMER_CREATE_RESTORE_IDS, 0]);
        batch.run(task)?;
        return made;
    }
    make_by_counting(task, timers)
}

fn check_ids(vpid: Vpid, timers: &[PosixTimer]) -> Result<(), RestoreStateError> {
    let ascending = timers.is_sorted_by(|a, b| a.id < b.id);
    if ascending && timers.iter().all(|timer| timer.id >= 0) {
        return Ok(());
    }
    Err(RestoreStateError::Invalid { vpid, what: "timer ids that are not ascending".into() })
}

fn ids_can_be_asked_for(task: &mut dyn RemoteTask) -> Result<bool, RestoreStateError> {
    let mut batch = Batch::new(task);
    let ask = batch.call(libc::SYS_prctl, &[PR_TIMER_CREATE_RESTORE_IDS, 1]);
    Ok(batch.run(task)?.result(ask).is_ok())
}

fn make_by_asking(task: &mut dyn RemoteTask, timers: &[PosixTimer]) -> Result<(), RestoreStateError> {
    let mut batch = Batch::new(task);
    let mut makings = Vec::with_capacity(timers.len());
    for timer in timers {
        makings.push((timer, Making::plan(&mut batch, task.vpid(), timer)?));
    }
    let answers = batch.run(task)?;
    makings.iter().try_for_each(|(timer, making)| making.take(&answers, task, timer))
}

/// The calls that make one timer and arm it.
#[derive(Debug)]
struct Making {
    id: Piece,
    create: Ticket,
    arm: Ticket,
}

impl Making {
    fn plan(batch: &mut Batch, leader: Vpid, timer: &PosixTimer) -> Result<Self, RestoreStateError> {
        let id = batch.place(&timer.id.to_ne_bytes())?;
        let event = batch.place(&event(leader, timer))?;
        let value = batch.place(&words(&timer.time, 1))?;
        let clock = i64::from(timer.clock) as u64;
        let create = batch.call(libc::SYS_timer_create, &[clock, event.address(), id.address()]);
        let arm = batch.call(libc::SYS_timer_settime, &[timer.id as u64, 0, value.address(), 0]);
        Ok(Self { id, create, arm })
    }

    fn take(
        &self,
        answers: &Answers,
        task: &dyn RemoteTask,
        timer: &PosixTimer,
    ) -> Result<(), RestoreStateError> {
        expect(answers, self.create, task, || format!("make timer {} on clock {}", timer.id, timer.clock))?;
        let id = answers.u32(self.id) as i32;
        if id != timer.id {
            return Err(wrong_id(task.vpid(), timer.id, id));
        }
        expect(answers, self.arm, task, || format!("arm timer {id}")).map(drop)
    }
}

fn wrong_id(vpid: Vpid, wanted: i32, got: i32) -> RestoreStateError {
    let what = format!("timer id {wanted}, but the kernel gives {got}");
    RestoreStateError::Unfit { vpid, what }
}

/// `struct sigevent`. A timer whose thread is gone tells nobody.
fn event(leader: Vpid, timer: &PosixTimer) -> [u8; SIGEVENT_BYTES] {
    let orphan = timer.notify & libc::SIGEV_THREAD_ID != 0 && timer.thread == 0;
    let notify = if orphan { libc::SIGEV_NONE } else { timer.notify };
    let thread = if timer.thread == 0 { leader.0 } else { timer.thread };
    let mut event = [0; SIGEVENT_BYTES];
    event[..8].copy_from_slice(&timer.value.to_ne_bytes());
    event[8..12].copy_from_slice(&timer.signal.to_ne_bytes());
    event[12..16].copy_from_slice(&notify.to_ne_bytes());
    event[16..20].copy_from_slice(&thread.to_ne_bytes());
    event
}

/// Makes timers on kernels that give out ids one after the other.
pub(super) fn make_by_counting(
    task: &mut dyn RemoteTask,
    timers: &[PosixTimer],
) -> Result<(), RestoreStateError> {
    let mut next = next_id(task)?;
    for timer in timers {
        let skip = timer.id.saturating_sub(next);
        if !(0..=MAX_SKIPPED_IDS).contains(&skip) {
            return Err(wrong_id(task.vpid(), timer.id, next));
        }
        while next < timer.id {
            let count = (timer.id - next).min(TIMERS_AT_ONCE as i32);
            skip_ids(task, next, count)?;
            next += count;
        }
        make_by_asking(task, std::slice::from_ref(timer))?;
        next += 1;
    }
    Ok(())
}

/// Uses up one id to learn where the count is.
fn next_id(task: &mut dyn RemoteTask) -> Result<i32, RestoreStateError> {
    let mut batch = Batch::new(task);
    let id = batch.reserve(4)?;
    let create = batch.call(libc::SYS_timer_create, &[libc::CLOCK_MONOTONIC as u64, 0, id.address()]);
    let answers = batch.run(task)?;
    expect(&answers, create, task, || "make a timer".into())?;
    let used = answers.u32(id) as i32;
    let mut batch = Batch::new(task);
    let delete = batch.call(libc::SYS_timer_delete, &[used as u64]);
    let answers = batch.run(task)?;
    expect(&answers, delete, task, || format!("delete timer {used}"))?;
    if used > 0 {
        return Ok(used.saturating_add(1));
    }
    Ok(1)
}

fn skip_ids(task: &mut dyn RemoteTask, first: i32, count: i32) -> Result<(), RestoreStateError> {
    let mut batch = Batch::new(task);
    let slot = batch.reserve(4)?.address();
    let mut calls = Vec::with_capacity(count as usize * 2);
    for id in first..first + count {
        calls.push(batch.call(libc::SYS_timer_create, &[libc::CLOCK_MONOTONIC as u64, 0, slot]));
        calls.push(batch.call(libc::SYS_timer_delete, &[id as u64]));
    }
    let answers = batch.run(task)?;
    for call in calls {
        expect(&answers, call, task, || format!("count timer ids up from {first}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn armed_timer_is_never_rounded_to_disarmed() {
        let timer = IntervalTimer { left_ns: 1, interval_ns: 2_500_000_000 };
        let bytes = words(&timer, NS_PER_MICROSECOND);
        let words: Vec<u64> =
            bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words, [2, 500_000, 0, 1]);
    }

    #[test]
    fn timer_of_a_thread_that_is_gone_tells_nobody() {
        let timer = PosixTimer {
            id: 3,
            clock: 1,
            notify: libc::SIGEV_THREAD_ID,
            signal: 34,
            value: 7,
            thread: 0,
            time: IntervalTimer::default(),
            overrun: 0,
        };
        assert_eq!(event(Vpid(9), &timer)[12..20], [1, 0, 0, 0, 9, 0, 0, 0]);
        assert_eq!(event(Vpid(9), &PosixTimer { thread: 5, ..timer })[12..20], [4, 0, 0, 0, 5, 0, 0, 0]);
    }
}
