//! The pages that a copy goes on without, and how they get to it.
//!
//! At the destination a [`Space`] is the memory of one process that lacks pages: it tells who waits for which, and
//! takes pages as they come. [`Missing`] is what is known of them. At the source an [`Original`] reads pages of the
//! container that stands still. Neither knows how the pages travel.
//!
//! Invariants: a page that the copy has dropped or replaced is never put back; a child gets what its parent lacked when
//! it was born; a page that was never at the source reads as zeros. While a page is missing only the descriptor of its
//! space keeps a task from reading zeros: whoever holds it last must not end before the last page is in place.
//!
//! Kernel: userfaultfd(2) with its events (Linux 4.14), through `/dev/userfaultfd` (6.1), so that system calls that
//! touch a missing page wait, too.

mod missing;
mod original;
mod space;

pub use missing::Missing;
pub use original::{Original, OriginalError};
pub use space::{News, Placing, Space, SpaceError};

use serde::{Deserialize, Serialize};

use crate::model::Vpid;

/// Pages of one process that come later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Later {
    /// The process, inside the container.
    pub vpid: Vpid,
    /// Runs of bytes, those that are written most first.
    pub runs: Vec<(u64, u64)>,
}

impl Later {
    /// How many pages.
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|(start, end)| (end - start) / crate::model::PAGE_SIZE).sum()
    }
}

/// What a process of the copy lacks when it is let go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lack {
    /// Its pages.
    pub later: Later,
    /// The mappings that lack them, which are registered.
    pub areas: Vec<(u64, u64)>,
}
