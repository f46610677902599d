//! Shared memory at the source: every object once, however many processes map it.
//!
//! An object is shared anonymous memory, a file in memory (of a tmpfs, a memfd, a System V segment), or a regular file
//! on a disk that is mapped shared and may be written through the mapping. It is read through a descriptor of its own
//! (`/proc/PID/map_files`); its holes are known from SEEK_DATA. Of a file on a disk only what is mapped is sent, of
//! everything else all data.
//!
//! Which pages were written is known per address space only, so that [`Objects`] unites what every
//! [`super::space::AddressSpace`] saw. What no address space can tell (a process that wrote and ended, or unmapped,
//! between two rounds; write(2) into a mapped file; a punched hole) is found by comparing the whole object with digests
//! of what was sent: in a round if its time of change tells so, and always when the container is stopped, because not
//! every store changes that time. Order of calls in a round: [`Objects::begin_round`], then `read_vmas` and
//! [`super::space::AddressSpace::collect_shared`] for each process, then [`Objects::round`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt;

use super::error::MemoryError;
use super::huge::Unfit;
use super::shared::Object;
use super::space::{BatchSink, SpaceStats, Task};
use crate::model::Pid;
use crate::model::layout::{ObjectKind, ObjectLayout};
use crate::model::tree::Segment;
use crate::sys::fcntl;

/// What tells one object from another while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ObjectKey {
    /// A file: device numbers (major, minor) as in `/proc/PID/maps`, and inode.
    File((u32, u32), u64),
    /// A System V segment by its id, which is its inode too and may be that of another file of the same device.
    Segment(i32),
}

/// A mapped file on a disk: which it is for stat(2), and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KnownFile {
    device: u64,
    inode: u64,
    /// Bytes.
    pub(crate) size: u64,
}

impl KnownFile {
    pub(crate) fn new(about: &std::fs::Metadata) -> Self {
        Self { device: about.dev(), inode: about.ino(), size: about.len() }
    }

    /// Whether that is this file. (`/proc/PID/maps` tells other numbers of it on some file systems.)
    pub(crate) fn is(&self, about: &std::fs::Metadata) -> bool {
        (self.device, self.inode) == (about.dev(), about.ino())
    }
}

/// The shared memory of a container.
#[derive(Debug, Default)]
pub struct Objects {
    table: BTreeMap<u64, Object>,
    ids: HashMap<ObjectKey, u64>,
    next_id: u64,
    /// Mapped files whose path was found to lead to them. Asked once a migration.
    pub(crate) files: HashMap<(ObjectKey, Vec<u8>), KnownFile>,
    /// The container's own file systems in memory, as of this round: device and mount point.
    pub(crate) memory: HashMap<(u32, u32), Vec<u8>>,
    /// The container's System V segments, as of this round, by id.
    pub(crate) segments: HashMap<i32, Segment>,
    /// The container has an IPC namespace of its own, so that every segment that it has is one of these.
    pub(crate) lists_segments: bool,
    /// Sizes of huge pages, by the device of the hugetlbfs that they are of; 0 for a device that is none.
    pub(crate) huge_pages: HashMap<(u32, u32), u64>,
}

impl Objects {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a round: forgets which mappings and objects were seen.
    pub fn begin_round(&mut self) {
        for object in self.table.values_mut() {
            (object.seen, object.data) = (false, None);
            object.held &= object.is_nameless();
            object.mapped.clear();
        }
    }

    /// The id of the object behind a mapping of a process; it is opened when it is new.
    pub(crate) fn identify(
        &mut self,
        key: ObjectKey,
        kind: ObjectKind,
        open: impl FnOnce() -> Result<File, MemoryError>,
    ) -> Result<u64, MemoryError> {
        if let Some(id) = self.ids.get(&key) {
            if let Some(object) = self.table.get_mut(id) {
                object.seen = true;
                object.kind = kind;
            }
            return Ok(*id);
        }
        let object = Object::new(open()?, kind);
        let id = self.next_id;
        self.next_id += 1;
        self.table.insert(id, object);
        self.ids.insert(key, id);
        Ok(id)
    }

    /// The object of a key, if it is known.
    pub(crate) fn find(&self, key: ObjectKey) -> Option<u64> {
        self.ids.get(&key).copied()
    }

    /// True for an object in huge pages.
    pub(crate) fn is_huge(&self, id: u64) -> bool {
        self.table.get(&id).is_some_and(|object| object.huge.is_some())
    }

    /// Objects of this round that are in huge pages and cannot be carried.
    pub(crate) fn unfit(&self) -> impl Iterator<Item = (&ObjectKind, Unfit)> {
        let seen = self.table.values().filter(|object| object.seen);
        seen.filter_map(|object| Some((&object.kind, object.unfit()?)))
    }

    /// True if nobody can map the object for writing any more.
    pub(crate) fn is_sealed(&self, id: u64) -> bool {
        let file = self.table.get(&id).map(|object| &object.file);
        file.and_then(|file| fcntl::seals(file).ok()).is_some_and(|seals| seals & libc::F_SEAL_WRITE != 0)
    }

    /// The object is there in this round, mapped or not.
    pub(crate) fn hold(&mut self, id: u64) {
        if let Some(object) = self.table.get_mut(&id) {
            (object.seen, object.held) = (true, true);
        }
    }

    /// Files without a path count as still open from the last round on, until [`Self::release_nameless`].
    pub(crate) fn hold_nameless(&mut self) {
        for object in self.table.values_mut().filter(|object| object.is_nameless() && object.held) {
            object.seen = true;
        }
    }

    /// Forgets which files without a path are open: they are about to be looked for.
    pub(crate) fn release_nameless(&mut self) {
        self.table.values_mut().filter(|object| object.is_nameless()).for_each(|object| object.held = false);
    }

    /// Forgets every object but these, as far as they were seen in this round. The destination drops what the layout
    /// does not name: an object that is met again later has a new id, and is sent whole.
    pub(crate) fn keep(&mut self, ids: &HashSet<u64>) {
        self.table.retain(|id, object| object.seen && (object.held || ids.contains(id)));
        self.ids.retain(|_, id| self.table.contains_key(id));
    }

    /// Files of a file system in memory that only a mapping has led to, and none of these nodes, have no name.
    pub(crate) fn unlink_others(&mut self, named: &HashSet<u64>) {
        for (id, object) in &mut self.table {
            let in_tree = matches!(object.kind, ObjectKind::TreeFile) && object.seen;
            if in_tree && !named.contains(id) {
                object.unlink(&self.memory);
            }
        }
    }

    /// Objects that were found in this round, ascending by id. What is sent until the next call lies within the sizes
    /// that are told here.
    pub fn layouts(&mut self) -> Vec<ObjectLayout> {
        let seen = self.table.iter_mut().filter(|(_, object)| object.seen);
        let layout = |(id, object): (&u64, &mut Object)| {
            let size = object.size();
            object.tell(size);
            object.refresh();
            ObjectLayout { id: *id, size, huge: object.huge.is_some(), kind: object.kind.clone() }
        };
        seen.map(layout).collect()
    }

    /// Size of an object in bytes, now; 0 for one that is not known.
    pub fn size(&self, id: u64) -> u64 {
        self.table.get(&id).map_or(0, Object::size)
    }

    /// The descriptor of an object.
    pub(crate) fn file(&self, id: u64) -> Option<&File> {
        self.table.get(&id).map(|object| &object.file)
    }

    /// Notes that a mapping shows `start..end` of an object; the parts of it that hold data.
    pub(super) fn shown(
        &mut self,
        pid: Pid,
        (id, start, end): (u64, u64, u64),
    ) -> Result<Vec<(u64, u64)>, MemoryError> {
        if let Some(object) = self.table.get_mut(&id) {
            object.mapped.insert(start, end);
        }
        self.held(pid, (id, start, end))
    }

    /// The parts of `start..end` of an object that hold data, as of this round.
    pub(super) fn held(
        &mut self,
        pid: Pid,
        (id, start, end): (u64, u64, u64),
    ) -> Result<Vec<(u64, u64)>, MemoryError> {
        let Some(object) = self.table.get_mut(&id) else { return Ok(Vec::new()) };
        Ok(object.data(pid)?.within(start, end).collect())
    }

    /// Pages of an object were written.
    pub(super) fn written(&mut self, id: u64, start: u64, end: u64) {
        if let Some(object) = self.table.get_mut(&id) {
            object.dirty.insert(start, end);
        }
    }

    /// Sends what is new in every object, each once. Of a stopped container that is everything that the last rounds have
    /// not sent, however it was written.
    ///
    /// On an error the next round sends what this one did not.
    pub fn round(
        &mut self,
        task: Task,
        batch_bytes: usize,
        out: &mut BatchSink<'_>,
    ) -> Result<SpaceStats, MemoryError> {
        let mut stats = SpaceStats::default();
        for (id, object) in &mut self.table {
            object.round(*id, task, batch_bytes, &mut stats, out)?;
        }
        Ok(stats)
    }
}
