//! How much the next round would send, without sending or changing anything.
//!
//! The same scans as a round's, but nothing is protected: a page stays dirty, and a later count finds it again. Kernel:
//! `PAGEMAP_SCAN` (Linux 6.7). Counts are of a running process: true for the moment of the scan.

use std::collections::HashMap;

use super::error::MemoryError;
use super::object::Objects;
use super::ranges::RangeSet;
use super::space::{AddressSpace, Areas, shared_object};
use super::tracker::Kind;

/// Written pages of shared memory, by object: two processes may have written the same ones.
pub type SharedWrites = HashMap<u64, RangeSet>;

impl AddressSpace {
    /// Private pages that were written since the last round, or that it could not hand over. `anonymous` are the
    /// private anonymous mappings that the process has now: memory that is new since the round counts whole. Written
    /// shared pages are added to `shared`. Errors as for [`Self::round`].
    pub fn pending(
        &self,
        anonymous: &[(u64, u64)],
        objects: &mut Objects,
        shared: &mut SharedWrites,
    ) -> Result<u64, MemoryError> {
        let files = Areas::of(&self.vmas);
        let mut view = self.tracker.view()?;
        let mut found = view.peek_writes(anonymous, Kind::Anonymous)?;
        found = found.union(&view.peek_writes(&files.file_spans, Kind::File)?.intersection(&files.files));
        for vma in &self.vmas {
            let Some((object, offset)) = shared_object(vma) else { continue };
            let end = offset.saturating_add(vma.end - vma.start);
            for (start, end) in objects.held(self.pid(), (object, offset, end))? {
                let written =
                    view.peek_shared_writes(start - offset + vma.start, end - offset + vma.start)?;
                let of_object = shared.entry(object).or_default();
                for (start, end) in written.within(vma.start, vma.end) {
                    of_object.insert(start - vma.start + offset, end - vma.start + offset);
                }
            }
        }
        self.tracker.check_alive()?;
        Ok(found.union(&self.retry).pages())
    }
}
