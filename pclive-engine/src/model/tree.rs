//! Files that live in memory: the contents of a tmpfs of the container, and what is like them.
//!
//! A file's data travels as a shared memory object ([`super::layout::ObjectLayout`]); here is everything else of it.

use serde::{Deserialize, Serialize};

/// Most entries of all trees together: each is looked at in the stop.
pub const MOST_ENTRIES: usize = 10_000;
/// Most bytes of extended attributes of all trees together.
pub const MOST_ATTRIBUTE_BYTES: usize = 1 << 20;
/// Attributes that are the container's own doing; labels come from the destination's policy.
const ATTRIBUTES: [&[u8]; 4] = [b"user.", b"trusted.", b"security.capability", b"system.posix_acl_"];

/// Whether an extended attribute is carried.
pub fn carries_attribute(name: &[u8]) -> bool {
    ATTRIBUTES.iter().any(|prefix| name.starts_with(prefix))
}

/// All that is in one tmpfs or hugetlbfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryTree {
    /// Mount point inside the container.
    #[serde(with = "serde_bytes")]
    pub point: Vec<u8>,
    /// It is a hugetlbfs with pages of [`HUGE_PAGE_SIZE`](super::HUGE_PAGE_SIZE).
    pub huge: bool,
    /// What is in it, every directory before what is in it; the first is the mount's own directory.
    pub nodes: Vec<Node>,
}

/// A directory entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Path below the mount point, without a slash at its beginning; empty for the mount's own directory.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// What it is.
    pub kind: NodeKind,
    /// Owner and permissions.
    pub owner: Ownership,
    /// When it was read and written last.
    pub times: Times,
    /// Extended attributes, names and values.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Kinds of directory entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeKind {
    /// A directory.
    Directory,
    /// A regular file with the data of an object. Entries with one object are links to one file.
    File {
        /// Id of the object.
        object: u64,
    },
    /// A symbolic link to this path.
    Link(#[serde(with = "serde_bytes")] Vec<u8>),
    /// A FIFO.
    Fifo,
    /// The file of a unix socket.
    Socket,
    /// A device: `S_IFCHR` or `S_IFBLK`, and its number.
    Device {
        /// `st_mode & S_IFMT`.
        file_type: u32,
        /// `st_rdev`.
        number: u64,
    },
}

impl NodeKind {
    /// The object with the data of a regular file.
    pub fn object(&self) -> Option<u64> {
        match self {
            Self::File { object } => Some(*object),
            Self::Directory | Self::Link(_) | Self::Fifo | Self::Socket | Self::Device { .. } => None,
        }
    }
}

/// Who may do what with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ownership {
    /// Permission bits, `st_mode & 0o7777`.
    pub mode: u32,
    /// Owner, as the agent sees it.
    pub uid: u32,
    /// Group, as the agent sees it.
    pub gid: u32,
}

/// Times of a file, seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Times {
    /// Last access.
    pub accessed: (i64, u32),
    /// Last change of the contents.
    pub modified: (i64, u32),
}

/// A System V shared memory segment (shmget(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Its id in the container's IPC namespace.
    pub id: i32,
    /// Its key; 0 (`IPC_PRIVATE`) for one that has none any more.
    pub key: i32,
    /// Size as it was asked for, bytes; its object has whole pages where they are huge.
    pub size: u64,
    /// Permission bits, owner, group.
    pub owner: Ownership,
    /// User and group of its creator.
    pub creator: (u32, u32),
    /// It was removed and lives until the last process detaches it.
    pub removed: bool,
}
