//! timerfd_create(2) and the ioctl that sets the count of unread expiries (Linux 3.17, CONFIG_CHECKPOINT_RESTORE).

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// `TFD_IOC_SET_TICKS` = `_IOW('T', 0, __u64)` of `linux/timerfd.h`.
const TFD_IOC_SET_TICKS: libc::c_ulong = (1 << 30) | (8 << 16) | (0x54 << 8);
const _: () = assert!(TFD_IOC_SET_TICKS == 0x4008_5400);
const NANOS: u64 = 1_000_000_000;

/// A timer's time to the next expiry (or, for an absolute timer, the time of it) and interval, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Setting {
    /// Next expiry; 0 disarms.
    pub value_ns: u64,
    /// Interval; 0 for one expiry.
    pub interval_ns: u64,
}

/// timerfd_create(2), closing on exec. EPERM: an alarm clock without CAP_WAKE_ALARM; EINVAL: unknown clock.
pub fn create(clock: i32) -> nix::Result<OwnedFd> {
    // SAFETY: the call takes two integers and touches no memory of ours.
    let fd = unsafe { libc::timerfd_create(clock, libc::TFD_CLOEXEC) };
    let fd: RawFd = Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// timerfd_settime(2). `flags`: `TFD_TIMER_ABSTIME`, `TFD_TIMER_CANCEL_ON_SET`.
pub fn set_time(timer: impl AsFd, flags: i32, setting: Setting) -> nix::Result<()> {
    let value =
        libc::itimerspec { it_interval: timespec(setting.interval_ns), it_value: timespec(setting.value_ns) };
    // SAFETY: the new value is a live itimerspec that the kernel only reads; a null old value is allowed.
    let result = unsafe {
        libc::timerfd_settime(timer.as_fd().as_raw_fd(), flags, &raw const value, std::ptr::null_mut())
    };
    Errno::result(result).map(drop)
}

/// timerfd_gettime(2): what is left (relative, whatever the timer was set with).
pub fn time(timer: impl AsFd) -> nix::Result<Setting> {
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut value = libc::itimerspec { it_interval: zero, it_value: zero };
    // SAFETY: the kernel stores one itimerspec at the address, which is that of a live one.
    let result = unsafe { libc::timerfd_gettime(timer.as_fd().as_raw_fd(), &raw mut value) };
    Errno::result(result)?;
    Ok(Setting { value_ns: nanoseconds(value.it_value), interval_ns: nanoseconds(value.it_interval) })
}

/// Sets the count of unread expiries of an armed timer. EINVAL: zero; ECANCELED: the clock was set meanwhile.
pub fn set_ticks(timer: impl AsFd, ticks: u64) -> nix::Result<()> {
    // SAFETY: the ioctl reads one u64 at the address, which is that of a live u64.
    let result = unsafe { libc::ioctl(timer.as_fd().as_raw_fd(), TFD_IOC_SET_TICKS, &raw const ticks) };
    Errno::result(result).map(drop)
}

/// clock_gettime(2) of any clock id, in nanoseconds.
pub fn clock_now(clock: i32) -> nix::Result<u64> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel stores one timespec at the address, which is that of a live one.
    Errno::result(unsafe { libc::clock_gettime(clock, &raw mut now) })?;
    Ok(nanoseconds(now))
}

fn timespec(ns: u64) -> libc::timespec {
    libc::timespec { tv_sec: (ns / NANOS) as i64, tv_nsec: (ns % NANOS) as i64 }
}

fn nanoseconds(time: libc::timespec) -> u64 {
    time.tv_sec.unsigned_abs().saturating_mul(NANOS).saturating_add(time.tv_nsec.unsigned_abs())
}
