//! What can go wrong at the source.

use std::io;

use super::failure::CaptureStateError;
use super::files::FilesError;
use super::sink::SinkError;
use super::tree::TreeError;
use crate::memory::MemoryError;
use crate::model::{Blocker, Pid, Vpid};
use crate::remote::RemoteError;
use crate::tracee::TraceError;

/// Failure of the source engine. The container runs on.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// A remote call failed.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// A task could not be seized or stopped.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The process tree could not be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Memory could not be tracked or read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The small state of a task could not be read.
    #[error(transparent)]
    State(#[from] CaptureStateError),
    /// Descriptors could not be read.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The receiver failed.
    #[error("cannot hand over the layout")]
    Sink(#[from] SinkError),
    /// A link of `/proc/PID` cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The link.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The userfaultfd of a process could not be fetched.
    #[error("cannot fetch the page tracker of process {pid}")]
    FetchTracker {
        /// The process.
        pid: Pid,
        /// Why.
        source: nix::Error,
    },
    /// Pages of a stopped process that nothing can read: the copy would lack them.
    #[error("cannot read {pages} pages of process {vpid}")]
    Unreadable {
        /// The process.
        vpid: Vpid,
        /// How many.
        pages: u64,
    },
    /// The cgroup freezer could not be engaged.
    #[error("cannot freeze the container's cgroup at {path}")]
    Freezer {
        /// The file of the freezer.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The container has no cgroup of its own to freeze.
    #[error("cannot find a freezer cgroup that belongs to the container of pid {init} alone")]
    NoFreezer {
        /// Its init.
        init: Pid,
    },
    /// The connections of a stopped container could not be put into repair mode, or out of it.
    #[error("cannot switch the repair mode of a TCP connection")]
    Silence(#[source] nix::Error),
    /// Tasks that do not end although they were killed.
    #[error("cannot end task {pid}")]
    StillAlive {
        /// One of them.
        pid: Pid,
    },
    /// Things that cannot be carried, met at the freeze although the check had passed.
    #[error("{} things cannot be migrated; the first: {}", .0.len(), .0.first().map(ToString::to_string).unwrap_or_default())]
    Blocked(Vec<Blocker>),
}

impl CaptureError {
    /// A task has ended while it was looked at. One that is stopped does too, when its process ends or executes a program.
    pub(super) fn is_end_of_a_task(&self) -> bool {
        let lost = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT));
        let of_remote = |error: &RemoteError| match error {
            RemoteError::Trace(TraceError::Gone { .. }) | RemoteError::NoVdso { .. } => true,
            RemoteError::Memory { source, .. } => lost(source),
            _ => false,
        };
        match self {
            Self::Trace(TraceError::Gone { .. }) => true,
            Self::Remote(error) | Self::State(CaptureStateError::Remote(error)) => of_remote(error),
            Self::State(
                CaptureStateError::Request { source, .. } | CaptureStateError::Read { source, .. },
            )
            | Self::Read { source, .. } => lost(source),
            Self::FetchTracker { source, .. } => *source == nix::Error::ESRCH,
            Self::Memory(error) => error.is_gone(),
            _ => false,
        }
    }
}
