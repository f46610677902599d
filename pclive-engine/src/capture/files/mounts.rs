//! The container's mounts.
//!
//! Bind mounts and the root file system are taken to be the same at the destination. File systems in memory that the
//! runtime made for the container are carried with what is in them.

use std::collections::HashSet;

use super::FilesError;
use crate::model::Pid;
use crate::proc::mountinfo::{self, Mount};

/// The mounts that init sees.
#[derive(Debug)]
pub(super) struct Mounts {
    ids: HashSet<i32>,
}

impl Mounts {
    pub(super) fn read(init: Pid) -> Result<Self, FilesError> {
        let mounts = mounts_of(&init.to_string())?;
        Ok(Self { ids: mounts.iter().map(|mount| mount.id).collect() })
    }

    pub(super) fn contains(&self, id: i32) -> bool {
        self.ids.contains(&id)
    }
}

/// The file systems in memory that the runtime made for the container, each once: their contents are the container's
/// own. (One that the host has mounted too is a bind mount of the host's.)
pub(crate) fn own_memory(init: Pid) -> Result<Vec<Mount>, FilesError> {
    let mut mounts = mounts_of(&init.to_string())?;
    mounts.retain(is_memory);
    if mounts.is_empty() {
        return Ok(mounts);
    }
    let host: HashSet<(u32, u32)> = mounts_of("self")?.iter().map(|mount| mount.device).collect();
    let mut seen = HashSet::new();
    mounts.retain(|mount| !host.contains(&mount.device) && seen.insert(mount.device));
    Ok(mounts)
}

fn mounts_of(process: &str) -> Result<Vec<Mount>, FilesError> {
    let path = format!("/proc/{process}/mountinfo");
    let text = crate::proc::read(&path).map_err(|source| FilesError::Read { path: path.clone(), source })?;
    mountinfo::parse(&text).map_err(|source| FilesError::Mounts { path, source })
}

fn is_memory(mount: &Mount) -> bool {
    let in_memory = [&b"tmpfs"[..], b"hugetlbfs", b"ramfs"].contains(&&mount.kind[..]);
    in_memory && mount.root == b"/" && !mount.read_only
}
