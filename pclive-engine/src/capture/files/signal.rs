//! signalfd(2): the accepted signals. What is pending belongs to the tasks, not to the descriptor.

use crate::model::FileKind;
use crate::proc::fdinfo::Detail;

/// Captures a signalfd; `None` if its fdinfo has no mask.
pub(super) fn capture(detail: &Detail) -> Option<FileKind> {
    match *detail {
        Detail::Signal(mask) => Some(FileKind::Signal { mask }),
        Detail::Plain | Detail::Event { .. } | Detail::Timer(_) | Detail::Epoll(_) | Detail::Terminal(_) => {
            None
        }
    }
}
