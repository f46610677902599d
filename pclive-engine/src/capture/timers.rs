//! Interval timers and POSIX timers: what is left of them.
//!
//! Kernel: getitimer(2) and timer_gettime(2) in the process, `/proc/PID/timers` (Linux 3.10).

use super::failure::{CaptureStateError, expect, read_text};
use crate::model::timer::{IntervalTimer, PosixTimer};
use crate::model::{Pid, Vpid};
use crate::proc::status;
use crate::proc::timers::{self, TimerLine};
use crate::remote::{Answers, Batch, Piece, RemoteError, RemoteTask, Ticket};

/// `struct itimerval` and `struct itimerspec`: interval, then value, each seconds and a fraction.
const TIMER_BYTES: usize = 32;
const NS_PER_SECOND: u64 = 1_000_000_000;
const NS_PER_MICROSECOND: u64 = 1_000;
/// Timers asked for in one batch.
const TIMERS_AT_ONCE: usize = 128;
/// The clock is a file descriptor (`CLOCKFD` in the kernel's posix-timers.h): a PTP device.
const CLOCK_KIND_MASK: i32 = 7;
const CLOCK_OF_FILE: i32 = 3;

/// Calls that read the three interval timers.
#[derive(Debug)]
pub(super) struct IntervalTimers([(Piece, Ticket); 3]);

impl IntervalTimers {
    pub(super) fn plan(batch: &mut Batch) -> Result<Self, RemoteError> {
        let mut read = |which: i32| {
            let timer = batch.reserve(TIMER_BYTES)?;
            Ok::<_, RemoteError>((timer, batch.call(libc::SYS_getitimer, &[which as u64, timer.address()])))
        };
        let real = read(libc::ITIMER_REAL)?;
        let user = read(libc::ITIMER_VIRTUAL)?;
        let profile = read(libc::ITIMER_PROF)?;
        Ok(Self([real, user, profile]))
    }

    pub(super) fn take(
        &self,
        answers: &Answers,
        vpid: Vpid,
    ) -> Result<[IntervalTimer; 3], CaptureStateError> {
        let mut timers = [IntervalTimer::default(); 3];
        for (timer, (piece, ticket)) in timers.iter_mut().zip(&self.0) {
            expect(answers, *ticket, vpid, "interval timers")?;
            *timer = time(answers, *piece, NS_PER_MICROSECOND);
        }
        Ok(timers)
    }
}

fn time(answers: &Answers, piece: Piece, unit_ns: u64) -> IntervalTimer {
    let words: Vec<u64> = answers.u64s(piece).collect();
    let ns = |seconds: u64, fraction: u64| {
        seconds.saturating_mul(NS_PER_SECOND).saturating_add(fraction.saturating_mul(unit_ns))
    };
    match words.as_slice() {
        [seconds, fraction, left_seconds, left_fraction] => {
            IntervalTimer { left_ns: ns(*left_seconds, *left_fraction), interval_ns: ns(*seconds, *fraction) }
        }
        _ => IntervalTimer::default(),
    }
}

/// The POSIX timers of a process, ascending by id. Costs a batch of its own only if there are any.
pub(super) fn posix(task: &mut dyn RemoteTask) -> Result<Vec<PosixTimer>, CaptureStateError> {
    let (pid, vpid) = (task.pid(), task.vpid());
    let mut lines = read_text(pid, "timers", timers::parse)?;
    lines.sort_unstable_by_key(|line| line.id);
    let mut found = Vec::with_capacity(lines.len());
    for part in lines.chunks(TIMERS_AT_ONCE) {
        found.extend(read_times(task, part)?);
    }
    for timer in &found {
        if clock_of_file(timer.clock) {
            return Err(CaptureStateError::Unsupported {
                vpid,
                what: format!("timer {} runs on the clock of a device", timer.id),
                hint: "stop the program that uses the PTP clock",
            });
        }
    }
    Ok(found)
}

pub(super) fn clock_of_file(clock: i32) -> bool {
    clock < 0 && clock & CLOCK_KIND_MASK == CLOCK_OF_FILE
}

fn read_times(task: &mut dyn RemoteTask, lines: &[TimerLine]) -> Result<Vec<PosixTimer>, CaptureStateError> {
    let (pid, vpid) = (task.pid(), task.vpid());
    let mut batch = Batch::new(task);
    let mut plans = Vec::with_capacity(lines.len());
    for line in lines {
        let piece = batch.reserve(TIMER_BYTES)?;
        let read = batch.call(libc::SYS_timer_gettime, &[line.id as u64, piece.address()]);
        let overrun = batch.call(libc::SYS_timer_getoverrun, &[line.id as u64]);
        plans.push((piece, read, overrun));
    }
    let answers = batch.run(task)?;
    let mut found = Vec::with_capacity(lines.len());
    for (line, (piece, read, overrun)) in lines.iter().zip(plans) {
        expect(&answers, read, vpid, "time of a timer")?;
        found.push(PosixTimer {
            id: line.id,
            clock: line.clock,
            notify: line.notify,
            signal: line.signal,
            value: line.value,
            thread: thread_told(pid, line)?,
            time: time(&answers, piece, 1),
            overrun: expect(&answers, overrun, vpid, "overrun of a timer")? as u32,
        });
    }
    Ok(found)
}

/// The thread that a timer tells, inside the container; 0 for none, or one that is gone.
fn thread_told(pid: Pid, line: &TimerLine) -> Result<i32, CaptureStateError> {
    if line.notify & libc::SIGEV_THREAD_ID == 0 || line.target == 0 {
        return Ok(0);
    }
    let status = read_text(pid, &format!("task/{}/status", line.target), status::parse)?;
    Ok(status.own_id().unwrap_or_default())
}
