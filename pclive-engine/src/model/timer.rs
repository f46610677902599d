//! Timers of a process. Times are what is left, so that they do not depend on a host's clock.

use serde::{Deserialize, Serialize};

/// Time left and interval, in nanoseconds; both 0 when disarmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IntervalTimer {
    /// Until the next expiry.
    pub left_ns: u64,
    /// Between expiries; 0 for a one-shot timer.
    pub interval_ns: u64,
}

/// A `timer_create(2)` timer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixTimer {
    /// The kernel's timer id.
    pub id: i32,
    /// `CLOCK_*`.
    pub clock: i32,
    /// `SIGEV_*`.
    pub notify: i32,
    /// Signal to send.
    pub signal: i32,
    /// `sigev_value`.
    pub value: u64,
    /// Thread id inside the container for `SIGEV_THREAD_ID`, else 0.
    pub thread: i32,
    /// Time left and interval.
    pub time: IntervalTimer,
    /// Expiries not yet told (`timer_getoverrun(2)`).
    pub overrun: u32,
}
