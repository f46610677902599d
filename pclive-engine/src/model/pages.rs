//! Pages on their way from the source to the destination.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::ids::Vpid;

/// Bytes in a page. The engine supports x86-64 only, where this is fixed.
pub const PAGE_SIZE: u64 = 4096;
/// Size of a huge page of hugetlbfs, bytes: the one size whose writes the kernel can track (fs/proc/task_mmu.c).
pub const HUGE_PAGE_SIZE: u64 = 2 << 20;

/// The memory that a batch belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Target {
    /// The private memory of a process; extents hold addresses.
    Process(Vpid),
    /// A shared memory object, by its index in [`super::Layout::objects`]' ids; extents hold offsets.
    Object(u64),
}

/// What became of a run of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ExtentKind {
    /// New contents follow in the batch's payload.
    Data,
    /// The pages read as zeros.
    Zero,
    /// The pages were discarded: private anonymous memory reads as zeros again, a private file mapping shows
    /// its file again, a shared object has a hole. Lifts a guard.
    Hole,
    /// Guard pages (`MADV_GUARD_INSTALL`, Linux 6.13): without contents, any access is a SIGSEGV.
    Guard,
}

/// A run of pages with one fate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First byte: an address or, for a shared object, an offset. A multiple of the page size.
    pub start: u64,
    /// Length in pages, at least 1.
    pub pages: u64,
    /// What became of them.
    pub kind: ExtentKind,
}

impl Extent {
    /// Length in bytes (saturating: a hostile page count cannot overflow).
    pub fn len_bytes(&self) -> u64 {
        self.pages.saturating_mul(PAGE_SIZE)
    }

    /// One past the last byte (saturating).
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len_bytes())
    }
}

/// Some extents of one target, with the contents of the data extents concatenated in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Where the pages belong.
    pub target: Target,
    /// The runs, ascending and not overlapping.
    pub extents: Vec<Extent>,
    /// The bytes of all data extents, in order, nothing else.
    pub payload: Bytes,
}

impl Batch {
    /// Bytes that the data extents claim; equal to `payload.len()` in a well-formed batch.
    pub fn data_bytes(&self) -> u64 {
        self.extents
            .iter()
            .filter(|e| e.kind == ExtentKind::Data)
            .fold(0u64, |sum, e| sum.saturating_add(e.len_bytes()))
    }
}
