//! Pages that wait at the destination, in a memfd, until they are put into restorers.
//!
//! Rounds are merged: of every page the newest word wins, so that a page which is sent twice is kept once. What
//! arrives is apart from the rounds that are whole ([`Staging::seal`]); only these are yielded, a batch at a time, so
//! that a round is put in place while the next one is on its way. Memory is given back as it is yielded.
//!
//! Invariants: memory that a layout drops is dropped here too, by the same [`plan`] that the source reckons with and
//! that restorers follow - so what waits always fits restorers that have the newest layout, however many rounds it
//! waited; memory freed by newer contents is used again, so that no more is taken than the container has pages.
//! Everything from the peer is checked before it is stored.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use nix::fcntl::{FallocateFlags, fallocate};

use super::error::errno;
use super::fill_error::{FillError, check_batch};
use super::layout_diff::{LayoutOp, check_vmas, plan};
use super::payload::MAX_EXTENTS;
use super::pieces::{Piece, Pieces, Run, What};
use super::ranges::RangeSet;
use crate::model::layout::ProcessLayout;
use crate::model::{Batch, ExtentKind, Layout, PAGE_SIZE, Pid, Target, Vma, Vpid};
use crate::sys::memfd;

/// Payload of a batch that is yielded, at most.
const BATCH_BYTES: u64 = 1 << 20;

/// Runs that may wait whatever the limit of the store,
const MOST_RUNS: usize = 1 << 20;
/// and bytes of that limit for each beyond: the account of a run takes a tenth of them.
const RUN_SHARE: u64 = 1024;

/// Failure to keep pages.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// More pages than the destination is willing to hold.
    #[error("cannot stage more than {limit_bytes} bytes")]
    Full {
        /// The limit.
        limit_bytes: u64,
    },
    /// More runs than the destination is willing to keep account of.
    #[error("cannot stage more than {limit} runs of pages")]
    Scattered {
        /// The limit.
        limit: usize,
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
    /// Of the round that is on its way. No page is both here and in `whole`.
    arriving: Pieces,
    /// Of rounds that are here whole.
    whole: Pieces,
    processes: HashMap<Vpid, Known>,
    staged: u64,
    peak: u64,
    limit: u64,
}

/// A process as the last layout had it.
#[derive(Debug)]
struct Known {
    start_time: u64,
    generation: u32,
    vmas: Vec<Vma>,
}

impl Staging {
    /// An empty store that takes at most `limit_bytes` of memory.
    pub fn new(limit_bytes: u64) -> Result<Self, StagingError> {
        let file = memfd::create("pclive-staging").map_err(|source| failed("create", source))?;
        Ok(Self {
            file,
            end: 0,
            free: RangeSet::new(),
            arriving: Pieces::default(),
            whole: Pieces::default(),
            processes: HashMap::new(),
            staged: 0,
            peak: 0,
            limit: limit_bytes,
        })
    }

    /// Bytes of page contents that wait, whole rounds or not.
    pub fn staged_bytes(&self) -> u64 {
        self.staged
    }

    /// The most memory that was taken so far, in bytes.
    pub fn peak_bytes(&self) -> u64 {
        self.peak
    }

    /// The most that may wait, in bytes.
    pub fn limit_bytes(&self) -> u64 {
        self.limit
    }

    /// True while [`Self::apply_next`] has something to yield.
    pub fn has_whole(&self) -> bool {
        !self.whole.is_empty()
    }

    /// Takes over a layout: drops what waits for memory that is no more. Call it in the order in which layouts and
    /// batches came.
    pub fn follow(&mut self, layout: &Layout) -> Result<(), StagingError> {
        let wanted = |target: &Target| match target {
            Target::Process(vpid) => layout.processes.iter().any(|process| process.vpid == *vpid),
            Target::Object(id) => layout.objects.iter().any(|object| object.id == *id),
        };
        let known = self.arriving.targets().chain(self.whole.targets());
        let gone: BTreeSet<Target> = known.filter(|target| !wanted(target)).collect();
        gone.into_iter().for_each(|target| self.cut(target, 0, u64::MAX));
        for object in layout.objects.iter().filter(|object| !object.kind.is_stored()) {
            self.cut(Target::Object(object.id), object.size.next_multiple_of(PAGE_SIZE), u64::MAX);
        }
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

    /// Keeps a batch of the round that is on its way. On [`StagingError::Full`] a part of it may be kept.
    pub fn stage(&mut self, batch: &Batch) -> Result<(), StagingError> {
        check_batch(batch, u64::MAX)?;
        let runs = self.arriving.len() + self.whole.len() + batch.extents.len();
        if runs > self.most_runs() {
            return Err(StagingError::Scattered { limit: self.most_runs() });
        }
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
                    self.arriving.put(batch.target, extent.start, piece);
                }
            }
        }
        Ok(())
    }

    /// Runs without contents take no room in the memfd, but some in the account.
    fn most_runs(&self) -> usize {
        usize::try_from(self.limit / RUN_SHARE).unwrap_or(usize::MAX).max(MOST_RUNS)
    }

    /// Forgets the pages of a batch that goes into the restorers by another way: what waits is older.
    pub fn supersede(&mut self, batch: &Batch) -> Result<(), StagingError> {
        check_batch(batch, u64::MAX)?;
        batch.extents.iter().for_each(|extent| self.cut(batch.target, extent.start, extent.end()));
        Ok(())
    }

    /// What was kept so far is whole, and may be yielded.
    pub fn seal(&mut self) {
        self.whole.absorb(&mut self.arriving);
    }

    /// Stores contents, in free parts of the memfd first.
    fn keep(&mut self, target: Target, start: u64, bytes: &[u8]) -> Result<(), StagingError> {
        let (mut at, mut bytes) = (start, bytes);
        while !bytes.is_empty() {
            let (slot, len) = self.allocate(bytes.len() as u64)?;
            let (now, rest) = bytes.split_at(usize::try_from(len).unwrap_or(bytes.len()).min(bytes.len()));
            self.file.write_all_at(now, slot).map_err(|error| failed("write", errno(&error)))?;
            let piece = Piece { end: at + len, what: What::Data(slot) };
            self.arriving.put(target, at, piece);
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
        let Self { arriving, whole, free, staged, .. } = self;
        let mut freed = |from: u64, to: u64| {
            free.insert(from, to);
            *staged -= to - from;
        };
        arriving.cut(target, start, end, &mut freed);
        whole.cut(target, start, end, &mut freed);
    }

    /// Yields one batch of the whole rounds and lets go of its memory; false when nothing of them is left. A batch must
    /// have been used up when `put` returns. After an error it is still here.
    pub fn apply_next<E: From<StagingError>>(
        &mut self,
        put: &mut dyn FnMut(&Batch) -> Result<(), E>,
    ) -> Result<bool, E> {
        if let Some(run) = self.whole.first_run(MAX_EXTENTS, BATCH_BYTES) {
            let payload = self.contents(&run)?;
            let batch = Batch { target: run.target, extents: run.extents, payload };
            put(&batch)?;
            // Its payload is a mapping of what is about to be freed.
            drop(batch);
            self.release(run.target, (run.start, run.end), run.slots)?;
        }
        Ok(self.has_whole())
    }

    /// Yields everything, ascending within each target; as [`Self::apply_next`].
    pub fn apply<E: From<StagingError>>(
        &mut self,
        put: &mut dyn FnMut(&Batch) -> Result<(), E>,
    ) -> Result<(), E> {
        self.seal();
        while self.apply_next(put)? {}
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
        (start, end): (u64, u64),
        slots: (u64, u64),
    ) -> Result<(), StagingError> {
        // What arrives may lie between the runs of a batch: it stays.
        let Self { whole, free, staged, .. } = self;
        whole.cut(target, start, end, &mut |from, to| {
            free.insert(from, to);
            *staged -= to - from;
        });
        if self.whole.is_empty() && self.arriving.is_empty() {
            self.free.clear();
            self.end = 0;
            return self.file.set_len(0).map_err(|error| failed("free", errno(&error)));
        }
        if slots.0 < slots.1 {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(&self.file, flags, slots.0.cast_signed(), (slots.1 - slots.0).cast_signed())
                .map_err(|source| failed("free", source))?;
        }
        Ok(())
    }
}

fn failed(verb: &'static str, source: nix::Error) -> StagingError {
    StagingError::Memory { verb, source }
}

#[cfg(test)]
#[path = "staging_tests.rs"]
mod tests;
