//! Timers: how much is left of them moves on with the clock, and those that tick go on ticking.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use pclive_tests::wait::until;

use crate::{Check, State, calls, same};

pub(crate) const STATES: &[State] = &[
    ("interval-timers", interval_timers),
    ("posix-timers", posix_timers),
    ("ticking-timer", ticking_timer),
    ("timerfd", timerfd),
    ("expired-timerfd", expired_timerfd),
];

/// Far enough never to be reached, seconds.
const FAR: i64 = 50_000;
/// How much a clock may have jumped or stood still, seconds.
const SLACK: f64 = 5.0;

/// What is left must have shrunk by the time that has passed.
fn shrunk(what: &str, since: Instant, left_s: f64) -> Result<()> {
    let expected = FAR as f64 - since.elapsed().as_secs_f64();
    ensure!((left_s - expected).abs() < SLACK, "{what}: {left_s} s are left instead of {expected} s");
    Ok(())
}

fn interval_timers() -> Result<Check> {
    let start = Instant::now();
    calls::set_interval_timer(libc::ITIMER_REAL, FAR, 4321)?;
    calls::set_interval_timer(libc::ITIMER_PROF, FAR, 99)?;
    Ok(Box::new(move || {
        let (left, interval) = calls::interval_timer(libc::ITIMER_REAL)?;
        shrunk("ITIMER_REAL", start, left as f64)?;
        same("interval", &4321, &interval)?;
        let (left, interval) = calls::interval_timer(libc::ITIMER_PROF)?;
        ensure!(left > FAR - 1000 && left <= FAR, "ITIMER_PROF has {left} s left");
        same("interval of ITIMER_PROF", &99, &interval)
    }))
}

/// Two timers whose ids are not next to each other.
fn posix_timers() -> Result<Check> {
    let signal = libc::SIGRTMIN() + 3;
    let first = calls::PosixTimer::new(libc::CLOCK_MONOTONIC, signal, 1)?;
    let gone = calls::PosixTimer::new(libc::CLOCK_MONOTONIC, signal, 2)?;
    let last = calls::PosixTimer::new(libc::CLOCK_REALTIME, signal, 3)?;
    gone.delete();
    let start = Instant::now();
    first.arm(FAR * 1_000_000_000, 777)?;
    last.arm(FAR * 1_000_000_000, 0)?;
    let ids = (first.id(), last.id());
    Ok(Box::new(move || {
        let (left, interval) = first.left()?;
        shrunk("POSIX timer", start, left as f64 / 1e9)?;
        same("interval", &777, &interval)?;
        shrunk("POSIX timer of the wall clock", start, last.left()?.0 as f64 / 1e9)?;
        ensure!(gone.left().is_err(), "a deleted timer is back");
        same("ids", &ids, &(first.id(), last.id()))
    }))
}

/// Ticks of the ticking timer.
static TICKS: AtomicU32 = AtomicU32::new(0);

extern "C" fn tick(_: libc::c_int) {
    TICKS.fetch_add(1, Ordering::SeqCst);
}

fn ticking_timer() -> Result<Check> {
    let signal = libc::SIGRTMIN() + 5;
    calls::handle(signal, tick, libc::SA_RESTART, &[])?;
    let timer = calls::PosixTimer::new(libc::CLOCK_MONOTONIC, signal, 0)?;
    timer.arm(10_000_000, 10_000_000)?;
    Ok(Box::new(move || {
        let before = TICKS.load(Ordering::SeqCst);
        until("ten ticks", Duration::from_secs(10), || Ok(TICKS.load(Ordering::SeqCst) >= before + 10))
    }))
}

fn timerfd() -> Result<Check> {
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)?;
    let (left, interval) = (TimeSpec::new(FAR, 0), TimeSpec::new(11, 22));
    timer.set(Expiration::IntervalDelayed(left, interval), TimerSetTimeFlags::empty())?;
    let start = Instant::now();
    Ok(Box::new(move || match timer.get()? {
        Some(Expiration::IntervalDelayed(left, found)) => {
            shrunk("timerfd", start, Duration::from(left).as_secs_f64())?;
            same("interval", &interval, &found)
        }
        other => same("timerfd", &None, &other),
    }))
}

/// A timer that has expired and was not read.
fn expired_timerfd() -> Result<Check> {
    let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_NONBLOCK)?;
    let expire = move |timer: &TimerFd| -> Result<()> {
        let soon = Expiration::OneShot(TimeSpec::new(0, 1));
        timer.set(soon, TimerSetTimeFlags::empty())?;
        until("the expiry", Duration::from_secs(5), || Ok(readable(timer)))
    };
    expire(&timer)?;
    Ok(Box::new(move || {
        ensure!(readable(&timer), "the expiry was lost");
        timer.wait()?;
        ensure!(!readable(&timer), "the expiry was doubled");
        expire(&timer)
    }))
}

fn readable(timer: &TimerFd) -> bool {
    use std::os::fd::AsFd;
    crate::descriptors::readable(timer.as_fd())
}
