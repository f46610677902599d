//! eventfd(2): the counter, which `/proc/PID/fdinfo` tells without taking it.

use crate::model::FileKind;
use crate::proc::fdinfo::Detail;

/// Captures an eventfd; `None` if its fdinfo has no counter.
pub(super) fn capture(detail: &Detail) -> Option<FileKind> {
    match *detail {
        Detail::Event { count, semaphore, .. } => Some(FileKind::Event { count, semaphore }),
        Detail::Plain | Detail::Timer(_) | Detail::Signal(_) | Detail::Epoll(_) | Detail::Terminal(_) => None,
    }
}
