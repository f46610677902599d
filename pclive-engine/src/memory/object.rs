//! Shared memory at the source: every object once, however many processes map it.
//!
//! An object is shared anonymous memory, a file in memory (of a tmpfs, a memfd, a System V segment), or a regular file
//! on a disk that is mapped shared and may be written through the mapping. It is read through a descriptor of its own
//! (`/proc/PID/map_files`); its holes are known from SEEK_DATA. Of a file on a disk only what is mapped is sent, of
//! everything else all data.
//!
//! Which pages were written is known per address space only, so that [`Objects`] unites what every
//! [`super::space::AddressSpace`] saw. What no address space can tell (a process that wrote and ended, or unmapped,
//! between two rounds; write(2) into a mapped file; a punched hole) makes an object *suspect*: all of it is compared
//! with digests of what was sent. The object's times tell a part of that ([`super::witness`]). Order of calls in a
//! round: [`Objects::begin_round`], then `read_vmas` and [`super::space::AddressSpace::collect_shared`] for each
//! process, then [`Objects::round`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::SystemTime;

use super::error::MemoryError;
use super::shared::Object;
use super::space::{BatchSink, SpaceStats};
use crate::model::layout::{ObjectKind, ObjectLayout};
use crate::model::tree::Segment;
use crate::model::{Pid, Vpid};
use crate::sys::fcntl;

/// What tells one object from another while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ObjectKey {
    /// A file: device numbers (major, minor) as in `/proc/PID/maps`, and inode.
    File((u32, u32), u64),
    /// A System V segment by its id, which is its inode too and may be that of another file of the same device.
    Segment(i32),
}

/// A process shows a part of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shown {
    pub(super) object: u64,
    pub(super) vpid: Vpid,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) offset: u64,
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
#[derive(Debug)]
pub struct Objects {
    table: BTreeMap<u64, Object>,
    ids: HashMap<ObjectKey, u64>,
    next_id: u64,
    /// When this round began.
    begun: SystemTime,
    /// Mappings seen in the rounds before this one, since the last that succeeded.
    before: HashSet<Shown>,
    /// Mappings seen in this round.
    now: HashSet<Shown>,
    /// Tells a number that changes whenever a process is born; `None` when that is not known.
    births: fn() -> Option<u64>,
    /// The same when this round began.
    newest: Option<u64>,
    /// The same at the last round that has asked who is suspect.
    newest_before: Option<u64>,
    /// Mapped files whose path was found to lead to them. Asked once a migration.
    pub(crate) files: HashMap<(ObjectKey, Vec<u8>), KnownFile>,
    /// The container's own file systems in memory, as of this round: device and mount point.
    pub(crate) memory: HashMap<(u32, u32), Vec<u8>>,
    /// The container's System V segments, as of this round, by id.
    pub(crate) segments: HashMap<i32, Segment>,
    /// The container has an IPC namespace of its own, so that every segment that it has is one of these.
    pub(crate) lists_segments: bool,
}

impl Default for Objects {
    fn default() -> Self {
        Self::watching(newest_id)
    }
}

impl Objects {
    /// An empty table that watches this machine's process ids for births.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty table; `births` tells a number that changes whenever a process is born that could map the shared
    /// memory, `None` when that is not known.
    pub fn watching(births: fn() -> Option<u64>) -> Self {
        Self {
            table: BTreeMap::new(),
            ids: HashMap::new(),
            next_id: 0,
            begun: SystemTime::now(),
            before: HashSet::new(),
            now: HashSet::new(),
            births,
            newest: None,
            newest_before: None,
            files: HashMap::new(),
            memory: HashMap::new(),
            segments: HashMap::new(),
            lists_segments: false,
        }
    }

    /// Starts a round: forgets which mappings and objects were seen. To be called before the container's processes
    /// are listed: a process that is born later than that and ends before the next round is suspected.
    pub fn begin_round(&mut self) {
        self.newest = (self.births)();
        self.before.extend(self.now.drain());
        self.begun = SystemTime::now();
        self.table.values_mut().for_each(Object::begin_round);
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
        let object = Object::new(open()?, kind, self.begun);
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
            ObjectLayout { id: *id, size, kind: object.kind.clone() }
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

    /// Notes a mapping and returns the parts of the object that it shows and that hold data.
    pub(super) fn shown(&mut self, pid: Pid, shown: Shown) -> Result<Vec<(u64, u64)>, MemoryError> {
        self.now.insert(shown);
        let Some(object) = self.table.get_mut(&shown.object) else { return Ok(Vec::new()) };
        let end = shown.offset.saturating_add(shown.end - shown.start);
        object.mapped.insert(shown.offset, end);
        Ok(object.data(pid)?.within(shown.offset, end).collect())
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

    /// Sends what is new in every object that is mapped, each once. `strangers`: a process or address space has come
    /// or gone since the last round, so that everything is suspect; so it is after any birth on this machine.
    ///
    /// On an error the next round sends what this one did not.
    pub fn round(
        &mut self,
        batch_bytes: usize,
        strangers: bool,
        out: &mut BatchSink<'_>,
    ) -> Result<SpaceStats, MemoryError> {
        for lost in self.before.difference(&self.now) {
            if let Some(object) = self.table.get_mut(&lost.object) {
                object.suspect = true;
            }
        }
        self.before.clear();
        let strangers = strangers || self.newest.is_none() || self.newest != self.newest_before;
        self.newest_before = self.newest;
        self.table.values_mut().for_each(|object| object.suspect |= strangers);
        let mut stats = SpaceStats::default();
        for (id, object) in &mut self.table {
            object.round(*id, batch_bytes, &mut stats, out)?;
        }
        Ok(stats)
    }
}

/// The id of the last process or thread that was born, from `/proc/loadavg`.
fn newest_id() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split_ascii_whitespace().nth(4)?.parse().ok()
}
