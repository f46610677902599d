//! One shared memory object at the source: what is known of it, and how its pages are read and sent.
//!
//! Everything is asked of the object's own descriptor. Kernel: SEEK_DATA of tmpfs (Linux 3.8), `F_GET_SEALS` (3.17).
//! Failure: what was not sent stays dirty.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use nix::sys::stat::{major, minor};

use super::digest::Digests;
use super::error::{MemoryError, errno};
use super::payload::{MAX_EXTENTS, Payload};
use super::ranges::RangeSet;
use super::space::{BatchSink, SpaceStats, count};
use crate::model::layout::ObjectKind;
use crate::model::tree::Ownership;
use crate::model::{Batch, Extent, ExtentKind, PAGE_SIZE, Pid, Target};
use crate::sys::{fcntl, process_vm};

/// An object that is open.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) file: File,
    pub(super) kind: ObjectKind,
    /// Seen in this round.
    pub(super) seen: bool,
    /// It is there also when nobody maps it: a directory, a descriptor or the IPC namespace has it.
    pub(super) held: bool,
    /// The size that the last layout has told, bytes; `None` before there was one.
    pub(super) told: Option<u64>,
    /// Pages that hold data, as of this round; `None` until asked for.
    pub(super) data: Option<RangeSet>,
    /// Offsets that mappings show, this round.
    pub(super) mapped: RangeSet,
    /// Written, as far as address spaces can tell, and not yet sent.
    pub(super) dirty: RangeSet,
    /// Somebody may have written unseen.
    pub(super) suspect: bool,
    /// Size and modification time when the contents were last taken to be known.
    stamp: Option<(u64, i64, i64)>,
    sent: Digests,
}

impl Object {
    pub(super) fn new(file: File, kind: ObjectKind) -> Self {
        Self {
            file,
            kind,
            seen: true,
            held: false,
            told: None,
            data: None,
            mapped: RangeSet::new(),
            dirty: RangeSet::new(),
            suspect: false,
            stamp: None,
            sent: Digests::default(),
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    /// True for a file that only descriptors and mappings lead to.
    pub(super) fn is_nameless(&self) -> bool {
        match &self.kind {
            ObjectKind::Unlinked { .. } | ObjectKind::Memfd { .. } => true,
            ObjectKind::Anonymous | ObjectKind::File(_) | ObjectKind::TreeFile | ObjectKind::Segment(_) => {
                false
            }
        }
    }

    /// Takes over what fchmod(2), fchown(2) and seals have changed.
    pub(super) fn refresh(&mut self) {
        let now = self.file.metadata().ok().map(|metadata| ownership(&metadata));
        match &mut self.kind {
            ObjectKind::Memfd { owner, seals, .. } => {
                *owner = now.unwrap_or(*owner);
                *seals = fcntl::seals(&self.file).unwrap_or(*seals);
            }
            ObjectKind::Unlinked { owner, .. } => *owner = now.unwrap_or(*owner),
            ObjectKind::Anonymous | ObjectKind::File(_) | ObjectKind::TreeFile | ObjectKind::Segment(_) => {}
        }
    }

    /// A layout tells this size, bytes. The destination has zeros behind the end of what it was told before, also within
    /// a page, whatever was read there.
    pub(super) fn tell(&mut self, size: u64) {
        if let Some(before) = self.told.filter(|before| *before != size) {
            let end = u64::MAX / PAGE_SIZE * PAGE_SIZE;
            self.sent.forget(before.min(size) / PAGE_SIZE * PAGE_SIZE, end);
        }
        self.told = Some(size);
    }

    /// The file has no name, as far as is known.
    pub(super) fn unlink(&mut self, memory: &HashMap<(u32, u32), Vec<u8>>) {
        let Ok(metadata) = self.file.metadata() else { return };
        let number = |part: u64| u32::try_from(part).unwrap_or(u32::MAX);
        let device = (number(major(metadata.dev())), number(minor(metadata.dev())));
        if let Some(point) = memory.get(&device) {
            self.kind = ObjectKind::Unlinked { point: point.clone(), owner: ownership(&metadata) };
        }
    }

    pub(super) fn data(&mut self, pid: Pid) -> Result<&RangeSet, MemoryError> {
        let data = match self.data.take() {
            Some(data) => data,
            None => data_ranges(&self.file, self.size()).map_err(|error| self.unreadable(pid, &error))?,
        };
        Ok(self.data.insert(data))
    }

    fn unreadable(&self, pid: Pid, error: &std::io::Error) -> MemoryError {
        MemoryError::Proc { pid, name: format!("shared memory ({:?})", self.kind), source: errno(error) }
    }

    /// True if the contents may have been changed other than through a mapping: by write(2) or, in anonymous memory
    /// too, by a hole (whose pages a later read fills with zeros, unseen by any tracker). Asked before they are read.
    fn touched(&mut self) -> bool {
        // Not the time of modification, which programs can put back.
        let stamp = self.file.metadata().ok().map(|m| (m.len(), m.ctime(), m.ctime_nsec()));
        let touched = stamp.is_none() || stamp != self.stamp;
        // A change in the same tick of the clock as the last one would leave the same time behind.
        self.stamp = stamp.filter(|(_, seconds, nanoseconds)| is_past(*seconds, *nanoseconds));
        touched
    }

    pub(super) fn round(
        &mut self,
        id: u64,
        batch_bytes: usize,
        stats: &mut SpaceStats,
        out: &mut BatchSink<'_>,
    ) -> Result<(), MemoryError> {
        let begun = Instant::now();
        let nobody = Pid(std::process::id().cast_signed());
        self.suspect |= self.touched();
        let mut data = self.data(nobody)?.clone();
        if self.kind.is_stored() {
            data = data.intersection(&self.mapped);
        } else if let Some(told) = self.told {
            // The destination has cut its own, and what has grown since the layout is not announced yet.
            let end = told.next_multiple_of(PAGE_SIZE);
            data.remove(end, u64::MAX);
            self.sent.forget(end, u64::MAX / PAGE_SIZE * PAGE_SIZE);
        }
        let sent = self.sent.pages();
        self.dirty = self.dirty.union(&data.difference(&sent)).intersection(&data);
        if self.suspect {
            let changed = self.changed(&data.difference(&self.dirty), batch_bytes)?;
            self.dirty = self.dirty.union(&changed);
            self.suspect = false;
        }
        stats.scan += begun.elapsed();
        let begun = Instant::now();
        self.tell_holes(id, &sent.difference(&data), stats, out)?;
        self.send(id, batch_bytes, stats, out)?;
        stats.read += begun.elapsed();
        Ok(())
    }

    /// Which of `pages` differ from what was sent.
    fn changed(&self, pages: &RangeSet, batch_bytes: usize) -> Result<RangeSet, MemoryError> {
        let mut changed = RangeSet::new();
        let mut buffer = bytes::BytesMut::with_capacity(batch_bytes.max(PAGE_SIZE as usize));
        for (start, end) in pages.iter() {
            let mut at = start;
            while at < end {
                buffer.clear();
                let next = self.read(at, end, &mut buffer)?;
                self.sent.compare(at, &buffer, &mut changed);
                at = next;
            }
        }
        Ok(changed)
    }

    /// Reads whole pages from `start` towards `end`, as many as fit; what is behind the end of a file is zero.
    fn read(&self, start: u64, end: u64, buffer: &mut bytes::BytesMut) -> Result<u64, MemoryError> {
        let room = (buffer.capacity() - buffer.len()) as u64 / PAGE_SIZE * PAGE_SIZE;
        let len = room.min(end - start);
        let past = buffer.len() + usize::try_from(len).unwrap_or(0);
        while buffer.len() < past {
            let done = (buffer.len() + usize::try_from(len).unwrap_or(0) - past) as u64;
            let read = process_vm::pread_append(self.file.as_fd(), start + done, past - buffer.len(), buffer)
                .map_err(|source| MemoryError::Object {
                    kind: self.kind.clone(),
                    offset: start + done,
                    source,
                })?;
            if read == 0 {
                buffer.resize(past, 0);
            }
        }
        Ok(start + len)
    }

    fn tell_holes(
        &mut self,
        id: u64,
        holes: &RangeSet,
        stats: &mut SpaceStats,
        out: &mut BatchSink<'_>,
    ) -> Result<(), MemoryError> {
        let extent =
            |(start, end)| Extent { start, pages: (end - start) / PAGE_SIZE, kind: ExtentKind::Hole };
        let extents: Vec<Extent> = holes.iter().map(extent).collect();
        for part in extents.chunks(MAX_EXTENTS) {
            out(Batch { target: Target::Object(id), extents: part.to_vec(), payload: Bytes::new() })?;
        }
        holes.iter().for_each(|(start, end)| self.sent.forget(start, end));
        stats.hole_pages += holes.pages();
        Ok(())
    }

    fn send(
        &mut self,
        id: u64,
        batch_bytes: usize,
        stats: &mut SpaceStats,
        out: &mut BatchSink<'_>,
    ) -> Result<(), MemoryError> {
        let pages = self.dirty.clone();
        let mut at = 0;
        while pages.within(at, u64::MAX).next().is_some() {
            let mut payload = Payload::new(Target::Object(id), batch_bytes);
            let mut position = at;
            for (start, end) in pages.within(at, u64::MAX) {
                let end = end.min(start + payload.room() as u64);
                if start >= end {
                    break;
                }
                self.read_into(start, end, &mut payload)?;
                position = end;
            }
            if let Some(batch) = payload.finish() {
                let (data, zero) = count(&batch);
                out(batch)?;
                stats.data_pages += data;
                stats.zero_pages += zero;
            }
            self.dirty.remove(at, position);
            at = position;
        }
        Ok(())
    }

    fn read_into(&mut self, start: u64, end: u64, payload: &mut Payload) -> Result<(), MemoryError> {
        let mut at = start;
        while at < end {
            let from = payload.buffer().len();
            let next = self.read(at, end, payload.buffer())?;
            let bytes = payload.buffer().get(from..).unwrap_or_default();
            self.sent.remember(at, bytes);
            at = next;
        }
        payload.took(start, end);
        Ok(())
    }
}

/// Owner and permissions of a file.
fn ownership(metadata: &std::fs::Metadata) -> Ownership {
    Ownership { mode: metadata.mode() & 0o7777, uid: metadata.uid(), gid: metadata.gid() }
}

/// True if a time of the file system is so long ago that its clock has moved on.
fn is_past(seconds: i64, nanoseconds: i64) -> bool {
    const TICK: Duration = Duration::from_millis(50);
    let since = Duration::new(seconds.try_into().unwrap_or(0), nanoseconds.try_into().unwrap_or(0));
    let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + since);
    age.is_ok_and(|age| age > TICK)
}

/// The page-aligned parts of a file that hold data.
pub(super) fn data_ranges(file: &File, size: u64) -> std::io::Result<RangeSet> {
    use nix::errno::Errno;
    use nix::unistd::{Whence, lseek64};
    let seek = |at: u64, whence| match lseek64(file.as_fd(), at.cast_signed(), whence) {
        Ok(found) => Ok(Some(found.cast_unsigned())),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(std::io::Error::from(error)),
    };
    let mut ranges = RangeSet::new();
    let mut at = 0;
    while at < size {
        let Some(start) = seek(at, Whence::SeekData)? else { break };
        let end = seek(start, Whence::SeekHole)?.unwrap_or(size).max(start + 1);
        ranges.insert(start / PAGE_SIZE * PAGE_SIZE, end.next_multiple_of(PAGE_SIZE));
        at = end;
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::object::{ObjectKey, Objects};
    use super::super::object_store::ObjectStore;
    use super::*;

    /// A file in memory at both ends.
    struct Carried {
        objects: Objects,
        file: File,
        store: ObjectStore,
        copy: File,
    }

    impl Carried {
        fn new() -> Self {
            let (file, copy) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            Self { objects: Objects::watching(|| Some(1)), file, store: ObjectStore::default(), copy }
        }

        /// One round; `between` is what a program does after the layout was told.
        fn round(&mut self, between: impl FnOnce(&mut File)) {
            self.objects.begin_round();
            let open = || Ok(self.file.try_clone().unwrap());
            let key = ObjectKey::File((0, 1), 7);
            let id = self.objects.identify(key, ObjectKind::TreeFile, open).unwrap();
            self.objects.hold(id);
            let layout = self.objects.layouts().remove(0);
            if self.store.contains(id) {
                self.store.resize(id, &layout.kind, layout.size).unwrap();
            } else {
                self.copy.set_len(layout.size).unwrap();
                self.store.insert(id, self.copy.try_clone().unwrap(), layout.kind, layout.size);
            }
            between(&mut self.file);
            let store = &mut self.store;
            let mut fill = |batch: Batch| {
                store.fill(&batch).unwrap();
                Ok(())
            };
            self.objects.round(1 << 16, false, &mut fill).unwrap();
        }

        fn assert_same(&self) {
            let read = |file: &File| {
                use std::os::unix::fs::FileExt;
                let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
                file.read_exact_at(&mut bytes, 0).unwrap();
                bytes
            };
            assert!(read(&self.file) == read(&self.copy), "the copy differs");
        }
    }

    #[test]
    fn what_is_appended_between_layout_and_pages_comes_with_the_next_round() {
        let mut carried = Carried::new();
        carried.file.write_all(&[1; 5000]).unwrap();
        carried.round(|file| file.write_all(&[2; 4000]).unwrap());
        carried.round(|_| {});
        carried.assert_same();
    }

    #[test]
    fn a_file_that_shrinks_and_grows_again_is_what_it_is_at_the_source() {
        let mut carried = Carried::new();
        carried.file.write_all(&[1; 9000]).unwrap();
        carried.round(|_| {});
        carried.file.set_len(100).unwrap();
        carried.round(|file| file.set_len(9000).unwrap());
        carried.round(|_| {});
        carried.assert_same();
    }

    #[test]
    fn a_write_that_puts_the_time_of_modification_back_is_seen() {
        use std::os::unix::fs::FileExt;
        let mut carried = Carried::new();
        carried.file.write_all(&[1; 5000]).unwrap();
        let modified = carried.file.metadata().unwrap().modified().unwrap();
        carried.round(|_| {});
        std::thread::sleep(Duration::from_millis(60));
        carried.round(|_| {});
        carried.file.write_all_at(b"other", 10).unwrap();
        carried.file.set_modified(modified).unwrap();
        carried.round(|_| {});
        carried.assert_same();
    }
}
