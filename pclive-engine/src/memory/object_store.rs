//! The destination side of shared memory objects: filled through a descriptor, seen by every process that maps them.
//!
//! Invariants as in [`super::fill`]. A file on a disk is never made shorter here, nor longer than it was at the
//! source; files in memory have the size that the last layout told.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FallocateFlags, fallocate};

use super::error::errno;
use super::fill::MOST_ZEROS;
use super::fill_error::{FillError, check_batch};
use super::ranges::RangeSet;
use crate::model::layout::ObjectKind;
use crate::model::{Batch, Extent, ExtentKind, PAGE_SIZE, Target};

static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// The shared memory of a copy that is being built.
#[derive(Debug, Default)]
pub struct ObjectStore {
    objects: BTreeMap<u64, Stored>,
}

#[derive(Debug)]
struct Stored {
    file: File,
    kind: ObjectKind,
    /// Size in bytes, exact for a file.
    size: u64,
    filled: RangeSet,
}

impl ObjectStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an object, or takes it anew: `file` is open for writing, `size` is the exact size of a file in bytes and
    /// the size of anonymous memory. Anonymous memory is fresh: all zeros.
    pub fn insert(&mut self, id: u64, file: File, kind: ObjectKind, size: u64) {
        self.objects.insert(id, Stored { file, kind, size, filled: RangeSet::new() });
    }

    /// True if the object was added.
    pub fn contains(&self, id: u64) -> bool {
        self.objects.contains_key(&id)
    }

    /// The descriptor of an object.
    pub fn file(&self, id: u64) -> Option<&File> {
        self.objects.get(&id).map(|stored| &stored.file)
    }

    /// What an object is, and its size in bytes.
    pub fn about(&self, id: u64) -> Option<(&ObjectKind, u64)> {
        self.objects.get(&id).map(|stored| (&stored.kind, stored.size))
    }

    /// Drops the objects that no mapping needs any more, and returns what they were.
    pub fn retain(&mut self, mut needed: impl FnMut(u64) -> bool) -> Vec<ObjectKind> {
        let dropped = self.objects.extract_if(.., |id, _| !needed(*id));
        dropped.map(|(_, stored)| stored.kind).collect()
    }

    /// Gives an object in memory the size that it has at the source by now, in bytes. What it becomes longer by is
    /// zeros.
    pub fn resize(&mut self, id: u64, kind: &ObjectKind, size: u64) -> Result<(), FillError> {
        let Some(stored) = self.objects.get_mut(&id) else { return Ok(()) };
        stored.kind.clone_from(kind);
        if kind.is_stored() || stored.size == size {
            return Ok(());
        }
        let failed = |error: std::io::Error| FillError::Object {
            verb: "resize",
            id,
            start: size,
            source: errno(&error),
        };
        stored.file.set_len(size).map_err(failed)?;
        stored.filled.remove(size.next_multiple_of(PAGE_SIZE), u64::MAX);
        stored.size = size;
        Ok(())
    }

    /// Puts a batch for an object in place.
    pub fn fill(&mut self, batch: &Batch) -> Result<(), FillError> {
        let id = match batch.target {
            Target::Object(id) => id,
            Target::Process(_) => {
                let what = "private memory sent as shared";
                return Err(FillError::Malformed { target: batch.target, start: 0, what });
            }
        };
        let stored = self.objects.get_mut(&id).ok_or(FillError::UnknownObject { id })?;
        check_batch(batch, stored.size.next_multiple_of(PAGE_SIZE))?;
        let mut payload = batch.payload.as_ref();
        for extent in &batch.extents {
            match extent.kind {
                ExtentKind::Data => {
                    let len = usize::try_from(extent.len_bytes()).unwrap_or(usize::MAX).min(payload.len());
                    let (bytes, rest) = payload.split_at(len);
                    stored.write(id, extent.start, bytes)?;
                    stored.filled.insert(extent.start, extent.end());
                    payload = rest;
                }
                ExtentKind::Zero | ExtentKind::Hole => stored.clear(id, extent)?,
                ExtentKind::Guard => {
                    let what = "guard pages in shared memory";
                    return Err(FillError::Malformed { target: batch.target, start: extent.start, what });
                }
            }
        }
        Ok(())
    }
}

impl Stored {
    /// Writes what lies below the end of the object.
    fn write(&self, id: u64, start: u64, bytes: &[u8]) -> Result<(), FillError> {
        let len = usize::try_from(self.size.saturating_sub(start)).unwrap_or(usize::MAX).min(bytes.len());
        let failed =
            |error: std::io::Error| FillError::Object { verb: "write", id, start, source: errno(&error) };
        self.file.write_all_at(bytes.get(..len).unwrap_or_default(), start).map_err(failed)
    }

    /// Makes a range read as zeros.
    fn clear(&mut self, id: u64, extent: &Extent) -> Result<(), FillError> {
        if self.kind.is_stored() {
            if extent.len_bytes() > MOST_ZEROS {
                let what = "more zeros over a file than a source reads";
                return Err(FillError::Malformed { target: Target::Object(id), start: extent.start, what });
            }
            return self.write_zeros(id, extent.start, extent.end());
        }
        let known: Vec<_> = self.filled.within(extent.start, extent.end()).collect();
        known.iter().try_for_each(|(start, end)| self.punch(id, *start, *end))?;
        self.filled.remove(extent.start, extent.end());
        Ok(())
    }

    fn write_zeros(&self, id: u64, start: u64, end: u64) -> Result<(), FillError> {
        let mut at = start;
        while at < end {
            let len = (end - at).min(ZEROS.len() as u64);
            self.write(id, at, ZEROS.get(..usize::try_from(len).unwrap_or(0)).unwrap_or_default())?;
            at += len;
        }
        Ok(())
    }

    fn punch(&self, id: u64, start: u64, end: u64) -> Result<(), FillError> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.file, flags, start.cast_signed(), (end - start).cast_signed())
            .map_err(|source| FillError::Object { verb: "discard", id, start, source })
    }
}
