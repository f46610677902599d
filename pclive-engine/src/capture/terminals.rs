//! Controlling terminals: each must be one that is carried with the container.
//!
//! Pure but for the reading of a running container. Kernel: `tty_nr` of `/proc/PID/stat`.

use super::CaptureError;
use super::check::{blocker, live_ids};
use super::files::{Mode, Table};
use super::tree::{self, TreeProcess};
use crate::model::terminal::number_of_device;
use crate::model::{Blocker, FileKind, OpenFile, Pid, Place};

/// Sessions of a running container whose terminals are not carried, found at two looks.
pub(super) fn check(init: Pid, files: &Table) -> Result<Vec<Blocker>, CaptureError> {
    let mut found = look(init, files)?;
    if !found.is_empty() {
        // A terminal that was made between the readings of processes and descriptors is no stranger.
        let again = look(init, files)?;
        found.retain(|blocker| again.contains(blocker));
    }
    Ok(found)
}

fn look(init: Pid, files: &Table) -> Result<Vec<Blocker>, CaptureError> {
    let tree = tree::read(init)?;
    if tree.iter().all(|process| process.terminal == 0) {
        return Ok(Vec::new());
    }
    let found = files.collect(&live_ids(&tree), Mode::Check)?;
    Ok(not_carried(tree.iter(), &found.files))
}

/// Leaders of sessions whose controlling terminal is not among `files`.
pub(super) fn not_carried<'a>(
    tree: impl Iterator<Item = &'a TreeProcess>,
    files: &[OpenFile],
) -> Vec<Blocker> {
    let leads = tree.filter(|process| process.terminal != 0 && process.sid == process.vpid);
    let is_carried = |process: &TreeProcess| {
        let number = number_of_device(process.terminal.into());
        files.iter().any(|file| match &file.kind {
            FileKind::Master(terminal) => {
                Some(terminal.number) == number
                    && terminal.session.is_some_and(|session| session.leader == process.vpid)
            }
            FileKind::Path { .. }
            | FileKind::Memory { .. }
            | FileKind::Pipe { .. }
            | FileKind::Stdio(_)
            | FileKind::Event { .. }
            | FileKind::Timer { .. }
            | FileKind::Signal { .. }
            | FileKind::Epoll { .. }
            | FileKind::Socket(_)
            | FileKind::Slave { .. } => false,
        })
    };
    let refused = leads.filter(|process| !is_carried(process));
    refused.map(refuse).collect()
}

fn refuse(process: &TreeProcess) -> Blocker {
    let what = match number_of_device(process.terminal.into()) {
        Some(number) => format!("its controlling terminal {number} is not the container's own"),
        None => "its controlling terminal is the host's".into(),
    };
    let hint = "create the container without a terminal (process.terminal: false, no -t)";
    blocker(process, Place::Process, what, hint)
}
