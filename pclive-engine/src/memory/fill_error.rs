//! What can go wrong at the destination while pages are put in place, and the checks on what a peer sends.

use super::layout_diff::LayoutError;
use crate::model::{Batch, PAGE_SIZE, Pid, Target};

/// Failure of filling. Nothing of the copy has run; it is not complete and must be dropped.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The peer sent pages that no source sends.
    #[error("cannot use the pages for {target:?} at {start:x}: {what}")]
    Malformed {
        /// Where they were to go.
        target: Target,
        /// Start of the extent.
        start: u64,
        /// "not page-aligned" ...
        what: &'static str,
    },
    /// The peer sent mappings that no kernel reports.
    #[error("cannot use the mappings of process {pid}")]
    Layout {
        /// The restorer.
        pid: Pid,
        /// Which and why.
        source: LayoutError,
    },
    /// The kernel refused the pages.
    #[error("cannot write memory at {start:x} of process {pid}")]
    Write {
        /// The restorer.
        pid: Pid,
        /// Address.
        start: u64,
        /// Why.
        source: nix::Error,
    },
    /// A shared object could not be written.
    #[error("cannot {verb} shared memory object {id} at offset {start:x}")]
    Object {
        /// "write", "discard".
        verb: &'static str,
        /// The object.
        id: u64,
        /// Offset.
        start: u64,
        /// Why.
        source: nix::Error,
    },
    /// An object is not in pages like those of the source.
    #[error(
        "cannot keep shared memory object {id}: it has {} at the source and {} here; both bundles must mount the same \
         file systems",
        pages(*.wanted),
        pages(*.here)
    )]
    HugePages {
        /// The object.
        id: u64,
        /// Size of its huge pages here, bytes.
        here: Option<u64>,
        /// At the source.
        wanted: Option<u64>,
    },
    /// Pages for an object that no layout has named.
    #[error("cannot fill shared memory object {id}: it was not announced")]
    UnknownObject {
        /// The object.
        id: u64,
    },
}

fn pages(huge: Option<u64>) -> String {
    huge.map_or_else(|| "no huge pages".into(), |size| format!("huge pages of {} KiB", size / 1024))
}

/// Checks a batch from a peer: extents page-aligned, not empty, ascending, below `limit`; payload as long as the
/// data extents say.
pub(super) fn check_batch(batch: &Batch, limit: u64) -> Result<(), FillError> {
    let refuse = |start, what| Err(FillError::Malformed { target: batch.target, start, what });
    let mut last = 0;
    for extent in &batch.extents {
        let end = extent.pages.checked_mul(PAGE_SIZE).and_then(|bytes| extent.start.checked_add(bytes));
        match end {
            _ if !extent.start.is_multiple_of(PAGE_SIZE) => return refuse(extent.start, "not page-aligned"),
            _ if extent.pages == 0 => return refuse(extent.start, "an empty extent"),
            _ if extent.start < last => return refuse(extent.start, "extents that are not ascending"),
            Some(end) if end <= limit => last = end,
            Some(_) | None => return refuse(extent.start, "beyond the end"),
        }
    }
    if batch.data_bytes() != batch.payload.len() as u64 {
        return refuse(0, "a payload that does not match its extents");
    }
    Ok(())
}
