//! One shared memory object at the source: what is known of it, and how its pages are read and sent.
//!
//! Everything is asked of the object's own descriptor. Kernel: SEEK_DATA of tmpfs (Linux 3.8), `F_GET_SEALS` (3.17).
//! Failure: what was not sent stays dirty.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use nix::sys::stat::{major, minor};
use nix::time::{ClockId, clock_gettime};

use super::digest::Digests;
use super::error::{MemoryError, errno};
use super::huge::{self, Unfit};
use super::payload::{MAX_EXTENTS, Payload};
use super::ranges::RangeSet;
use super::space::{BatchSink, SpaceStats, Task, count};
use crate::model::layout::ObjectKind;
use crate::model::tree::Ownership;
use crate::model::{Batch, Extent, ExtentKind, PAGE_SIZE, Pid, Target};
use crate::sys::{fcntl, process_vm};

/// Memory that one thread compares at a time, bytes.
const PIECE_BYTES: u64 = 4 << 20;
/// What it reads in one call, bytes: stays in the core's cache.
const READ_BYTES: usize = 256 << 10;
/// Threads that compare, at most: more than these fill the machine's path to memory.
const MAX_COMPARERS: usize = 8;

/// How many threads compare.
fn comparers() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from).min(MAX_COMPARERS))
}

/// CPU time of the calling thread. What it waits for is not in it: a page that round 0 had to read from a disk is in
/// memory at the stop. (Where the agent's CPU time is limited, the stop takes longer than that.)
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// How fast one thread reads pages and takes their digests.
#[derive(Debug, Default)]
struct Pace {
    pages: u64,
    time: Duration,
}

impl Pace {
    fn add(&mut self, pages: u64, time: Duration) {
        self.pages = self.pages.saturating_add(pages);
        self.time = self.time.saturating_add(time);
    }

    /// What comparing so many pages will take.
    fn time_for(&self, pages: u64) -> Duration {
        let threads = pages.div_ceil(PIECE_BYTES / PAGE_SIZE).clamp(1, comparers() as u64);
        let all = self.time.as_nanos().saturating_mul(u128::from(pages));
        let nanoseconds = all / u128::from(self.pages.max(1)) / u128::from(threads);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

/// An object that is open.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) file: File,
    pub(super) kind: ObjectKind,
    /// Size of its huge pages in bytes, if it is in such.
    pub(super) huge: Option<u64>,
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
    /// Size and time of change when the contents were last taken to be known.
    stamp: Option<(u64, i64, i64)>,
    sent: Digests,
    pace: Pace,
}

impl Object {
    pub(super) fn new(file: File, kind: ObjectKind) -> Self {
        Self {
            huge: huge::page_size(&file),
            file,
            kind,
            seen: true,
            held: false,
            told: None,
            data: None,
            mapped: RangeSet::new(),
            dirty: RangeSet::new(),
            stamp: None,
            sent: Digests::default(),
            pace: Pace::default(),
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    /// Why it cannot be carried, if it is in huge pages.
    pub(super) fn unfit(&self) -> Option<Unfit> {
        let (page_size, about) = (self.huge?, self.file.metadata().ok()?);
        huge::unfit(page_size, about.len(), about.blocks())
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

    /// True if the time of change tells that the contents may have been changed other than through a mapping: by write(2)
    /// or, in anonymous memory too, by a hole (whose pages a later read fills with zeros, unseen by any tracker). Asked
    /// before they are read. It is not the whole truth: who maps a file, reads a page and then stores into it changes no
    /// time, and a long write(2) sets it when it begins (mm/shmem.c, mm/filemap.c).
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
        task: Task,
        batch_bytes: usize,
        stats: &mut SpaceStats,
        out: &mut BatchSink<'_>,
    ) -> Result<(), MemoryError> {
        let begun = Instant::now();
        let nobody = Pid(std::process::id().cast_signed());
        let compare = self.touched() || task == Task::IsStopped;
        let mut data = self.data(nobody)?.clone();
        if self.kind.is_stored() {
            // What nobody maps any more is no hole: the destination would write zeros into the file.
            data = data.intersection(&self.mapped.union(&self.sent.pages()));
        } else if let Some(told) = self.told {
            // The destination has cut its own, and what has grown since the layout is not announced yet.
            let end = told.next_multiple_of(PAGE_SIZE);
            data.remove(end, u64::MAX);
            self.sent.forget(end, u64::MAX / PAGE_SIZE * PAGE_SIZE);
        }
        let sent = self.sent.pages();
        self.dirty = self.dirty.union(&data.difference(&sent)).intersection(&data);
        let mut not_compared = data.pages();
        if compare {
            let known = data.difference(&self.dirty);
            self.dirty = self.dirty.union(&self.changed(&known)?);
            not_compared -= known.pages();
        }
        stats.scan += begun.elapsed();
        let begun = Instant::now();
        self.tell_holes(id, &sent.difference(&data), stats, out)?;
        self.send(id, batch_bytes, stats, out)?;
        stats.read += begun.elapsed();
        stats.stop_scan += self.pace.time_for(not_compared);
        Ok(())
    }

    /// Which of `pages` differ from what was sent. Several cores take part: the container may stand still meanwhile.
    fn changed(&self, pages: &RangeSet) -> Result<RangeSet, MemoryError> {
        let pieces: Vec<(u64, u64)> = pages.iter().flat_map(pieces).collect();
        let next = AtomicUsize::new(0);
        let compare = || {
            let mut changed = RangeSet::new();
            let mut buffer = BytesMut::with_capacity(READ_BYTES);
            while let Some(&(start, end)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut at = start;
                while at < end {
                    buffer.clear();
                    let read = self.read(at, end, &mut buffer)?;
                    self.sent.compare(at, &buffer, &mut changed);
                    at = read;
                }
            }
            Ok(changed)
        };
        let threads = comparers().min(pieces.len());
        if threads <= 1 {
            return compare();
        }
        std::thread::scope(|scope| {
            // A thread that cannot be started is one that does not help.
            let start =
                |_| std::thread::Builder::new().name("compare".into()).spawn_scoped(scope, compare).ok();
            let others: Vec<_> = (1..threads).filter_map(start).collect();
            let own = compare();
            others.into_iter().fold(own, |all: Result<RangeSet, MemoryError>, other| {
                let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                Ok(all?.union(&other?))
            })
        })
    }

    /// Reads whole pages from `start` towards `end`, as many as fit; what is behind the end of a file is zero.
    fn read(&self, start: u64, end: u64, buffer: &mut BytesMut) -> Result<u64, MemoryError> {
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
        let begun = cpu_time();
        let mut at = start;
        while at < end {
            let from = payload.buffer().len();
            let next = self.read(at, end, payload.buffer())?;
            let bytes = payload.buffer().get(from..).unwrap_or_default();
            self.sent.remember(at, bytes);
            at = next;
        }
        payload.took(start, end);
        self.pace.add((end - start) / PAGE_SIZE, cpu_time().saturating_sub(begun));
        Ok(())
    }
}

/// A range in parts for one thread each.
fn pieces((start, end): (u64, u64)) -> impl Iterator<Item = (u64, u64)> {
    let step = usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX);
    (start..end).step_by(step).map(move |at| (at, end.min(at + PIECE_BYTES)))
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
    if huge::page_size(file).is_some() {
        // No holes for SEEK_DATA, however little is in it: what is longer than it can be full is not gone through.
        return match file.metadata()?.blocks() {
            0 => Ok(ranges),
            blocks if huge::is_hollow(size, blocks) => Err(Errno::EFBIG.into()),
            _ => {
                ranges.insert(0, size.next_multiple_of(PAGE_SIZE));
                Ok(ranges)
            }
        };
    }
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
            Self { objects: Objects::new(), file, store: ObjectStore::default(), copy }
        }

        /// One round; `between` is what a program does after the layout was told.
        fn round(&mut self, between: impl FnOnce(&mut File)) -> SpaceStats {
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
                self.store.insert(&layout, self.copy.try_clone().unwrap()).unwrap();
            }
            between(&mut self.file);
            let store = &mut self.store;
            let mut fill = |batch: Batch| {
                store.fill(&batch).unwrap();
                Ok(())
            };
            self.objects.round(Task::Runs, 1 << 16, &mut fill).unwrap()
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
    fn a_round_that_compares_nothing_tells_what_the_stop_will_take_for_it() {
        let mut carried = Carried::new();
        carried.file.write_all(&[1; 5000]).unwrap();
        assert!(carried.round(|_| {}).stop_scan > Duration::ZERO, "nothing could be compared yet");
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(carried.round(|_| {}).stop_scan, Duration::ZERO, "it has compared");
        assert!(carried.round(|_| {}).stop_scan > Duration::ZERO);
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
