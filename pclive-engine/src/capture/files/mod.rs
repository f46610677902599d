//! Descriptors of a container, and the open file descriptions behind them.
//!
//! [`Table::open`] once for a container, then [`Table::check`] while the container runs, and [`Table::collect`] for
//! the final dump, while every task is stopped. Nothing in the container changes: queues are copied where they
//! are, offsets and counters are read from `/proc`. Descriptors that share one description (dup(2), fork(2))
//! come out as one [`OpenFile`].
//!
//! Every descriptor's link and fdinfo are read once, every description is duplicated once; sharing is found by
//! sorting. Bind mounts and the root file system are taken to be the same at the destination.
//!
//! Kernel: pidfd_getfd(2) (Linux 5.6), kcmp(2) with epoll targets (4.13), `ino` in fdinfo (5.14).
//! Failure: what cannot be carried is a [`Blocker`], all of them at once; [`FilesError`] is a failed operation.

mod ahead;
mod bound;
mod collection;
mod description;
mod epoll;
mod error;
mod event;
mod holder;
pub(crate) mod mounts;
mod nameless;
mod owner;
mod path;
mod pipe;
mod refusal;
mod scene;
mod signal;
mod socket;
mod stdio;
mod terminal;
mod threads;
mod timer;

use std::time::Duration;

use self::collection::{Collection, blocker};
use self::description::Description;
use self::epoll::Resolver;
use self::holder::Holder;
use self::mounts::Mounts;
use self::owner::Owners;
use self::scene::Scene;
use self::stdio::Stdio;
use crate::capture::sockets::{Connections, SockDiag};
use crate::memory::Objects;
use crate::model::{Blocker, Descriptor, FileId, OpenFile, Pid, Place, Vpid};
use crate::proc::root::ContainerRoot;

pub use self::ahead::{FilesAhead, Listeners};
pub use self::error::FilesError;
pub use self::path::is_carried_device;
pub use self::socket::SocketGuards;

/// What a collection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Find what cannot be carried, while the container runs. Contents are not read, and what goes away meanwhile
    /// is left out.
    Check,
    /// Read everything; every task is stopped.
    Dump,
}

impl Mode {
    /// Turns the loss of a process, descriptor or path into `None` where the container runs on meanwhile.
    fn forgive<T>(self, result: Result<T, FilesError>) -> Result<Option<T>, FilesError> {
        match (self, result) {
            (_, Ok(value)) => Ok(Some(value)),
            (Self::Check, Err(error)) if error.is_loss() => Ok(None),
            (Self::Check | Self::Dump, Err(error)) => Err(error),
        }
    }
}

/// What was found.
#[derive(Debug, Default)]
pub struct Files {
    /// Open file descriptions, ascending by id. Those that are refused are left out.
    pub files: Vec<OpenFile>,
    /// Every process's descriptors, ascending by number.
    pub descriptors: Vec<(Vpid, Vec<Descriptor>)>,
    /// What cannot be carried.
    pub blockers: Vec<Blocker>,
    /// What cannot be carried just now (a connection that waits to be accepted): let the container run for a
    /// moment and dump again. Always empty after a check.
    pub transient: Vec<Blocker>,
    /// The TCP connections that the dump has read. Keep it until the container is destroyed or let go.
    pub sockets: SocketGuards,
}

/// The descriptors of a container: what does not change between two collections.
#[derive(Debug)]
pub struct Table {
    init: Pid,
    root: ContainerRoot,
    diag: SockDiag,
    connections: Connections,
}

impl Table {
    /// Opens the container whose init is `init`.
    pub fn open(init: Pid) -> Result<Self, FilesError> {
        let root = ContainerRoot::open(init).map_err(|source| FilesError::Process {
            verb: "open the root directory of",
            pid: init,
            source,
        })?;
        Ok(Self { init, root, diag: SockDiag::open(init)?, connections: Connections::Carry })
    }

    /// The same with another fate of TCP connections.
    pub fn with(self, connections: Connections) -> Self {
        Self { connections, ..self }
    }

    /// The container's file tree.
    pub(crate) fn root(&self) -> &ContainerRoot {
        &self.root
    }

    /// What cannot be carried, while the container runs; `processes` lists its live processes as they are now.
    ///
    /// If there is something, everything is looked at once more, with a new list: a pipe whose other end went to a
    /// child that was born after the first looks like one that leads out of the container. What was found twice
    /// is told.
    pub fn check<E: From<FilesError>>(
        &self,
        objects: &Objects,
        mut processes: impl FnMut() -> Result<Vec<(Pid, Vpid)>, E>,
    ) -> Result<Vec<Blocker>, E> {
        let mut blockers = self.collect_knowing(&processes()?, Mode::Check, objects)?.blockers;
        if !blockers.is_empty() {
            let again = self.collect_knowing(&processes()?, Mode::Check, objects)?.blockers;
            blockers.retain(|blocker| again.contains(blocker));
        }
        Ok(blockers)
    }

    /// Collects the descriptors of `processes`: all live processes of the container.
    pub fn collect(&self, processes: &[(Pid, Vpid)], mode: Mode) -> Result<Files, FilesError> {
        self.collect_knowing(processes, mode, &Objects::new())
    }

    /// The same; `objects` has the files in memory that no path leads to.
    pub(crate) fn collect_knowing(
        &self,
        processes: &[(Pid, Vpid)],
        mode: Mode,
        objects: &Objects,
    ) -> Result<Files, FilesError> {
        self.look_at(processes, mode, objects, |scene, descriptions| {
            let holders = scene.holders;
            let init = holders.iter().find(|holder| holder.pid == self.init);
            let diag = self.diag.take()?;
            let collection = Collection {
                scene,
                diag: &diag,
                stdio: Stdio::of(init, mode)?,
                owners: Owners::new(holders),
                resolver: Resolver::new(holders, mode),
                found: Files::default(),
            };
            let (mut found, unfinished) = std::thread::scope(|scope| {
                // The kernel looks through the connections of the whole machine, which takes as long as all the rest. Nothing
                // else asks over this socket meanwhile: only checks ask for single connections.
                let unfinished =
                    (mode == Mode::Dump).then(|| scope.spawn(|| self.diag.unfinished(self.connections)));
                let found = collection.run(descriptions)?;
                let unfinished = unfinished.map(|thread| thread.join().map_err(|_| FilesError::Thread));
                Ok::<_, FilesError>((found, unfinished.transpose()?.transpose()?.unwrap_or_default()))
            })?;
            for (h, place, refusal) in threads::check(holders, mode)? {
                found.blockers.push(blocker(&holders[h], place, refusal));
            }
            found.descriptors = holders.iter().map(descriptors).collect();
            if let Some(holder) = holders.first() {
                let refusals = unfinished.into_iter().map(|refused| socket::Refused::from(refused).refusal);
                found.transient.extend(refusals.map(|refusal| blocker(holder, Place::Process, refusal)));
            }
            Ok(found)
        })
    }

    /// Reads the tables of `processes` and finds out which descriptors share a description.
    fn look_at<T>(
        &self,
        processes: &[(Pid, Vpid)],
        mode: Mode,
        objects: &Objects,
        action: impl FnOnce(&Scene<'_>, &[Description]) -> Result<T, FilesError>,
    ) -> Result<T, FilesError> {
        let mut holders = holder::scan(processes, mode)?;
        let descriptions = description::group(&mut holders, mode)?;
        let mounts = Mounts::read(self.init)?;
        let scene = Scene {
            holders: &holders,
            root: &self.root,
            mounts: &mounts,
            pipes: pipe::ends(&holders, &descriptions),
            objects,
            mode,
            connections: self.connections,
        };
        action(&scene, &descriptions)
    }

    /// Waits, while the container runs, for a moment in which a dump finds no TCP connection that nobody has a descriptor
    /// of; not longer than `limit`. Whether there was one shows at the dump.
    pub fn await_connections(&self, limit: Duration) -> Result<(), FilesError> {
        Ok(self.diag.await_finish(limit, self.connections)?)
    }
}

fn descriptors(holder: &Holder) -> (Vpid, Vec<Descriptor>) {
    let descriptor = |entry: &holder::Entry| Descriptor {
        fd: entry.fd,
        file: FileId(entry.file as u32),
        close_on_exec: entry.info.close_on_exec(),
    };
    (holder.vpid, holder.entries.iter().map(descriptor).collect())
}

#[cfg(test)]
mod tests;
