//! The shape of a container: tasks and memory mappings, without contents. Sent at the start of every round.

use serde::{Deserialize, Serialize};

use super::file::OpenFiles;
use super::ids::Vpid;
use super::tree::{MemoryTree, Ownership, Segment};

/// All live processes of the container, every parent before its children, and the shared memory they map.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Layout {
    /// The processes; the first is the container's init (vpid 1).
    pub processes: Vec<ProcessLayout>,
    /// Shared memory objects that mappings refer to by id.
    pub objects: Vec<ObjectLayout>,
    /// Contents of the container's file systems in memory.
    pub trees: Vec<MemoryTree>,
    /// Files to open ahead of the stop; `None` leaves those of the round before as they are.
    pub open: Option<OpenFiles>,
}

/// A process and its address space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessLayout {
    /// Id inside the container.
    pub vpid: Vpid,
    /// Start time in clock ticks since boot (`/proc/PID/stat` field 22): tells a used-again id apart.
    pub start_time: u64,
    /// Parent inside the container; 0 for init.
    pub parent: Vpid,
    /// Process group.
    pub pgid: Vpid,
    /// Session.
    pub sid: Vpid,
    /// Its controlling terminal, N of `/dev/pts/N`.
    pub terminal: Option<u32>,
    /// `Some` for a zombie that its parent has not reaped: the wait status (as `wait(2)` stores it). A zombie
    /// has neither threads nor memory.
    pub zombie: Option<i32>,
    /// Counts the address spaces that the process has had while it was tracked; grows on `execve`.
    pub generation: u32,
    /// Path of the executable inside the container.
    #[serde(with = "serde_bytes")]
    pub exe: Vec<u8>,
    /// Threads, the leader first, ascending after it. Empty for a zombie.
    pub threads: Vec<ThreadLayout>,
    /// Mappings, ascending and not overlapping, without `[vvar]`, `[vdso]`, `[vsyscall]` and the engine's own.
    pub vmas: Vec<Vma>,
    /// Where the kernel's own mappings are.
    pub vdso: VdsoLayout,
}

/// A thread.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ThreadLayout {
    /// Id inside the container.
    pub vtid: Vpid,
    /// Start time in clock ticks since boot.
    pub start_time: u64,
}

/// The kernel's special mappings, which are moved and not copied. An absent one is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VdsoLayout {
    /// `[vdso]`: start and end.
    pub vdso: Option<(u64, u64)>,
    /// `[vvar]`: start and end.
    pub vvar: Option<(u64, u64)>,
    /// `[vvar_vclock]` (Linux 6.13): start and end.
    pub vvar_vclock: Option<(u64, u64)>,
}

/// A mapping: half-open range of page-aligned addresses.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// Access.
    pub protection: Protection,
    /// `madvise(2)` and `mmap(2)` properties.
    pub flags: VmaFlags,
    /// What is behind it.
    pub mapping: Mapping,
}

impl Vma {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// True for a mapping of no bytes, which no kernel reports.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The part of the mapping between `start` and `end`, which lie within it; the offsets of what is behind it
    /// move along.
    pub fn cut(&self, start: u64, end: u64) -> Self {
        let mut part = Self { start, end, ..self.clone() };
        let skipped = start.saturating_sub(self.start);
        match &mut part.mapping {
            Mapping::PrivateAnonymous | Mapping::PrivateHuge => {}
            Mapping::PrivateFile(file) | Mapping::SharedFile { file, .. } => {
                file.offset = file.offset.saturating_add(skipped);
            }
            Mapping::SharedObject { offset, .. } | Mapping::PrivateObject { offset, .. } => {
                *offset = offset.saturating_add(skipped)
            }
        }
        part
    }
}

/// `PROT_*` bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Protection {
    /// Readable.
    pub read: bool,
    /// Writable.
    pub write: bool,
    /// Executable.
    pub exec: bool,
}

/// Properties of a mapping beside its protection, from the `VmFlags` line of `/proc/PID/smaps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct VmaFlags {
    /// `gd`: grows down (a stack).
    pub grows_down: bool,
    /// `nr`: MAP_NORESERVE.
    pub no_reserve: bool,
    /// `lo`: locked in memory (mlock).
    pub locked: bool,
    /// `lf`: locked on fault (MLOCK_ONFAULT); only with `locked`.
    pub lock_on_fault: bool,
    /// `hg`: MADV_HUGEPAGE.
    pub huge_page: bool,
    /// `nh`: MADV_NOHUGEPAGE.
    pub no_huge_page: bool,
    /// `dc`: MADV_DONTFORK.
    pub dont_fork: bool,
    /// `dd`: MADV_DONTDUMP.
    pub dont_dump: bool,
    /// `wf`: MADV_WIPEONFORK.
    pub wipe_on_fork: bool,
    /// `sr`: MADV_SEQUENTIAL.
    pub sequential: bool,
    /// `rr`: MADV_RANDOM.
    pub random: bool,
    /// `mg`: MADV_MERGEABLE.
    pub mergeable: bool,
}

/// What a mapping shows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mapping {
    /// Private anonymous memory (heap, stack, `MAP_PRIVATE | MAP_ANONYMOUS`).
    PrivateAnonymous,
    /// The same in huge pages of hugetlbfs (`MAP_HUGETLB`) of [`HUGE_PAGE_SIZE`](super::HUGE_PAGE_SIZE).
    PrivateHuge,
    /// A private mapping of a file: untouched pages show the file.
    PrivateFile(MappedFile),
    /// A shared mapping of a regular file.
    SharedFile {
        /// The file.
        file: MappedFile,
        /// The mapping may be made writable (the descriptor that made it was open for writing): `VmFlags` `mw`.
        may_write: bool,
        /// The object that carries its contents, for a mapping that may have been written; `None` for one that
        /// never could be.
        object: Option<u64>,
    },
    /// Shared memory without a path: anonymous, a memfd, a deleted file of a tmpfs, a System V segment.
    SharedObject {
        /// Id of the object in [`Layout::objects`].
        object: u64,
        /// Offset of the mapping's first byte in the object.
        offset: u64,
        /// The mapping may be made writable, as for [`Mapping::SharedFile`].
        may_write: bool,
    },
    /// A private mapping of such memory: untouched pages show the object.
    PrivateObject {
        /// Id of the object in [`Layout::objects`].
        object: u64,
        /// Offset of the mapping's first byte in the object.
        offset: u64,
    },
}

impl Mapping {
    /// The shared memory object behind it.
    pub fn object(&self) -> Option<u64> {
        match self {
            Self::PrivateAnonymous | Self::PrivateHuge | Self::PrivateFile(_) => None,
            Self::SharedFile { object, .. } => *object,
            Self::SharedObject { object, .. } | Self::PrivateObject { object, .. } => Some(*object),
        }
    }
}

/// A mapped file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MappedFile {
    /// Path inside the container.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// Offset of the mapping's first byte in the file.
    pub offset: u64,
    /// Size of the file at the source, in bytes: a destination whose file differs refuses.
    pub size: u64,
}

/// A shared memory object: one piece of memory that several mappings (of several processes) show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectLayout {
    /// Id, unique within a migration.
    pub id: u64,
    /// Size in bytes.
    pub size: u64,
    /// It is in huge pages of hugetlbfs, of [`HUGE_PAGE_SIZE`](super::HUGE_PAGE_SIZE).
    pub huge: bool,
    /// What it is.
    pub kind: ObjectKind,
}

/// Kinds of shared memory objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectKind {
    /// `MAP_SHARED | MAP_ANONYMOUS`: nameless, made anew at the destination.
    Anonymous,
    /// A regular file of the container (path inside it) that was mapped shared and writable. Both hosts have it.
    File(#[serde(with = "serde_bytes")] Vec<u8>),
    /// A regular file that [`Layout::trees`] names.
    TreeFile,
    /// A deleted file of the tmpfs (or hugetlbfs) with this mount point that is still open or mapped.
    Unlinked {
        /// Mount point inside the container.
        #[serde(with = "serde_bytes")]
        point: Vec<u8>,
        /// Owner and permissions.
        owner: Ownership,
    },
    /// memfd_create(2).
    Memfd {
        /// Its name.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
        /// Owner and permissions.
        owner: Ownership,
        /// `F_SEAL_*`.
        seals: i32,
    },
    /// shmget(2).
    Segment(Segment),
}

impl ObjectKind {
    /// True for a file that exists at the destination without us: only what is mapped of it is ours to write.
    pub fn is_stored(&self) -> bool {
        match self {
            Self::File(_) => true,
            Self::Anonymous
            | Self::TreeFile
            | Self::Unlinked { .. }
            | Self::Memfd { .. }
            | Self::Segment(_) => false,
        }
    }
}
