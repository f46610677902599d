//! Pages that wait at the destination (strategy `one-shot`): kept in a memfd, put in place after the final dump.
//!
//! Invariants: of every page the newest word wins; memory that a layout drops is dropped here too, by the same
//! [`plan`] that the source reckons with; memory freed by newer contents is used again, so that no more is taken than
//! the container has pages. Everything from the peer is checked before it is stored.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use nix::fcntl::{FallocateFlags, fallocate};

use super::error::errno;
use super::fill_error::{FillError, check_batch};
use super::layout_diff::{LayoutOp, check_vmas, plan};
use super::ranges::RangeSet;
use crate::model::layout::ProcessLayout;
use crate::model::{Batch, Extent, ExtentKind, Layout, PAGE_SIZE, Pid, Target, Vma, Vpid};
use crate::sys::memfd;

/// Payload of a batch that [`Staging::apply`] yields, at most.
const BATCH_BYTES: u64 = 1 << 20;

/// Failure to keep pages.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// More pages than the destination is willing to hold.
    #[error("cannot stage more than {limit_bytes} bytes")]
    Full {
        /// The limit.
        limit_bytes: u64,
    },
    /// The memfd could not be made, written, mapped or cut.
    #[error("cannot {verb} the staged pages")]
    Memory {
        /// "create", "write" ...
        verb: &'static str,
        /// Why.
        source: nix::Error,
    },
    /// The peer sent something that no source sends.
    #[error("cannot stage pages")]
    Malformed(#[from] FillError),
}

/// Staged pages of a container.
#[derive(Debug)]
pub struct Staging {
    file: File,
    /// Bytes of the memfd that were ever used.
    end: u64,
    /// Parts of it that nobody uses.
    free: RangeSet,
    /// By start; not overlapping.
    targets: BTreeMap<Target, BTreeMap<u64, Piece>>,
    processes: HashMap<Vpid, Known>,
    staged: u64,
    peak: u64,
    limit: u64,
}

/// A run of pages and what became of it.
#[derive(Debug, Clone, Copy)]
struct Piece {
    end: u64,
    what: What,
}

#[derive(Debug, Clone, Copy)]
enum What {
    /// Contents, from this offset of the memfd on.
    Data(u64),
    /// No contents.
    Plain(ExtentKind),
}

/// A process as the last layout had it.
#[derive(Debug)]
struct Known {
    start_time: u64,
    generation: u32,
    vmas: Vec<Vma>,
}

impl Piece {
    /// The part of a piece that starts at `start` between `from` and `to`.
    fn part(self, start: u64, from: u64, to: u64) -> Self {
        let what = match self.what {
            What::Data(slot) => What::Data(slot + (from - start)),
            plain @ What::Plain(_) => plain,
        };
        Self { end: to, what }
    }
}

impl Staging {
    /// An empty store that takes at most `limit_bytes` of memory.
    pub fn new(limit_bytes: u64) -> Result<Self, StagingError> {
        let file = memfd::create("pclive-staging").map_err(|source| failed("create", source))?;
        Ok(Self {
            file,
            end: 0,
            free: RangeSet::new(),
            targets: BTreeMap::new(),
            processes: HashMap::new(),
            staged: 0,
            peak: 0,
            limit: limit_bytes,
        })
    }

    /// Bytes of page contents that wait.
    pub fn staged_bytes(&self) -> u64 {
        self.staged
    }

    /// The most memory that was taken so far, in bytes.
    pub fn peak_bytes(&self) -> u64 {
        self.peak
    }

    /// Takes over a layout: drops what waits for memory that is no more. Call it in the order in which layouts and
    /// batches came.
    pub fn follow(&mut self, layout: &Layout) -> Result<(), StagingError> {
        let wanted = |target: &Target| match target {
            Target::Process(vpid) => layout.processes.iter().any(|process| process.vpid == *vpid),
            Target::Object(id) => layout.objects.iter().any(|object| object.id == *id),
        };
        let gone: Vec<Target> = self.targets.keys().filter(|target| !wanted(target)).copied().collect();
        gone.into_iter().for_each(|target| self.cut(target, 0, u64::MAX));
        self.processes.retain(|vpid, _| wanted(&Target::Process(*vpid)));
        layout.processes.iter().try_for_each(|process| self.follow_process(process))
    }

    fn follow_process(&mut self, process: &ProcessLayout) -> Result<(), StagingError> {
        let (vpid, vmas) = (process.vpid, &process.vmas);
        check_vmas(vmas).map_err(|source| FillError::Layout { pid: Pid(vpid.0), source })?;
        let new =
            Known { start_time: process.start_time, generation: process.generation, vmas: vmas.clone() };
        let old = self.processes.insert(vpid, new);
        let same = |old: &Known| (old.start_time, old.generation) == (process.start_time, process.generation);
        match old.filter(same) {
            None => self.cut(Target::Process(vpid), 0, u64::MAX),
            Some(old) => {
                for step in plan(&old.vmas, vmas) {
                    if let LayoutOp::Unmap { start, end } = step {
                        self.cut(Target::Process(vpid), start, end);
                    }
                }
            }
        }
        Ok(())
    }

    /// Keeps a batch. On [`StagingError::Full`] a part of it may be kept.
    pub fn stage(&mut self, batch: &Batch) -> Result<(), StagingError> {
        check_batch(batch, u64::MAX)?;
        let mut payload = batch.payload.as_ref();
        for extent in &batch.extents {
            self.cut(batch.target, extent.start, extent.end());
            match extent.kind {
                ExtentKind::Data => {
                    let len = usize::try_from(extent.len_bytes()).unwrap_or(usize::MAX).min(payload.len());
                    let (bytes, rest) = payload.split_at(len);
                    self.keep(batch.target, extent.start, bytes)?;
                    payload = rest;
                }
                kind @ (ExtentKind::Zero | ExtentKind::Hole | ExtentKind::Guard) => {
                    let piece = Piece { end: extent.end(), what: What::Plain(kind) };
                    self.targets.entry(batch.target).or_default().insert(extent.start, piece);
                }
            }
        }
        Ok(())
    }

    /// Stores contents, in free parts of the memfd first.
    fn keep(&mut self, target: Target, start: u64, bytes: &[u8]) -> Result<(), StagingError> {
        let (mut at, mut bytes) = (start, bytes);
        while !bytes.is_empty() {
            let (slot, len) = self.allocate(bytes.len() as u64)?;
            let (now, rest) = bytes.split_at(usize::try_from(len).unwrap_or(bytes.len()).min(bytes.len()));
            self.file.write_all_at(now, slot).map_err(|error| failed("write", errno(&error)))?;
            let piece = Piece { end: at + len, what: What::Data(slot) };
            self.targets.entry(target).or_default().insert(at, piece);
            self.staged += len;
            at += len;
            bytes = rest;
        }
        Ok(())
    }

    /// Room for up to `len` bytes: offset and length.
    fn allocate(&mut self, len: u64) -> Result<(u64, u64), StagingError> {
        let free = self.free.iter().next();
        if let Some((start, end)) = free {
            let end = end.min(start + len);
            self.free.remove(start, end);
            return Ok((start, end - start));
        }
        if self.limit.saturating_sub(self.end) < len {
            return Err(StagingError::Full { limit_bytes: self.limit });
        }
        self.end += len;
        self.peak = self.peak.max(self.end);
        Ok((self.end - len, len))
    }

    /// Forgets what is known of a range.
    fn cut(&mut self, target: Target, start: u64, end: u64) {
        let Some(pieces) = self.targets.get_mut(&target) else { return };
        let before = pieces.range(..start).next_back().filter(|(_, piece)| piece.end > start);
        let first = before.map_or(start, |(at, _)| *at);
        let hit: Vec<(u64, Piece)> = pieces.range(first..end).map(|(at, piece)| (*at, *piece)).collect();
        for (at, piece) in hit {
            pieces.remove(&at);
            let (from, to) = (at.max(start), piece.end.min(end));
            if at < from {
                pieces.insert(at, piece.part(at, at, from));
            }
            if to < piece.end {
                pieces.insert(to, piece.part(at, to, piece.end));
            }
            if let What::Data(slot) = piece.part(at, from, to).what {
                self.free.insert(slot, slot + (to - from));
                self.staged -= to - from;
            }
        }
        if pieces.is_empty() {
            self.targets.remove(&target);
        }
    }

    /// Yields everything, ascending within each target, and lets go of the memory as it goes. A batch must have been
    /// used up when `put` returns. After an error what was not yielded is still there.
    pub fn apply<E: From<StagingError>>(
        &mut self,
        put: &mut dyn FnMut(&Batch) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some((target, pieces)) = self.targets.first_key_value() {
            let (target, run) = (*target, Run::first(pieces));
            let payload = self.contents(&run)?;
            put(&Batch { target, extents: run.extents, payload })?;
            self.release(target, run.start, run.end, run.slots)?;
        }
        self.free.clear();
        self.end = 0;
        Ok(())
    }

    fn contents(&self, run: &Run) -> Result<Bytes, StagingError> {
        let (start, end) = run.slots;
        if start == end {
            return Ok(Bytes::new());
        }
        let len = usize::try_from(end - start).unwrap_or(usize::MAX);
        let map = memfd::map(&self.file, start, len).map_err(|error| failed("map", errno(&error)))?;
        Ok(Bytes::from_owner(map))
    }

    fn release(
        &mut self,
        target: Target,
        start: u64,
        end: u64,
        slots: (u64, u64),
    ) -> Result<(), StagingError> {
        self.cut(target, start, end);
        if slots.0 < slots.1 {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(&self.file, flags, slots.0.cast_signed(), (slots.1 - slots.0).cast_signed())
                .map_err(|source| failed("free", source))?;
        }
        Ok(())
    }
}

/// Pieces that make one batch: their contents follow each other in the memfd.
struct Run {
    start: u64,
    end: u64,
    slots: (u64, u64),
    extents: Vec<Extent>,
}

impl Run {
    fn first(pieces: &BTreeMap<u64, Piece>) -> Self {
        let start = pieces.keys().next().copied().unwrap_or(0);
        let mut run = Self { start, end: start, slots: (0, 0), extents: Vec::new() };
        for (at, piece) in pieces {
            if run.extents.len() == super::payload::MAX_EXTENTS || !run.take(*at, *piece) {
                break;
            }
        }
        run
    }

    /// Adds a piece, or the part of it that fits; false when the run is at its end.
    fn take(&mut self, at: u64, piece: Piece) -> bool {
        let room = BATCH_BYTES - (self.slots.1 - self.slots.0);
        let (kind, end) = match piece.what {
            What::Plain(kind) => (kind, piece.end),
            What::Data(slot) => {
                if self.slots == (0, 0) {
                    self.slots = (slot, slot);
                }
                if slot != self.slots.1 || room == 0 {
                    return false;
                }
                let end = piece.end.min(at + room);
                self.slots.1 += end - at;
                (ExtentKind::Data, end)
            }
        };
        self.extents.push(Extent { start: at, pages: (end - at) / PAGE_SIZE, kind });
        self.end = end;
        end == piece.end
    }
}

fn failed(verb: &'static str, source: nix::Error) -> StagingError {
    StagingError::Memory { verb, source }
}

#[cfg(test)]
#[path = "staging_tests.rs"]
mod tests;
