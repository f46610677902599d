//! The source's side: pages of a container that stands still.
//!
//! Needs no ptrace: any thread reads, also one of an agent that was restarted. Kernel: `/proc/PID/mem`, which reads
//! what the task itself may not (FOLL_FORCE). It is the caller's to make sure that the container stands still.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::capture::tree::{self, TreeError};
use crate::model::{Pid, Vpid};

/// Pages cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum OriginalError {
    /// The container is not there.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Nobody has this id.
    #[error("cannot find process {vpid} in the container")]
    NoProcess {
        /// The process.
        vpid: Vpid,
    },
    /// The kernel does not give the memory.
    #[error("cannot read memory at {start:x} of process {vpid}")]
    Read {
        /// The process.
        vpid: Vpid,
        /// First address.
        start: u64,
        /// Why.
        source: io::Error,
    },
}

/// A container that stands still.
#[derive(Debug)]
pub struct Original {
    pids: HashMap<Vpid, Pid>,
    opened: HashMap<Vpid, File>,
}

impl Original {
    /// The container whose init is `init`.
    pub fn open(init: Pid) -> Result<Self, OriginalError> {
        let pids = tree::read(init)?.into_iter().map(|process| (process.vpid, process.pid)).collect();
        Ok(Self { pids, opened: HashMap::new() })
    }

    /// Reads memory of a process.
    pub fn read(&mut self, vpid: Vpid, start: u64, bytes: &mut [u8]) -> Result<(), OriginalError> {
        let failed = |source| OriginalError::Read { vpid, start, source };
        let file = match self.opened.entry(vpid) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let pid = self.pids.get(&vpid).ok_or(OriginalError::NoProcess { vpid })?;
                entry.insert(File::open(format!("/proc/{pid}/mem")).map_err(failed)?)
            }
        };
        file.read_exact_at(bytes, start).map_err(failed)
    }
}
