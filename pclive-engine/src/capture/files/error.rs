//! How reading descriptors fails.

use nix::errno::Errno;

use crate::capture::sockets::DiagFailure;
use crate::model::Pid;
use crate::proc::fdinfo::FdInfoError;
use crate::proc::mountinfo::MountInfoError;

/// Failure to read a container's descriptors. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// An operation on a process.
    #[error("cannot {verb} process {pid}")]
    Process {
        /// "list the descriptors of" ...
        verb: &'static str,
        /// The process.
        pid: Pid,
        /// Why.
        source: Errno,
    },
    /// An operation on a descriptor.
    #[error("cannot {verb} descriptor {fd} of process {pid}")]
    Descriptor {
        /// "duplicate" ...
        verb: &'static str,
        /// The process.
        pid: Pid,
        /// The number.
        fd: i32,
        /// Why.
        source: Errno,
    },
    /// fdinfo that is not understood.
    #[error("cannot read the fdinfo of descriptor {fd} of process {pid}")]
    Info {
        /// The process.
        pid: Pid,
        /// The number.
        fd: i32,
        /// The line.
        source: FdInfoError,
    },
    /// A file of /proc.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// mountinfo that is not understood.
    #[error("cannot parse {path}")]
    Mounts {
        /// The file.
        path: String,
        /// The line.
        source: MountInfoError,
    },
    /// A path of the container that cannot be looked at.
    #[error("cannot look at {path} in the container")]
    Resolve {
        /// The path, made printable.
        path: String,
        /// Why.
        source: Errno,
    },
    /// An operation on a pipe.
    #[error("cannot {verb} pipe {inode}")]
    Pipe {
        /// "copy the queue of" ...
        verb: &'static str,
        /// The pipe.
        inode: u64,
        /// Why.
        source: Errno,
    },
    /// A timer that cannot be read.
    #[error("cannot read a timer descriptor (inode {inode})")]
    Timer {
        /// Its inode.
        inode: u64,
        /// Why.
        source: Errno,
    },
    /// An operation on a terminal.
    #[error("cannot {verb} terminal {name}")]
    Terminal {
        /// "read the settings of" ...
        verb: &'static str,
        /// Its path, made printable.
        name: String,
        /// Why.
        source: Errno,
    },
    /// The network namespace's list of unix sockets.
    #[error("cannot list the unix sockets of the container")]
    Unix(#[from] DiagFailure),
    /// A reading thread ended without a result.
    #[error("cannot read descriptors: a reading thread ended early")]
    Thread,
    /// The owner of a description.
    #[error("cannot read the signal owner of a descriptor (inode {inode})")]
    Owner {
        /// Its inode.
        inode: u64,
        /// Why.
        source: Errno,
    },
}

impl FilesError {
    /// The process, descriptor or path was there a moment ago.
    pub(super) fn is_loss(&self) -> bool {
        let lost = |errno: Errno| matches!(errno, Errno::ESRCH | Errno::EBADF | Errno::ENOENT);
        match self {
            Self::Process { source, .. }
            | Self::Descriptor { source, .. }
            | Self::Resolve { source, .. }
            | Self::Pipe { source, .. }
            | Self::Timer { source, .. }
            | Self::Owner { source, .. } => lost(*source),
            Self::Read { source, .. } => {
                source.raw_os_error().is_some_and(|errno| lost(Errno::from_raw(errno)))
            }
            Self::Terminal { source, .. } => lost(*source) || *source == Errno::EIO,
            Self::Info { .. } | Self::Mounts { .. } | Self::Unix(_) | Self::Thread => false,
        }
    }
}
