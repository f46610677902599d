//! How restoring descriptors fails.

use nix::errno::Errno;

use crate::model::{FileId, Vpid};
use crate::remote::RemoteError;
use crate::restore::sockets::SocketsError;
use crate::restore::terminals::TerminalError;

/// A descriptor of the copy cannot be made. Nothing of the copy has run.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The source sent something that contradicts itself or goes beyond a limit.
    #[error("the source sent {what}")]
    Invalid {
        /// "open file 7 twice" ...
        what: String,
    },
    /// A path does not lead to a file that can take the place of the source's.
    #[error("cannot open {path} in the container: it is {found}, at the source it is {expected}")]
    OtherType {
        /// The path, made printable.
        path: String,
        /// What it is here.
        found: &'static str,
        /// What it was there.
        expected: &'static str,
    },
    /// An operation on a file of the container.
    #[error("cannot {verb} {path} in the container; files that are open must be the same on both hosts")]
    Path {
        /// "open" ...
        verb: &'static str,
        /// The path, made printable.
        path: String,
        /// Why.
        source: Errno,
    },
    /// An operation on a nameless file.
    #[error("cannot {verb} (open file {})", file.0)]
    Make {
        /// "create a pipe" ...
        verb: &'static str,
        /// The file.
        file: FileId,
        /// Why.
        source: Errno,
    },
    /// What was queued in a pipe does not fit it here.
    #[error(
        "cannot queue {bytes} bytes in a pipe of {capacity} bytes; raise /proc/sys/fs/pipe-max-size on this host"
    )]
    PipeTooSmall {
        /// Bytes queued at the source.
        bytes: usize,
        /// Capacity here.
        capacity: u32,
    },
    /// A FIFO of the container holds data of somebody else.
    #[error(
        "the FIFO {path} of the created container already holds {bytes} bytes; no other process may use it"
    )]
    FifoInUse {
        /// The path, made printable.
        path: String,
        /// What is in it.
        bytes: u32,
    },
    /// The created container lacks a standard stream.
    #[error(
        "cannot take over descriptor {stream} of the created container; create it with stdin, stdout and stderr"
    )]
    Stream {
        /// 0, 1 or 2.
        stream: u8,
        /// Why.
        source: Errno,
    },
    /// The skeleton has no such process.
    #[error("no process {vpid} to give descriptors to")]
    NoProcess {
        /// Inside the container.
        vpid: Vpid,
    },
    /// The process may not have descriptors as high as at the source.
    #[error(
        "process {vpid} needs descriptor {fd}, its limit here is {limit}; create the container with a higher \
         RLIMIT_NOFILE"
    )]
    Limit {
        /// Inside the container.
        vpid: Vpid,
        /// Highest descriptor.
        fd: i32,
        /// Hard limit of the created container.
        limit: u64,
    },
    /// Descriptors cannot be handed over.
    #[error("cannot {verb} process {vpid}")]
    Hand {
        /// "send descriptors to" ...
        verb: &'static str,
        /// Inside the container.
        vpid: Vpid,
        /// Why.
        source: Errno,
    },
    /// A call in the process failed.
    #[error("cannot {verb} descriptor {fd} of process {vpid}")]
    Descriptor {
        /// "install" ...
        verb: &'static str,
        /// Inside the container.
        vpid: Vpid,
        /// The number.
        fd: i32,
        /// Why.
        source: Errno,
    },
    /// The process got other numbers than its table has free.
    #[error("process {vpid} received descriptors as {received:?} and not as {expected:?}")]
    Numbers {
        /// Inside the container.
        vpid: Vpid,
        /// The numbers; none if they were cut short.
        received: Vec<i32>,
        /// Those that should have been free.
        expected: Vec<i32>,
    },
    /// The terminals.
    #[error(transparent)]
    Terminals(#[from] TerminalError),
    /// The sockets.
    #[error("cannot build the sockets")]
    Sockets(#[from] SocketsError),
    /// The remote calls as such.
    #[error("cannot run remote calls")]
    Remote(#[from] RemoteError),
}

impl FilesError {
    pub(super) fn make(verb: &'static str, file: FileId) -> impl Fn(Errno) -> Self {
        move |source| Self::Make { verb, file, source }
    }

    pub(super) fn path(verb: &'static str, path: &[u8]) -> impl Fn(Errno) -> Self {
        move |source| Self::Path { verb, path: printable(path), source }
    }
}

/// Makes bytes from the peer fit for a terminal.
pub(super) fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
