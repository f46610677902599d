//! Witnesses: of every huge page that was sent a byte that was not zero.
//!
//! A private huge page that is discarded leaves a marker, and when it is read again the kernel makes it anew, of zeros, and
//! takes it for protected and not written (mm/hugetlb.c: `hugetlb_no_page`). So the tracker does not see that. A page that
//! was made that way is zeros as a whole, because a write would have been seen: it is enough to look at one byte.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;

use bytes::BytesMut;

use super::error::MemoryError;
use super::ranges::RangeSet;
use super::reader::open_mem;
use crate::model::{Batch, ExtentKind, HUGE_PAGE_SIZE, PAGE_SIZE, Pid};
use crate::sys::process_vm::{self, MAX_RANGES, RemoteRange};

/// The witnesses of one process, by the start of their huge pages.
#[derive(Debug, Default)]
pub(super) struct Witnesses {
    addresses: BTreeMap<u64, u64>,
}

impl Witnesses {
    /// Takes note of what was read of huge pages, which lie within `huge`.
    pub(super) fn note(&mut self, batch: &Batch, huge: &RangeSet) {
        let mut payload = batch.payload.as_ref();
        for extent in &batch.extents {
            let is_huge = huge.within(extent.start, extent.end()).next().is_some();
            match extent.kind {
                ExtentKind::Data => {
                    let len = usize::try_from(extent.len_bytes()).unwrap_or(usize::MAX).min(payload.len());
                    let (bytes, rest) = payload.split_at(len);
                    payload = rest;
                    if is_huge {
                        self.choose(extent.start, bytes);
                    }
                }
                ExtentKind::Zero if is_huge => self.forget(extent.start, extent.end()),
                ExtentKind::Zero | ExtentKind::Hole | ExtentKind::Guard => {}
            }
        }
    }

    /// Chooses a byte in the last page of each huge page that has one.
    fn choose(&mut self, start: u64, bytes: &[u8]) {
        let pages = bytes.chunks(PAGE_SIZE as usize);
        for (at, page) in (start..).step_by(PAGE_SIZE as usize).zip(pages) {
            if let Some(offset) = page.iter().position(|byte| *byte != 0) {
                self.addresses.insert(at / HUGE_PAGE_SIZE * HUGE_PAGE_SIZE, at + offset as u64);
            }
        }
    }

    fn forget(&mut self, start: u64, end: u64) {
        self.addresses.retain(|_, address| !(start..end).contains(address));
    }

    /// Keeps those of pages that the destination has.
    pub(super) fn retain(&mut self, sent: &RangeSet) {
        self.addresses.retain(|_, address| sent.within(*address, *address + 1).next().is_some());
    }

    /// The huge pages that are zeros by now, as far as none of `written` is in them. One that cannot be looked at is told
    /// as well.
    pub(super) fn silent(&self, pid: Pid, written: &RangeSet) -> Result<RangeSet, MemoryError> {
        let asked: Vec<(u64, u64)> = self
            .addresses
            .iter()
            .filter(|(page, _)| written.within(**page, **page + HUGE_PAGE_SIZE).next().is_none())
            .map(|(page, address)| (*page, *address))
            .collect();
        let mut silent = RangeSet::new();
        let mut rest = asked.as_slice();
        while !rest.is_empty() {
            let now = rest.get(..rest.len().min(MAX_RANGES)).unwrap_or_default();
            let ranges: Vec<_> = now.iter().map(|(_, start)| RemoteRange { start: *start, len: 1 }).collect();
            let mut seen = BytesMut::with_capacity(ranges.len());
            // Nothing is read where the process itself may not read.
            let read = process_vm::read_append(pid, &ranges, &mut seen).unwrap_or(0);
            let mut tell = |page: u64| silent.insert(page, page + HUGE_PAGE_SIZE);
            now.iter().zip(&seen).filter(|(_, byte)| **byte == 0).for_each(|((page, _), _)| tell(*page));
            if let Some((page, address)) = now.get(read)
                && look(pid, *address)?.is_none_or(|byte| byte == 0)
            {
                tell(*page);
            }
            rest = rest.get((read + 1).min(rest.len())..).unwrap_or_default();
        }
        Ok(silent)
    }
}

/// A byte of a process, whatever its mapping's protection; `None` where nothing is mapped.
fn look(pid: Pid, address: u64) -> Result<Option<u8>, MemoryError> {
    let mem = open_mem(pid)?;
    let mut byte = [0];
    Ok(mem.read_exact_at(&mut byte, address).ok().map(|()| byte[0]))
}
