//! Descriptors of the copy: the agent opens or makes every open file description itself, with its own
//! privileges, and hands each to the processes that had it.
//!
//! In every round [`Ahead::follow`] opens what processes have open by its path, and what they listen on; [`restore`],
//! after the final dump, while every task of the skeleton is stopped, does the rest. Whatever else the
//! processes had open before is closed, also what the runtime left. Everything that comes from the source is
//! checked first. Opening by path relies on both hosts showing the same bind mounts and root file system.
//!
//! Kernel: pidfd_getfd(2), openat2(2) (Linux 5.6), close_range(2) (5.9). Thread: the one that owns ptrace.
//! Failure: nothing of the copy has run; the skeleton is to be discarded.

mod ahead;
mod epoll;
mod error;
mod event;
mod owner;
mod path;
mod pipe;
mod stdio;
mod table;
mod terminal;
mod timer;
mod validate;

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

pub use ahead::{Ahead, Installed, Tables};
pub use error::FilesError;
pub use validate::{ahead as check_ahead, all as check};

use self::ahead::Claims;
use self::stdio::Streams;
use self::terminal::Workshop;
use self::timer::Timer;
use super::sockets::{Builder, BuiltSockets};
use super::terminals::Terminals;
use crate::memory::ObjectStore;
use crate::model::socket::Socket;
use crate::model::{Descriptor, FileId, FileKind, OpenFile, Vpid};
use crate::proc::root::ContainerRoot;
use crate::remote::Processes;
use crate::sys::{fcntl, signalfd};

/// The init of a container, inside it.
const INIT: Vpid = Vpid(1);

/// What was restored.
#[derive(Debug)]
pub struct RestoredFiles {
    /// The sockets; [`BuiltSockets::go`] brings connections to life when the network is open.
    pub sockets: BuiltSockets,
    /// What is less than it was at the source, for the administrator.
    pub warnings: Vec<String>,
}

/// Where files are opened.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The root directory of the created container.
    pub root: &'a ContainerRoot,
    /// Its files in memory.
    pub objects: &'a ObjectStore,
}

/// Opens `files` and gives every process of `wanted` its descriptors, and nothing else. `ahead` is open already, in these
/// tables; `sockets` builds in the container's network namespace, `terminals` has those that sessions have already.
///
/// On Ok every descriptor is in its place and TCP connections are still in repair mode.
pub fn restore(
    files: &[OpenFile],
    wanted: &[(Vpid, Vec<Descriptor>)],
    Place { root, objects }: Place<'_>,
    (mut ahead, mut tables): (Ahead, Tables),
    sockets: &mut Builder,
    terminals: &mut Terminals,
    processes: &mut dyn Processes,
) -> Result<RestoredFiles, FilesError> {
    validate::all(files, wanted)?;
    let streams = ahead.streams.take();
    let (opened, claims) = ahead.take(files, wanted, &mut tables, root, processes)?;
    let sockets = sockets.build(&sockets_of(files, &opened))?;
    let mut opening = Opening { root, objects, opened, warnings: Vec::new() };
    let mut workshop = Workshop { root, terminals, processes: &mut *processes };
    terminal::make_all(files, &mut workshop, &mut opening.opened)?;
    opening.open_all(files, wanted, streams, processes)?;
    let Opening { opened, warnings, .. } = opening;
    give(&opened, &sockets, wanted, (&tables, &claims), processes)?;
    owner::set_all(files, wanted, processes)?;
    epoll::add_watches(files, wanted, processes)?;
    Ok(RestoredFiles { sockets, warnings })
}

/// The sockets that are not there yet.
fn sockets_of<'a>(
    files: &'a [OpenFile],
    opened: &HashMap<FileId, OwnedFd>,
) -> Vec<(FileId, &'a Socket, i32)> {
    let mut sockets = Vec::new();
    for file in files.iter().filter(|file| !opened.contains_key(&file.id)) {
        if let FileKind::Socket(socket) = &file.kind {
            sockets.push((file.id, &**socket, file.flags));
        }
    }
    sockets
}

fn give(
    opened: &HashMap<FileId, OwnedFd>,
    sockets: &BuiltSockets,
    wanted: &[(Vpid, Vec<Descriptor>)],
    (tables, claims): (&Tables, &Claims),
    processes: &mut dyn Processes,
) -> Result<(), FilesError> {
    let all: HashMap<FileId, BorrowedFd<'_>> =
        opened.iter().chain(&sockets.fds).map(|(id, file)| (*id, file.as_fd())).collect();
    for (vpid, descriptors) in wanted {
        let missing = || FilesError::NoProcess { vpid: *vpid };
        let pid = processes.pid(*vpid).ok_or_else(missing)?;
        let task = processes.leader(*vpid).ok_or_else(missing)?;
        let known = tables.get(vpid);
        match table::fill(task, (pid, *vpid), descriptors, &all, (known, claims)) {
            // It is not what it was taken for.
            Err(error @ FilesError::Numbers { .. }) if known.is_some() => {
                tracing::warn!(%vpid, %error, "the descriptors of a restorer are put in place anew");
                table::fill(task, (pid, *vpid), descriptors, &all, (None, claims))?;
            }
            filled => filled?,
        }
    }
    Ok(())
}

/// Files that are being opened.
struct Opening<'a> {
    root: &'a ContainerRoot,
    objects: &'a ObjectStore,
    opened: HashMap<FileId, OwnedFd>,
    warnings: Vec<String>,
}

impl Opening<'_> {
    fn open_all(
        &mut self,
        files: &[OpenFile],
        wanted: &[(Vpid, Vec<Descriptor>)],
        streams: Option<Streams>,
        processes: &dyn Processes,
    ) -> Result<(), FilesError> {
        let init = processes.pid(INIT).ok_or(FilesError::NoProcess { vpid: INIT })?;
        let mut streams = streams.map_or_else(|| Streams::fetch(init), Ok)?;
        pipe::make_all(files, self.root, &mut self.opened, &mut self.warnings)?;
        let of_init = wanted.iter().find(|(vpid, _)| *vpid == INIT).map_or(&[][..], |(_, all)| all);
        for file in stdio::own_first(files, of_init) {
            if !self.opened.contains_key(&file.id)
                && let Some(opened) = self.open(file, &mut streams)?
            {
                self.opened.insert(file.id, opened);
            }
        }
        Ok(())
    }

    /// `None` for what is made elsewhere: pipes, terminals and sockets.
    fn open(&self, file: &OpenFile, streams: &mut Streams) -> Result<Option<OwnedFd>, FilesError> {
        match &file.kind {
            FileKind::Path { path, offset, file_type } => {
                path::open(self.root, path, file.flags, *offset, *file_type).map(Some)
            }
            FileKind::Memory { object, offset } => {
                let found = self.objects.file(*object);
                let found = found.ok_or_else(|| FilesError::Invalid {
                    what: format!("open file {} of memory that was not announced", file.id.0),
                })?;
                path::open_again(found, file, *offset).map(Some)
            }
            FileKind::Stdio(stream) => streams.take(*stream, file.flags).map(Some),
            FileKind::Event { count, semaphore } => {
                with_flags(file, "make an eventfd", event::make(*count, *semaphore))
            }
            FileKind::Timer { clock, settime_flags, left_ns, interval_ns, ticks } => {
                let timer = Timer {
                    clock: *clock,
                    settime_flags: *settime_flags,
                    left_ns: *left_ns,
                    interval_ns: *interval_ns,
                    ticks: *ticks,
                };
                with_flags(file, "make a timer descriptor", timer::make(timer))
            }
            FileKind::Signal { mask } => with_flags(file, "make a signalfd", signalfd::create(*mask, 0)),
            FileKind::Epoll { .. } => with_flags(file, "make an epoll instance", crate::sys::epoll::create()),
            FileKind::Pipe { .. } | FileKind::Socket(_) | FileKind::Master(_) | FileKind::Slave { .. } => {
                Ok(None)
            }
        }
    }
}

/// Sets the status flags of a file that was made without any.
fn with_flags(
    file: &OpenFile,
    verb: &'static str,
    made: Result<OwnedFd, Errno>,
) -> Result<Option<OwnedFd>, FilesError> {
    let made = made.map_err(FilesError::make(verb, file.id))?;
    fcntl::set_status(&made, file.flags & !libc::O_ASYNC)
        .map_err(FilesError::make("set the status flags", file.id))?;
    Ok(Some(made))
}
