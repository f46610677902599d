//! Why a container cannot be migrated, found before anything is frozen.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ids::Vpid;

/// One thing of the container that the engine cannot carry. A check reports all of them at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// The process that has it, as the agent sees it (`ps` on the host shows this id).
    pub pid: i32,
    /// The same process inside the container.
    pub vpid: Vpid,
    /// Its name (`comm`), made printable.
    pub comm: String,
    /// Which part of the process.
    pub place: Place,
    /// What it is, in lower case: "io_uring instance".
    pub what: String,
    /// What the administrator can do about it.
    pub hint: String,
}

/// The part of a process that a blocker is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// The process as a whole.
    Process,
    /// One of its threads (id inside the container).
    Thread(Vpid),
    /// A file descriptor.
    Descriptor(i32),
    /// A mapping: half-open address range.
    Mapping {
        /// First address.
        start: u64,
        /// One past the last address.
        end: u64,
    },
    /// A mount point of the container.
    Mount(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process => f.write_str("process"),
            Self::Thread(tid) => write!(f, "thread {tid}"),
            Self::Descriptor(fd) => write!(f, "descriptor {fd}"),
            Self::Mapping { start, end } => write!(f, "mapping {start:x}-{end:x}"),
            Self::Mount(path) => write!(f, "mount {path}"),
        }
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} ({}), {}: {}; {}", self.pid, self.comm, self.place, self.what, self.hint)
    }
}
