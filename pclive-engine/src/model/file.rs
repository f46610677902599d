//! Descriptors and the open file descriptions behind them (open(2): several descriptors, also of several
//! processes, may share one description and with it offset and status flags).

use serde::{Deserialize, Serialize};

use super::ids::Vpid;
use super::socket::Socket;
use super::terminal::Terminal;

/// Names an [`OpenFile`] within one [`super::FinalState`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileId(pub u32);

/// A descriptor of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Number.
    pub fd: i32,
    /// The description that it refers to.
    pub file: FileId,
    /// `FD_CLOEXEC`.
    pub close_on_exec: bool,
}

/// An open file description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFile {
    /// Its name here.
    pub id: FileId,
    /// `O_*` access mode and status flags.
    pub flags: i32,
    /// Who gets SIGIO (fcntl(2), F_SETOWN_EX and F_SETSIG).
    pub owner: Option<Owner>,
    /// What is open.
    pub kind: FileKind,
}

/// Owner of an open file description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// `F_OWNER_TID` (0), `F_OWNER_PID` (1) or `F_OWNER_PGRP` (2).
    pub kind: i32,
    /// The thread, process or group, inside the container.
    pub id: Vpid,
    /// `F_GETSIG`: 0 for SIGIO.
    pub signal: i32,
}

/// What an open file description refers to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// A regular file, a directory or a device node, by its path inside the container.
    Path {
        /// Path inside the container.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
        /// File offset.
        offset: i64,
        /// `st_mode & S_IFMT` at the source; a destination that finds another type refuses.
        file_type: u32,
    },
    /// A file in memory that no path leads to: a memfd, or a deleted file of a tmpfs.
    Memory {
        /// Id of the object in [`super::Layout::objects`].
        object: u64,
        /// File offset.
        offset: i64,
    },
    /// One end of a pipe, or an end of a FIFO by its path.
    Pipe {
        /// Names the pipe: ends with one number share it.
        pipe: u64,
        /// Path of a FIFO inside the container; `None` for a nameless pipe.
        #[serde(with = "serde_bytes")]
        path: Option<Vec<u8>>,
        /// `F_GETPIPE_SZ`.
        capacity: u32,
        /// Owner of a nameless pipe, user and group as the agent sees them: who may open it again by
        /// `/proc/PID/fd` (servers that log to `/dev/stdout` do).
        owner: (u32, u32),
        /// Bytes in it; given with one end only, empty with the others.
        #[serde(with = "serde_bytes")]
        contents: Vec<u8>,
    },
    /// stdin, stdout or stderr (0, 1, 2) of the container, which lead out of it: whatever the destination's
    /// runtime gave the created init takes their place.
    Stdio(u8),
    /// eventfd(2).
    Event {
        /// Counter.
        count: u64,
        /// `EFD_SEMAPHORE`.
        semaphore: bool,
    },
    /// timerfd_create(2).
    Timer {
        /// `CLOCK_*`.
        clock: i32,
        /// Flags of `timerfd_settime`.
        settime_flags: i32,
        /// Time left to the next expiry, nanoseconds; 0 when disarmed.
        left_ns: u64,
        /// Interval, nanoseconds.
        interval_ns: u64,
        /// Expiries not yet read.
        ticks: u64,
    },
    /// signalfd(2).
    Signal {
        /// Accepted signals.
        mask: u64,
    },
    /// epoll(7).
    Epoll {
        /// Watched descriptors.
        watches: Vec<EpollWatch>,
    },
    /// A socket.
    Socket(Box<Socket>),
    /// The master of a pseudo-terminal: one description a terminal.
    Master(Box<Terminal>),
    /// A slave of a pseudo-terminal whose master is one of the files.
    Slave {
        /// N of `/dev/pts/N`.
        terminal: u32,
        /// Path inside the container by which it was opened: `/dev/pts/N`, or `/dev/tty`.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
        /// The slave is in exclusive mode (`TIOCEXCL`); all slaves of a terminal agree.
        exclusive: bool,
    },
}

/// What processes have open while the container runs, as far as it can be opened before the stop: files by their path, and
/// listening TCP sockets. The final state has the last word on all of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OpenFiles {
    /// Of [`FileKind::Path`] or [`FileKind::Socket`]; offsets and owners mean nothing.
    pub files: Vec<OpenFile>,
    /// Who has them under which numbers.
    pub descriptors: Vec<(Vpid, Vec<Descriptor>)>,
}

/// An entry of an epoll instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpollWatch {
    /// The process that must add it: one that has both the epoll instance and the file under `fd`.
    pub process: Vpid,
    /// Descriptor number under which it was added.
    pub fd: i32,
    /// The description watched.
    pub file: FileId,
    /// `EPOLL*`.
    pub events: u32,
    /// User data.
    pub data: u64,
}
