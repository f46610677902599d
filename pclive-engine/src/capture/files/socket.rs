//! Sockets: the engine's socket capture, and what of its answers the descriptor table needs.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::Mode;
use super::refusal::Refusal;
use crate::capture::sockets::{
    self, CapturedSocket, Connections, Reading, RepairGuard, SocketRefusal, UnixDiag, strangers,
};
use crate::model::{FileId, FileKind, OpenFile};

/// The TCP connections that a dump has read. They are mute from `silence` on; dropping them ends that, so that the
/// connections go on as they were.
#[derive(Debug, Default)]
pub struct SocketGuards {
    guards: Vec<RepairGuard>,
}

impl SocketGuards {
    pub(super) fn push(&mut self, guard: Option<RepairGuard>) {
        self.guards.extend(guard);
    }

    /// Switches repair mode on. On `Err` some are on: dropping ends it for all.
    pub(in crate::capture) fn silence(&self) -> Result<(), Errno> {
        self.guards.iter().try_for_each(RepairGuard::silence)
    }

    /// Leaves repair mode as it is: once it is on, the last close of each connection sends neither FIN nor RST. For the
    /// time after commit, before the tasks are killed.
    pub fn leave(self) {
        self.guards.into_iter().for_each(RepairGuard::leave);
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.guards.len()
    }

    /// True without any connection.
    pub fn is_empty(&self) -> bool {
        self.guards.is_empty()
    }
}

/// A socket that is not carried.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) refusal: Refusal,
    /// It may pass by itself.
    pub(super) transient: bool,
}

impl From<SocketRefusal> for Refused {
    fn from(refused: SocketRefusal) -> Self {
        let what = match refused.errno {
            Some(errno) => format!("{} ({errno})", refused.what),
            None => refused.what,
        };
        Self { refusal: Refusal::new(what, refused.hint), transient: refused.transient }
    }
}

/// Captures the socket behind a duplicate of its descriptor.
pub(super) fn capture(
    file: OwnedFd,
    diag: &UnixDiag,
    (mode, connections): (Mode, Connections),
) -> Result<CapturedSocket, Refused> {
    let mode = match mode {
        Mode::Check => sockets::Mode::Check,
        Mode::Dump => sockets::Mode::Dump,
    };
    Ok(sockets::capture_socket(file, diag, Reading { mode, connections })?)
}

/// Captured unix sockets whose peers nobody in the container has.
pub(super) fn outside(files: &[OpenFile], inode: impl Fn(FileId) -> u64) -> Vec<(FileId, Refusal)> {
    let mut ids = HashMap::new();
    let mut found = Vec::new();
    for file in files {
        if let FileKind::Socket(socket) = &file.kind {
            ids.insert(inode(file.id), file.id);
            found.push(&**socket);
        }
    }
    let named = |(inode, refused): (u64, SocketRefusal)| {
        ids.get(&inode).map(|id| (*id, Refused::from(refused).refusal))
    };
    strangers(found.into_iter()).into_iter().filter_map(named).collect()
}
