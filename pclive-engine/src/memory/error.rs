//! What can go wrong at the source while memory is tracked and read.

use crate::capture::SinkError;
use crate::model::Pid;
use crate::model::layout::ObjectKind;

/// Failure of a round of one process or object. What was not sent stays dirty; the process runs on.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Memory is read no further: who wanted it has gone.
    #[error("memory is not read to its end: nobody waits for it any more")]
    Unwanted,
    /// The process ended or has executed another program: what was tracked is no more.
    #[error("cannot track the memory of process {pid}: its address space is gone")]
    AddressSpaceGone {
        /// The process.
        pid: Pid,
    },
    /// A file of `/proc/PID` could not be opened or read.
    #[error("cannot read {name} of process {pid}")]
    Proc {
        /// The process.
        pid: Pid,
        /// "pagemap", "mem" ...
        name: String,
        /// Why.
        source: nix::Error,
    },
    /// The kernel refused the tracker (older than 6.7, or userfaultfd switched off).
    #[error("cannot start tracking the memory of process {pid}")]
    Handshake {
        /// The process.
        pid: Pid,
        /// Why.
        source: nix::Error,
    },
    /// A mapping could not be put under the tracker.
    #[error("cannot track {start:x}-{end:x} of process {pid}")]
    Register {
        /// The process.
        pid: Pid,
        /// First address.
        start: u64,
        /// One past the last address.
        end: u64,
        /// Why.
        source: nix::Error,
    },
    /// The page tables could not be scanned.
    #[error("cannot scan {start:x}-{end:x} of process {pid}")]
    Scan {
        /// The process.
        pid: Pid,
        /// First address.
        start: u64,
        /// One past the last address.
        end: u64,
        /// Why.
        source: nix::Error,
    },
    /// Pages could not be read.
    #[error("cannot read memory at {start:x} of process {pid}")]
    Read {
        /// The process.
        pid: Pid,
        /// Address.
        start: u64,
        /// Why.
        source: nix::Error,
    },
    /// Shared memory could not be read.
    #[error("cannot read shared memory ({kind:?}) at offset {offset:x}")]
    Object {
        /// What it is.
        kind: ObjectKind,
        /// Offset in bytes.
        offset: u64,
        /// Why.
        source: nix::Error,
    },
    /// The receiver failed.
    #[error("cannot hand over pages")]
    Sink(#[from] SinkError),
}

impl MemoryError {
    /// The process has ended or executed another program, or is about to: its old memory needs no more care.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::AddressSpaceGone { .. } => true,
            Self::Proc { source, .. } => matches!(*source, nix::Error::ESRCH | nix::Error::ENOENT),
            Self::Register { source, .. } | Self::Scan { source, .. } | Self::Read { source, .. } => {
                *source == nix::Error::ESRCH
            }
            Self::Unwanted | Self::Handshake { .. } | Self::Object { .. } | Self::Sink(_) => false,
        }
    }
}

/// The errno of an I/O error.
pub(crate) fn errno(error: &std::io::Error) -> nix::Error {
    error.raw_os_error().map_or(nix::Error::EIO, nix::Error::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_space_that_ends_at_any_step_is_gone() {
        let (pid, start, end) = (Pid(1), 0x1000, 0x2000);
        let at = |source| {
            [
                MemoryError::Proc { pid, name: "pagemap".into(), source },
                MemoryError::Register { pid, start, end, source },
                MemoryError::Scan { pid, start, end, source },
                MemoryError::Read { pid, start, source },
            ]
        };
        assert!(at(nix::Error::ESRCH).iter().all(MemoryError::is_gone));
        assert!(!at(nix::Error::ENOMEM).iter().any(MemoryError::is_gone));
    }
}
