//! Digests of the pages that were sent, so that contents can be compared with what the destination has.
//!
//! xxh3 (64 bit), a page each: it finds accidents, not attacks; the memory compared is the container's own.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64;

use super::ranges::RangeSet;
use crate::model::PAGE_SIZE;

const PAGE: usize = PAGE_SIZE as usize;
/// Pages whose digests are kept together: 2 MiB of memory, 4 KiB of digests.
const CHUNK_PAGES: usize = 512;
const CHUNK_BYTES: u64 = CHUNK_PAGES as u64 * PAGE_SIZE;

/// A digest for each page that was sent.
#[derive(Debug, Default)]
pub(super) struct Digests {
    chunks: BTreeMap<u64, Box<[u64]>>,
    pages: RangeSet,
}

impl Digests {
    /// The pages that have one.
    pub(super) fn pages(&self) -> RangeSet {
        self.pages.clone()
    }

    /// Takes the digests of whole pages from `start` on.
    pub(super) fn remember(&mut self, start: u64, bytes: &[u8]) {
        let mut at = start;
        for page in bytes.chunks_exact(PAGE) {
            let chunk = self.chunks.entry(at / CHUNK_BYTES).or_insert_with(|| vec![0; CHUNK_PAGES].into());
            if let Some(slot) = chunk.get_mut(index(at)) {
                *slot = xxh3_64(page);
            }
            at += PAGE_SIZE;
        }
        self.pages.insert(start, at);
    }

    /// Adds to `changed` the pages that differ from their digest or have none.
    pub(super) fn compare(&self, start: u64, bytes: &[u8], changed: &mut RangeSet) {
        let mut at = start;
        for page in bytes.chunks_exact(PAGE) {
            let known = self.chunks.get(&(at / CHUNK_BYTES)).and_then(|chunk| chunk.get(index(at)));
            if known != Some(&xxh3_64(page)) {
                changed.insert(at, at + PAGE_SIZE);
            }
            at += PAGE_SIZE;
        }
    }

    /// These pages are no longer at the destination.
    pub(super) fn forget(&mut self, start: u64, end: u64) {
        self.pages.remove(start, end);
        let within = start.div_ceil(CHUNK_BYTES)..end / CHUNK_BYTES;
        if within.start < within.end {
            self.chunks.retain(|chunk, _| !within.contains(chunk));
        }
    }
}

fn index(address: u64) -> usize {
    usize::try_from(address % CHUNK_BYTES / PAGE_SIZE).unwrap_or(0)
}
