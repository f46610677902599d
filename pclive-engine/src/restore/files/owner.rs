//! Who gets SIGIO (fcntl(2), `F_SETOWN_EX`, `F_SETSIG`, `O_ASYNC`).
//!
//! Set by a process that has the file: the ids are those of its PID namespace, the signal is sent with its
//! credentials, and the kernel tells the number under which `O_ASYNC` was set.

use std::collections::HashSet;

use super::error::FilesError;
use crate::model::{Descriptor, FileId, OpenFile, Vpid};
use crate::remote::{Batch, Processes, Ticket};
use crate::sys::fcntl;

/// Files in one batch.
const PER_BATCH: usize = 100;

/// Sets owners, signals and `O_ASYNC` of the files that have them, by the first process that has each file.
pub(super) fn set_all(
    files: &[OpenFile],
    wanted: &[(Vpid, Vec<Descriptor>)],
    processes: &mut dyn Processes,
) -> Result<(), FilesError> {
    let concerned = |file: &&OpenFile| file.owner.is_some() || file.flags & libc::O_ASYNC != 0;
    let mut waiting: std::collections::HashMap<FileId, &OpenFile> =
        files.iter().filter(concerned).map(|file| (file.id, file)).collect();
    for (vpid, descriptors) in wanted {
        let mut own: Vec<(i32, &OpenFile)> = Vec::new();
        let mut seen = HashSet::new();
        for descriptor in descriptors {
            if let Some(file) = waiting.get(&descriptor.file)
                && seen.insert(descriptor.file)
            {
                own.push((descriptor.fd, file));
            }
        }
        for part in own.chunks(PER_BATCH) {
            set(*vpid, part, processes)?;
        }
        waiting.retain(|file, _| !seen.contains(file));
    }
    Ok(())
}

fn set(vpid: Vpid, part: &[(i32, &OpenFile)], processes: &mut dyn Processes) -> Result<(), FilesError> {
    let task = processes.leader(vpid).ok_or(FilesError::NoProcess { vpid })?;
    let mut batch = Batch::new(task);
    let mut tickets = Vec::new();
    for (fd, file) in part {
        calls(&mut batch, *fd, file, &mut tickets)?;
    }
    let answers = batch.run(task)?;
    for (ticket, fd) in tickets {
        answers.result(ticket).map_err(|source| FilesError::Descriptor {
            verb: "set the signal owner of",
            vpid,
            fd,
            source,
        })?;
    }
    Ok(())
}

fn calls(
    batch: &mut Batch,
    fd: i32,
    file: &OpenFile,
    tickets: &mut Vec<(Ticket, i32)>,
) -> Result<(), FilesError> {
    let mut control = |batch: &mut Batch, command: i32, argument: u64| {
        tickets.push((batch.call(libc::SYS_fcntl, &[fd as u64, command as u64, argument]), fd));
    };
    if let Some(owner) = file.owner {
        if owner.id.0 != 0 {
            let bytes = [owner.kind.to_ne_bytes(), owner.id.0.to_ne_bytes()].concat();
            let owner = batch.place(&bytes)?.address();
            control(batch, fcntl::SET_OWNER, owner);
        }
        control(batch, fcntl::SET_SIGNAL, owner.signal as u64);
    }
    if file.flags & libc::O_ASYNC != 0 {
        control(batch, libc::F_SETFL, file.flags as u64);
    }
    Ok(())
}
