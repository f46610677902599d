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
        let pages = start / HUGE_PAGE_SIZE * HUGE_PAGE_SIZE..end;
        self.addresses.extract_if(pages, |_, address| (start..end).contains(address)).for_each(drop);
    }

    /// Keeps those of pages that the destination has.
    pub(super) fn retain(&mut self, sent: &RangeSet) {
        self.addresses.retain(|_, address| sent.within(*address, *address + 1).next().is_some());
    }

    /// The huge pages that are zeros by now and not in `written` as a whole. One that cannot be looked at is told as well.
    pub(super) fn silent(&self, pid: Pid, written: &RangeSet) -> Result<RangeSet, MemoryError> {
        let asked: Vec<(u64, u64)> = self
            .addresses
            .iter()
            .filter(|(page, _)| !is_whole(written, **page))
            .map(|(page, address)| (*page, *address))
            .collect();
        let mut silent = RangeSet::new();
        let read = |ranges: &[RemoteRange]| {
            let mut seen = BytesMut::with_capacity(ranges.len());
            // Nothing is read where the process itself may not read.
            let _ = process_vm::read_append(pid, ranges, &mut seen);
            seen
        };
        each(&asked, read, |page, address, byte| {
            let byte = byte.map_or_else(|| look(pid, address), |byte| Ok(Some(byte)))?;
            if byte.is_none_or(|byte| byte == 0) {
                silent.insert(page, page + HUGE_PAGE_SIZE);
            }
            Ok(())
        })?;
        Ok(silent)
    }
}

/// Whether all of a huge page is in a set.
fn is_whole(set: &RangeSet, page: u64) -> bool {
    let past = page + HUGE_PAGE_SIZE;
    set.within(page, past).next() == Some((page, past))
}

/// Tells the byte at the address of every page; `None` where `read`, which takes [`MAX_RANGES`] at most, stopped.
fn each(
    asked: &[(u64, u64)],
    read: impl Fn(&[RemoteRange]) -> BytesMut,
    mut tell: impl FnMut(u64, u64, Option<u8>) -> Result<(), MemoryError>,
) -> Result<(), MemoryError> {
    let mut rest = asked;
    while !rest.is_empty() {
        let now = rest.get(..MAX_RANGES).unwrap_or(rest);
        let ranges: Vec<_> = now.iter().map(|(_, start)| RemoteRange { start: *start, len: 1 }).collect();
        let seen = read(&ranges);
        // One more than was read, if there is one: where it stopped.
        let told = now.len().min(seen.len() + 1);
        for (index, (page, address)) in now.iter().take(told).enumerate() {
            tell(*page, *address, seen.get(index).copied())?;
        }
        rest = rest.get(told..).unwrap_or_default();
    }
    Ok(())
}

/// A byte of a process, whatever its mapping's protection; `None` where nothing is mapped.
fn look(pid: Pid, address: u64) -> Result<Option<u8>, MemoryError> {
    let mem = open_mem(pid)?;
    let mut byte = [0];
    Ok(mem.read_exact_at(&mut byte, address).ok().map(|()| byte[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_looked_at_once_wherever_reading_stops() {
        let asked: Vec<(u64, u64)> = (0..3000).map(|page| (page, 10 * page)).collect();
        // Those at multiples of 7000, and those behind them until the next call, cannot be read.
        let readable = |range: &&RemoteRange| !range.start.is_multiple_of(7000);
        let read = |ranges: &[RemoteRange]| -> BytesMut {
            assert!(ranges.len() <= MAX_RANGES);
            ranges.iter().take_while(readable).map(|range| range.start as u8).collect()
        };
        let mut seen = Vec::new();
        each(&asked, read, |page, address, byte| {
            let expected = (!address.is_multiple_of(7000)).then_some(address as u8);
            assert_eq!((address, byte), (10 * page, expected));
            seen.push(page);
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, Vec::from_iter(0..3000));
    }

    #[test]
    fn a_page_has_the_witness_of_what_was_read_last() {
        let huge = RangeSet::from_iter([(0, 2 * HUGE_PAGE_SIZE)]);
        let batch = |extents: &[(u64, u64, ExtentKind)], payload: Vec<u8>| Batch {
            target: crate::model::Target::Process(crate::model::Vpid(1)),
            extents: extents
                .iter()
                .map(|&(start, pages, kind)| crate::model::Extent { start, pages, kind })
                .collect(),
            payload: payload.into(),
        };
        let mut witnesses = Witnesses::default();
        let mut contents = vec![0; 2 * PAGE_SIZE as usize];
        (contents[5], contents[PAGE_SIZE as usize + 9]) = (1, 1);
        witnesses.note(
            &batch(&[(0, 1, ExtentKind::Data), (HUGE_PAGE_SIZE, 1, ExtentKind::Data)], contents),
            &huge,
        );
        let found = |witnesses: &Witnesses| Vec::from_iter(witnesses.addresses.clone());
        assert_eq!(found(&witnesses), [(0, 5), (HUGE_PAGE_SIZE, HUGE_PAGE_SIZE + 9)]);
        witnesses.note(&batch(&[(HUGE_PAGE_SIZE, 512, ExtentKind::Zero)], Vec::new()), &huge);
        assert_eq!(found(&witnesses), [(0, 5)]);
        witnesses.retain(&RangeSet::new());
        assert_eq!(found(&witnesses), []);
    }
}
