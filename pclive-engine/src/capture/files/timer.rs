//! timerfd_create(2): what is left of it.
//!
//! A periodic timer that has expired and was not read stands still until somebody looks: timerfd_gettime(2) makes
//! it count the periods that passed, as the application's own read would, so that the time left is true.

use std::os::fd::AsRawFd;

use super::FilesError;
use super::Mode;
use super::scene::{Sample, Scene};
use crate::model::FileKind;
use crate::proc::fdinfo::{self, Detail, TimerInfo};
use crate::sys::timerfd;

/// Captures a timerfd; `None` if its fdinfo is not one's.
pub(super) fn capture(scene: &Scene<'_>, sample: &Sample<'_>) -> Result<Option<FileKind>, FilesError> {
    let Some(mut timer) = timer(&sample.info.detail) else { return Ok(None) };
    let stands_still = timer.left_ns == 0 && timer.interval_ns != 0;
    if scene.mode == Mode::Dump && stands_still {
        timer = caught_up(sample, timer)?;
    }
    Ok(Some(FileKind::Timer {
        clock: timer.clock,
        settime_flags: timer.settime_flags,
        left_ns: timer.left_ns,
        interval_ns: timer.interval_ns,
        ticks: timer.ticks,
    }))
}

fn timer(detail: &Detail) -> Option<TimerInfo> {
    match *detail {
        Detail::Timer(timer) => Some(timer),
        Detail::Plain | Detail::Event { .. } | Detail::Signal(_) | Detail::Epoll(_) | Detail::Terminal(_) => {
            None
        }
    }
}

fn caught_up(sample: &Sample<'_>, stale: TimerInfo) -> Result<TimerInfo, FilesError> {
    let failed = |source| FilesError::Timer { inode: sample.info.inode, source };
    let left = timerfd::time(sample).map_err(failed)?;
    let text = crate::proc::read(format!("/proc/self/fdinfo/{}", sample.file.as_raw_fd()))
        .map_err(|error| failed(nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))))?;
    let fresh = fdinfo::parse(&text).ok().and_then(|info| timer(&info.detail)).unwrap_or(stale);
    // One that has expired runs: nothing left is an expiry of just now, and would stop the copy's.
    let left_ns = if fresh.ticks > 0 { left.value_ns.max(1) } else { left.value_ns };
    Ok(TimerInfo { left_ns, ..fresh })
}
