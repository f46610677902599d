//! The destination side of one process's private memory: pages into a restorer that lives but does not run.
//!
//! Invariants: everything from the peer is checked before it is used; a page is written only inside the private
//! mappings that [`Filler::set_layout`] was given; what was never filled is never discarded. Kernel:
//! process_vm_writev(2), and `/proc/PID/mem` where the mapping is not writable.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;

use super::error::errno;
use super::fill_error::{FillError, check_batch};
use super::layout_diff::{LayoutOp, USER_END, check_vmas, plan};
use super::ranges::RangeSet;
use crate::model::{Batch, Extent, ExtentKind, HUGE_PAGE_SIZE, Mapping, PAGE_SIZE, Pid, Vma};
use crate::proc::maps::parse_maps;
use crate::remote::Call;
use crate::sys::process_vm::{self, MAX_RANGES, RemoteRange};

/// Zeros to write.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// Most zeros that one batch may write where a file shows, bytes: they were contents that the source has read.
pub(super) const MOST_ZEROS: u64 = 1 << 30;
/// Most guard pages of a batch: each takes room in the page table.
const MOST_GUARDS: u64 = 1 << 22;

/// Fills one restorer.
#[derive(Debug)]
pub struct Filler {
    pid: Pid,
    mem: Option<File>,
    vmas: Vec<Vma>,
    /// Pages that were written; of huge pages the whole of them.
    filled: RangeSet,
    /// Guard pages.
    guarded: RangeSet,
}

/// What only the restorer itself can do to its memory: to be run there before the next batch is filled in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Discards {
    /// Ranges for `MADV_DONTNEED_LOCKED`.
    pub discard: Vec<(u64, u64)>,
    /// Ranges for `MADV_GUARD_REMOVE`.
    pub unguard: Vec<(u64, u64)>,
    /// Ranges for `MADV_GUARD_INSTALL`.
    pub guard: Vec<(u64, u64)>,
}

impl Discards {
    /// True if there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.discard.is_empty() && self.unguard.is_empty() && self.guard.is_empty()
    }

    /// The remote calls, in order; each must return 0. There may be more than one batch of calls holds.
    pub fn calls(&self) -> Vec<Call> {
        const MADV_DONTNEED_LOCKED: u64 = 24;
        const MADV_GUARD_INSTALL: u64 = 102;
        const MADV_GUARD_REMOVE: u64 = 103;
        let steps = [
            (&self.discard, MADV_DONTNEED_LOCKED),
            (&self.unguard, MADV_GUARD_REMOVE),
            (&self.guard, MADV_GUARD_INSTALL),
        ];
        let call =
            |(start, end): &(u64, u64), advice| Call::new(libc::SYS_madvise, &[*start, end - start, advice]);
        steps.into_iter().flat_map(|(ranges, advice)| ranges.iter().map(move |r| call(r, advice))).collect()
    }
}

impl Filler {
    /// A filler for a restorer without mappings.
    pub fn new(pid: Pid) -> Self {
        Self { pid, mem: None, vmas: Vec::new(), filled: RangeSet::new(), guarded: RangeSet::new() }
    }

    /// Takes over the mappings that the restorer has now. What [`plan`] unmapped between the last layout and this one
    /// counts as empty.
    pub fn set_layout(&mut self, vmas: &[Vma]) -> Result<(), FillError> {
        check_vmas(vmas).map_err(|source| FillError::Layout { pid: self.pid, source })?;
        for step in plan(&self.vmas, vmas) {
            if let LayoutOp::Unmap { start, end } = step {
                self.filled.remove(start, end);
                self.guarded.remove(start, end);
            }
        }
        self.vmas = vmas.to_vec();
        Ok(())
    }

    /// What has to be run before [`Self::fill`] of the same batch: contents come to guard pages that nobody said were
    /// lifted, because rounds were merged and of every page only the newest word is left.
    pub fn lift(&mut self, batch: &Batch) -> Result<Discards, FillError> {
        let mut discards = Discards::default();
        if self.guarded.is_empty() {
            return Ok(discards);
        }
        check_batch(batch, USER_END)?;
        for extent in &batch.extents {
            match extent.kind {
                ExtentKind::Data | ExtentKind::Zero => {
                    discards.unguard.extend(self.guarded.within(extent.start, extent.end()));
                    self.guarded.remove(extent.start, extent.end());
                }
                ExtentKind::Hole | ExtentKind::Guard => {}
            }
        }
        Ok(discards)
    }

    /// Puts a batch for this process in place. The result must be run in the restorer before the next call.
    pub fn fill(&mut self, batch: &Batch) -> Result<Discards, FillError> {
        check_batch(batch, USER_END)?;
        let mut discards = Discards::default();
        let mut data = Vec::with_capacity(batch.extents.len());
        let mut filled = RangeSet::new();
        let (mut zeros, mut guards) = (MOST_ZEROS, MOST_GUARDS * PAGE_SIZE);
        let spend = |left: &mut u64, start, bytes, what| {
            *left =
                left.checked_sub(bytes).ok_or(FillError::Malformed { target: batch.target, start, what })?;
            Ok(())
        };
        for extent in &batch.extents {
            for (start, end, backing) in self.parts(batch, extent)? {
                let bytes = end - start;
                match extent.kind {
                    ExtentKind::Data => {
                        data.push(RemoteRange { start, len: bytes });
                        let (start, end) = backing.taken(start, end);
                        filled.insert(start, end);
                    }
                    ExtentKind::Zero => {
                        if backing == Backing::File {
                            spend(&mut zeros, start, bytes, "more zeros over a file than a source reads")?;
                        }
                        self.zero(start, end, backing)?;
                    }
                    ExtentKind::Hole => {
                        let (whole, rest) = backing.discardable(start, end);
                        for (start, end) in rest {
                            self.zero(start, end, backing)?;
                        }
                        self.hole(whole.0, whole.1, &mut discards);
                    }
                    ExtentKind::Guard => {
                        spend(&mut guards, start, bytes, "more guard pages than one batch has")?;
                        self.guard(start, end, &mut discards);
                    }
                }
            }
        }
        self.write(&data, &batch.payload)?;
        filled.iter().for_each(|(start, end)| self.filled.insert(start, end));
        Ok(discards)
    }

    /// The parts of an extent by mapping; all of it must be private memory.
    fn parts(&self, batch: &Batch, extent: &Extent) -> Result<Vec<(u64, u64, Backing)>, FillError> {
        let (mut at, end) = (extent.start, extent.end());
        let first = self.vmas.partition_point(|vma| vma.end <= at);
        let mut parts = Vec::with_capacity(1);
        for vma in self.vmas.get(first..).unwrap_or_default() {
            let backing = match &vma.mapping {
                Mapping::PrivateAnonymous => Backing::Nothing,
                Mapping::PrivateHuge => Backing::NothingHuge,
                Mapping::PrivateFile(_) | Mapping::PrivateObject { .. } => Backing::File,
                Mapping::SharedFile { .. } | Mapping::SharedObject { .. } => break,
            };
            if at >= end || vma.start > at {
                break;
            }
            let to = vma.end.min(end);
            parts.push((at, to, backing));
            at = to;
        }
        if at < end {
            let what = "outside the private mappings of the process";
            return Err(FillError::Malformed { target: batch.target, start: at, what });
        }
        Ok(parts)
    }

    fn zero(&mut self, start: u64, end: u64, backing: Backing) -> Result<(), FillError> {
        match backing {
            Backing::File => {
                self.write_zeros(start, end)?;
                self.filled.insert(start, end);
                Ok(())
            }
            Backing::Nothing | Backing::NothingHuge => {
                let known: Vec<_> = self.filled.within(start, end).collect();
                known.into_iter().try_for_each(|(start, end)| self.write_zeros(start, end))
            }
        }
    }

    /// Memory that was given back at the source is given back here: zeros would be as good to read, and cost memory.
    fn hole(&mut self, start: u64, end: u64, discards: &mut Discards) {
        discards.unguard.extend(self.guarded.within(start, end));
        self.guarded.remove(start, end);
        discards.discard.extend(self.filled.within(start, end));
        self.filled.remove(start, end);
    }

    fn guard(&mut self, start: u64, end: u64, discards: &mut Discards) {
        discards.guard.push((start, end));
        self.guarded.insert(start, end);
        self.filled.remove(start, end);
    }

    fn write_zeros(&mut self, start: u64, end: u64) -> Result<(), FillError> {
        let mut at = start;
        while at < end {
            let len = (end - at).min(ZEROS.len() as u64);
            let bytes = ZEROS.get(..usize::try_from(len).unwrap_or(0)).unwrap_or_default();
            self.write(&[RemoteRange { start: at, len }], bytes)?;
            at += len;
        }
        Ok(())
    }

    /// Writes `bytes` into `ranges` one after the other, which are as long together.
    fn write(&mut self, ranges: &[RemoteRange], bytes: &[u8]) -> Result<(), FillError> {
        let mut rest = bytes;
        for ranges in ranges.chunks(MAX_RANGES) {
            let len: u64 = ranges.iter().map(|range| range.len).sum();
            let (now, later) = split(rest, len);
            self.write_some(ranges, now)?;
            rest = later;
        }
        Ok(())
    }

    fn write_some(&mut self, ranges: &[RemoteRange], bytes: &[u8]) -> Result<(), FillError> {
        let (mut ranges, mut bytes) = (ranges, bytes);
        let mut cut;
        loop {
            let Some(first) = ranges.first() else { return Ok(()) };
            let written = match process_vm::write(self.pid, bytes, ranges) {
                Ok(written) => written as u64,
                Err(Errno::EFAULT) => 0,
                Err(source) => return Err(FillError::Write { pid: self.pid, start: first.start, source }),
            };
            let (done, within) = progress(ranges, written);
            bytes = split(bytes, written).1;
            let Some(stopped) = ranges.get(done) else { return Ok(()) };
            // The range at which the kernel stopped goes the slow way, to its end.
            let rest = RemoteRange { start: stopped.start + within, len: stopped.len - within };
            let (now, later) = split(bytes, rest.len);
            self.write_forced(rest.start, now)?;
            bytes = later;
            cut = ranges.get(done + 1..).unwrap_or_default();
            ranges = cut;
        }
    }

    /// Through `/proc/PID/mem`, which disregards the mapping's protection. What lies behind the end of a mapped file is left
    /// out: no memory is there. It had something else mapped when its pages were read, or its file has been cut since, and
    /// the next layout says so.
    fn write_forced(&mut self, start: u64, bytes: &[u8]) -> Result<(), FillError> {
        let pid = self.pid;
        let failed = |error: std::io::Error| FillError::Write { pid, start, source: errno(&error) };
        let mem = match &self.mem {
            Some(mem) => mem,
            None => {
                let mem = OpenOptions::new().write(true).open(format!("/proc/{pid}/mem")).map_err(failed)?;
                self.mem.insert(mem)
            }
        };
        let (mut at, mut rest) = (start, bytes);
        while !rest.is_empty() {
            let passed = match mem.write_at(rest, at) {
                Ok(0) => return Err(failed(ErrorKind::WriteZero.into())),
                Ok(written) => written as u64,
                Err(error) if error.kind() == ErrorKind::Interrupted => 0,
                Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                    behind_file(pid, at).ok_or(error).map_err(failed)? - at
                }
                Err(error) => return Err(failed(error)),
            };
            at = at.saturating_add(passed);
            rest = split(rest, passed).1;
        }
        Ok(())
    }
}

/// If the file that is mapped at `at` does not reach to there, the end of that mapping.
fn behind_file(pid: Pid, at: u64) -> Option<u64> {
    let maps = crate::proc::read(format!("/proc/{pid}/maps")).ok()?;
    let maps = parse_maps(&maps).ok()?;
    let map = maps.iter().find(|map| map.inode != 0 && (map.start..map.end).contains(&at))?;
    let file = std::fs::metadata(format!("/proc/{pid}/map_files/{:x}-{:x}", map.start, map.end)).ok()?;
    let reach = file.len().next_multiple_of(PAGE_SIZE).saturating_sub(map.offset);
    (at - map.start >= reach).then_some(map.end)
}

/// What shows where a private mapping has no page of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backing {
    Nothing,
    /// Nothing, in huge pages.
    NothingHuge,
    File,
}

impl Backing {
    /// What the kernel takes memory for when a range is written.
    fn taken(self, start: u64, end: u64) -> (u64, u64) {
        match self {
            Self::Nothing | Self::File => (start, end),
            Self::NothingHuge => {
                (start / HUGE_PAGE_SIZE * HUGE_PAGE_SIZE, end.next_multiple_of(HUGE_PAGE_SIZE))
            }
        }
    }

    /// The pages of a range that can be given back, and what is left of it: parts of huge pages, of which a newer round
    /// has said the rest.
    fn discardable(self, start: u64, end: u64) -> ((u64, u64), [(u64, u64); 2]) {
        match self {
            Self::Nothing | Self::File => ((start, end), [(end, end); 2]),
            Self::NothingHuge => {
                let first = start.next_multiple_of(HUGE_PAGE_SIZE).min(end);
                let past = (end / HUGE_PAGE_SIZE * HUGE_PAGE_SIZE).max(first);
                ((first, past), [(start, first), (past, end)])
            }
        }
    }
}

/// How many ranges `bytes` fill, and how much of the next one.
fn progress(ranges: &[RemoteRange], bytes: u64) -> (usize, u64) {
    let mut left = bytes;
    for (index, range) in ranges.iter().enumerate() {
        if left < range.len {
            return (index, left);
        }
        left -= range.len;
    }
    (ranges.len(), 0)
}

fn split(bytes: &[u8], at: u64) -> (&[u8], &[u8]) {
    bytes.split_at(usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len()))
}
