//! epoll(7): an empty instance is made with the other files; its watches are added at last, by a process that has
//! both the instance and the watched file, because an entry belongs to the number under which it was added.
//!
//! The kernel accepts the entries of nested instances in any order. An entry that `EPOLLONESHOT` has switched off
//! is switched on for errors and hang-ups again: there is no way to add one that is off.

use std::collections::HashMap;

use super::error::FilesError;
use crate::model::file::EpollWatch;
use crate::model::{Descriptor, FileId, FileKind, OpenFile, Vpid};
use crate::remote::{Batch, Processes};
use crate::sys::epoll;

/// Watches added in one batch.
const PER_BATCH: usize = 500;

/// A watch and the number of its instance in the process.
type Addition<'a> = (i32, &'a EpollWatch);

/// Adds all watches; the descriptors of every process are in place.
pub(super) fn add_watches(
    files: &[OpenFile],
    wanted: &[(Vpid, Vec<Descriptor>)],
    processes: &mut dyn Processes,
) -> Result<(), FilesError> {
    let additions = additions(files, wanted);
    for (vpid, _) in wanted {
        for part in additions.get(vpid).map_or(&[][..], Vec::as_slice).chunks(PER_BATCH) {
            add(*vpid, part, processes)?;
        }
    }
    Ok(())
}

/// What every process has to add.
fn additions<'a>(
    files: &'a [OpenFile],
    wanted: &[(Vpid, Vec<Descriptor>)],
) -> HashMap<Vpid, Vec<Addition<'a>>> {
    let mut numbers: HashMap<(Vpid, FileId), i32> = HashMap::new();
    for (vpid, descriptors) in wanted {
        for descriptor in descriptors {
            numbers.entry((*vpid, descriptor.file)).or_insert(descriptor.fd);
        }
    }
    let mut additions: HashMap<Vpid, Vec<Addition<'a>>> = HashMap::new();
    for file in files {
        let FileKind::Epoll { watches } = &file.kind else { continue };
        for watch in watches {
            // Validated: the process has the instance.
            if let Some(number) = numbers.get(&(watch.process, file.id)) {
                additions.entry(watch.process).or_default().push((*number, watch));
            }
        }
    }
    additions
}

fn add(vpid: Vpid, part: &[Addition<'_>], processes: &mut dyn Processes) -> Result<(), FilesError> {
    let task = processes.leader(vpid).ok_or(FilesError::NoProcess { vpid })?;
    let mut batch = Batch::new(task);
    let mut tickets = Vec::with_capacity(part.len());
    for (instance, watch) in part {
        let event = batch.place(&epoll::event(watch.events, watch.data))?;
        let arguments = [*instance as u64, libc::EPOLL_CTL_ADD as u64, watch.fd as u64, event.address()];
        tickets.push(batch.call(libc::SYS_epoll_ctl, &arguments));
    }
    let answers = batch.run(task)?;
    for (ticket, (_, watch)) in tickets.into_iter().zip(part) {
        answers.result(ticket).map_err(|source| FilesError::Descriptor {
            verb: "watch (epoll)",
            vpid,
            fd: watch.fd,
            source,
        })?;
    }
    Ok(())
}
