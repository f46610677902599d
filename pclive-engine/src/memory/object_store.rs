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
use super::huge;
use super::ranges::RangeSet;
use crate::model::layout::{ObjectKind, ObjectLayout};
use crate::model::{Batch, Extent, ExtentKind, HUGE_PAGE_SIZE, PAGE_SIZE, Pid, Target};
use crate::sys::process_vm::{self, RemoteRange};
use crate::sys::window;

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
    /// It is in huge pages, which have no write(2).
    huge: bool,
    /// Size in bytes, exact for a file.
    size: u64,
    filled: RangeSet,
    /// Who shows it, ascending by offset; none lies within another.
    views: Vec<View>,
}

/// A part of an object that a restorer shows in memory which it may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// The restorer.
    pub pid: Pid,
    /// Where it shows it.
    pub address: u64,
    /// Offset in the object, bytes.
    pub offset: u64,
    /// Offset of its end, bytes.
    pub end: u64,
}

impl ObjectStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an object, or takes it anew: `file` is open for writing, has the size that the layout tells, and is all zeros
    /// if it is memory.
    ///
    /// Errors: [`FillError::HugePages`] if its pages are not those that the layout tells.
    pub fn insert(&mut self, object: &ObjectLayout, file: File) -> Result<(), FillError> {
        let (here, wanted) = (huge::page_size(&file), object.huge.then_some(HUGE_PAGE_SIZE));
        if here != wanted {
            return Err(FillError::HugePages { id: object.id, here, wanted });
        }
        let (kind, size, huge) = (object.kind.clone(), object.size, object.huge);
        let stored = Stored { file, kind, huge, size, filled: RangeSet::new(), views: Vec::new() };
        self.objects.insert(object.id, stored);
        Ok(())
    }

    /// Who shows which object from now on: pages are written through such mappings. They are charged to the container
    /// then, and in the page tables of a process, as at the source; what the agent writes itself is charged to the agent.
    pub fn show(&mut self, views: impl Iterator<Item = (u64, View)>) {
        self.objects.values_mut().for_each(|stored| stored.views.clear());
        for (id, view) in views {
            if let Some(stored) = self.objects.get_mut(&id) {
                stored.views.push(view);
            }
        }
        for stored in self.objects.values_mut() {
            stored.views.sort_unstable_by_key(|view| (view.offset, std::cmp::Reverse(view.end)));
            let mut shown = 0;
            stored.views.retain(|view| {
                let more = view.end > shown;
                shown = shown.max(view.end);
                more
            });
        }
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

    /// Cuts files in huge pages to their sizes again: to map more than that makes them longer (fs/hugetlbfs/inode.c).
    pub fn trim(&self) -> Result<(), FillError> {
        for (id, stored) in self.objects.iter().filter(|(_, stored)| stored.huge) {
            let failed = |error: std::io::Error| FillError::Object {
                verb: "cut",
                id: *id,
                start: stored.size,
                source: errno(&error),
            };
            if stored.file.metadata().map_err(failed)?.len() > stored.size {
                stored.file.set_len(stored.size).map_err(failed)?;
            }
        }
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
                    let (start, end) = stored.taken(extent);
                    stored.filled.insert(start, end);
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

impl View {
    /// Writes what lies within the view through it; how much that was. What cannot be written this way is left to the
    /// object's own descriptor, which tells why.
    fn write(&self, offset: u64, bytes: &[u8]) -> usize {
        let range = RemoteRange { start: self.address + (offset - self.offset), len: bytes.len() as u64 };
        process_vm::write(self.pid, bytes, &[range]).unwrap_or(0)
    }
}

impl Stored {
    /// Writes what lies below the end of the object.
    fn write(&self, id: u64, start: u64, bytes: &[u8]) -> Result<(), FillError> {
        let len = usize::try_from(self.size.saturating_sub(start)).unwrap_or(usize::MAX).min(bytes.len());
        let (mut at, mut rest) = (start, bytes.get(..len).unwrap_or_default());
        while !rest.is_empty() {
            let (view, until) = self.view(at);
            let len = usize::try_from(until - at).unwrap_or(usize::MAX).min(rest.len());
            let (part, later) = rest.split_at(len);
            let written = view.map_or(0, |view| view.write(at, part));
            let (at_once, left) = (written as u64, part.get(written..).unwrap_or_default());
            let failed = |source| FillError::Object { verb: "write", id, start: at, source };
            match self.huge {
                _ if left.is_empty() => {}
                true => window::write_at(&self.file, at + at_once, left).map_err(failed)?,
                false => {
                    self.file.write_all_at(left, at + at_once).map_err(|error| failed(errno(&error)))?;
                }
            }
            (at, rest) = (at + len as u64, later);
        }
        Ok(())
    }

    /// Who shows the byte at `offset`, and to where that is so.
    fn view(&self, offset: u64) -> (Option<&View>, u64) {
        let next = self.views.partition_point(|view| view.end <= offset);
        match self.views.get(next) {
            Some(view) if view.offset <= offset => (Some(view), view.end),
            Some(view) => (None, view.offset),
            None => (None, u64::MAX),
        }
    }

    /// What the kernel takes memory for when an extent is written.
    fn taken(&self, extent: &Extent) -> (u64, u64) {
        let unit = if self.huge { HUGE_PAGE_SIZE } else { PAGE_SIZE };
        (extent.start / unit * unit, extent.end().next_multiple_of(unit))
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
