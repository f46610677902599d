//! timerfd_create(2).
//!
//! A timer goes on with what was left of it: time stands still for it during the migration. One that was set to a
//! time of its clock is set to a time again, so that it keeps its kind (and `TFD_TIMER_CANCEL_ON_SET`).

use std::os::fd::OwnedFd;

use crate::sys::timerfd::{self, Setting};

/// A timer of the source; times in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timer {
    pub(super) clock: i32,
    pub(super) settime_flags: i32,
    pub(super) left_ns: u64,
    pub(super) interval_ns: u64,
    pub(super) ticks: u64,
}

/// Makes the timer; it runs from now on.
pub(super) fn make(timer: Timer) -> nix::Result<OwnedFd> {
    let file = timerfd::create(timer.clock)?;
    if timer.left_ns != 0 {
        let flags = timer.settime_flags & (libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET);
        let now = match flags & libc::TFD_TIMER_ABSTIME {
            0 => 0,
            _ => timerfd::clock_now(timer.clock)?,
        };
        let value_ns = now.saturating_add(timer.left_ns);
        timerfd::set_time(&file, flags, Setting { value_ns, interval_ns: timer.interval_ns })?;
    }
    if timer.ticks != 0 {
        timerfd::set_ticks(&file, timer.ticks)?;
    }
    Ok(file)
}
