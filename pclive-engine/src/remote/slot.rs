//! The engine's mapping in a process: where its code, its calls and its data are.
//!
//! The sizes are those of the mapping, of which there is one a process, whatever its number of threads.

use super::{ProcessMemory, ScratchArea, code};
use crate::model::{PAGE_SIZE, Pid, RemoteAddr};

/// Bytes of an entry of the call array.
pub(super) const ENTRY_BYTES: usize = 64;
/// Room for calls.
const CALLS_BYTES: usize = 48 << 10;
/// Calls of one batch at most; three entries are the engine's own.
pub(super) const MAX_CALLS: usize = CALLS_BYTES / ENTRY_BYTES - 3;
/// Room for arguments and results.
const SCRATCH_BYTES: usize = 128 << 10;
/// The saved block's place at the start of the data.
pub(super) const SAVED_ROOM: usize = 256;

/// The engine's mapping in a process: a page of code, then data, then a spare page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    pub(super) start: RemoteAddr,
}

impl Slot {
    /// Bytes of the mapping.
    pub const BYTES: u64 = PAGE_SIZE
        + ((SAVED_ROOM + CALLS_BYTES + SCRATCH_BYTES) as u64).next_multiple_of(PAGE_SIZE)
        + PAGE_SIZE;

    /// A slot mapped at `start`.
    pub fn at(start: RemoteAddr) -> Self {
        Self { start }
    }

    /// Half-open address range.
    pub fn range(self) -> (u64, u64) {
        (self.start.0, self.start.0 + Self::BYTES)
    }

    /// True if the process has it: its code is where it was put.
    pub fn is_in(self, pid: Pid) -> bool {
        let code = code::call_loop(self.start, self.calls(), self.saved());
        let mut found = vec![0; code.len()];
        let read = ProcessMemory::open(pid).and_then(|memory| memory.read(self.start, &mut found));
        read.is_ok() && found == code
    }

    pub(super) fn saved(self) -> RemoteAddr {
        RemoteAddr(self.start.0 + PAGE_SIZE)
    }

    pub(super) fn calls(self) -> RemoteAddr {
        RemoteAddr(self.saved().0 + SAVED_ROOM as u64)
    }

    pub(super) fn scratch(self) -> ScratchArea {
        let start = RemoteAddr(self.calls().0 + CALLS_BYTES as u64);
        ScratchArea { start, len: SCRATCH_BYTES, spare_page: RemoteAddr(self.range().1 - PAGE_SIZE) }
    }
}

/// Where the slot of a process is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spot {
    /// Wherever the kernel likes.
    Anywhere,
    /// At this address, which must be free.
    At(RemoteAddr),
}
