//! Descriptors of a container, and the open file descriptions behind them.
//!
//! [`Table::open`] once for a container, then [`Table::collect`] for the check, while the container runs, and for
//! the final dump, while every task is stopped. Nothing in the container changes: queues are copied where they
//! are, offsets and counters are read from `/proc`. Descriptors that share one description (dup(2), fork(2))
//! come out as one [`OpenFile`].
//!
//! Every descriptor's link and fdinfo are read once, every description is duplicated once; sharing is found by
//! sorting. Bind mounts and the root file system are taken to be the same at the destination.
//!
//! Kernel: pidfd_getfd(2) (Linux 5.6), kcmp(2) with epoll targets (4.13), `ino` in fdinfo (5.14).
//! Failure: what cannot be carried is a [`Blocker`], all of them at once; [`FilesError`] is a failed operation.

mod description;
mod epoll;
mod event;
mod holder;
mod mounts;
mod owner;
mod path;
mod pipe;
mod refusal;
mod scene;
mod signal;
mod socket;
mod stdio;
mod threads;
mod timer;

use std::os::fd::OwnedFd;

use nix::errno::Errno;

use self::description::Description;
use self::epoll::Resolver;
use self::holder::Holder;
use self::mounts::Mounts;
use self::owner::Owners;
use self::refusal::{Refusal, printable, special_file};
use self::scene::{Finding, Sample, Scene};
use self::stdio::Stdio;
use crate::capture::sockets::{DiagFailure, SockDiag, UnixDiag};
use crate::model::{Blocker, Descriptor, FileId, FileKind, OpenFile, Pid, Place, Vpid};
use crate::proc::fdinfo::FdInfoError;
use crate::proc::mountinfo::MountInfoError;
use crate::proc::root::ContainerRoot;

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
    /// The TCP connections that the dump silenced. Keep it until the container is destroyed or let go.
    pub sockets: SocketGuards,
}

/// Failure to read a container's descriptors. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// An operation on a process.
    #[error("cannot {verb} process {pid}")]
    Process {
        /// "list the descriptors of" ...
        verb: &'static str,
        /// The process.
        pid: Pid,
        /// Why.
        source: Errno,
    },
    /// An operation on a descriptor.
    #[error("cannot {verb} descriptor {fd} of process {pid}")]
    Descriptor {
        /// "duplicate" ...
        verb: &'static str,
        /// The process.
        pid: Pid,
        /// The number.
        fd: i32,
        /// Why.
        source: Errno,
    },
    /// fdinfo that is not understood.
    #[error("cannot read the fdinfo of descriptor {fd} of process {pid}")]
    Info {
        /// The process.
        pid: Pid,
        /// The number.
        fd: i32,
        /// The line.
        source: FdInfoError,
    },
    /// A file of /proc.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// mountinfo that is not understood.
    #[error("cannot parse {path}")]
    Mounts {
        /// The file.
        path: String,
        /// The line.
        source: MountInfoError,
    },
    /// A path of the container that cannot be looked at.
    #[error("cannot look at {path} in the container")]
    Resolve {
        /// The path, made printable.
        path: String,
        /// Why.
        source: Errno,
    },
    /// An operation on a pipe.
    #[error("cannot {verb} pipe {inode}")]
    Pipe {
        /// "copy the queue of" ...
        verb: &'static str,
        /// The pipe.
        inode: u64,
        /// Why.
        source: Errno,
    },
    /// A timer that cannot be read.
    #[error("cannot read a timer descriptor (inode {inode})")]
    Timer {
        /// Its inode.
        inode: u64,
        /// Why.
        source: Errno,
    },
    /// The network namespace's list of unix sockets.
    #[error("cannot list the unix sockets of the container")]
    Unix(#[from] DiagFailure),
    /// The owner of a description.
    #[error("cannot read the signal owner of a descriptor (inode {inode})")]
    Owner {
        /// Its inode.
        inode: u64,
        /// Why.
        source: Errno,
    },
}

impl FilesError {
    /// The process, descriptor or path was there a moment ago.
    fn is_loss(&self) -> bool {
        let lost = |errno: Errno| matches!(errno, Errno::ESRCH | Errno::EBADF | Errno::ENOENT);
        match self {
            Self::Process { source, .. }
            | Self::Descriptor { source, .. }
            | Self::Resolve { source, .. }
            | Self::Pipe { source, .. }
            | Self::Timer { source, .. }
            | Self::Owner { source, .. } => lost(*source),
            Self::Read { source, .. } => {
                source.raw_os_error().is_some_and(|errno| lost(Errno::from_raw(errno)))
            }
            Self::Info { .. } | Self::Mounts { .. } | Self::Unix(_) => false,
        }
    }
}

/// The descriptors of a container: what does not change between two collections.
#[derive(Debug)]
pub struct Table {
    init: Pid,
    root: ContainerRoot,
    diag: SockDiag,
}

impl Table {
    /// Opens the container whose init is `init`.
    pub fn open(init: Pid) -> Result<Self, FilesError> {
        let root = ContainerRoot::open(init).map_err(|source| FilesError::Process {
            verb: "open the root directory of",
            pid: init,
            source,
        })?;
        Ok(Self { init, root, diag: SockDiag::open(init)? })
    }

    /// Collects the descriptors of `processes` (all live processes of the container). A check that finds
    /// something looks a second time: what a running program has opened or closed between two readings can look
    /// like something that it is not.
    pub fn collect(&self, processes: &[(Pid, Vpid)], mode: Mode) -> Result<Files, FilesError> {
        let mut files = self.collect_once(processes, mode)?;
        if mode == Mode::Check && !files.blockers.is_empty() {
            let again = self.collect_once(processes, mode)?;
            files.blockers.retain(|blocker| again.blockers.contains(blocker));
        }
        Ok(files)
    }

    fn collect_once(&self, processes: &[(Pid, Vpid)], mode: Mode) -> Result<Files, FilesError> {
        let mut holders = Vec::with_capacity(processes.len());
        for (pid, vpid) in processes {
            holders.extend(mode.forgive(Holder::scan(*pid, *vpid, mode))?);
        }
        let descriptions = description::group(&mut holders, mode)?;
        let mounts = Mounts::read(self.init)?;
        let scene = Scene {
            holders: &holders,
            root: &self.root,
            mounts: &mounts,
            pipes: pipe::ends(&holders, &descriptions),
            mode,
        };
        let init = holders.iter().find(|holder| holder.pid == self.init);
        let diag = self.diag.take()?;
        let collection = Collection {
            scene: &scene,
            diag: &diag,
            stdio: Stdio::of(init, mode)?,
            owners: Owners::new(&holders),
            resolver: Resolver::new(&holders, mode),
            found: Files::default(),
        };
        let mut found = collection.run(&descriptions)?;
        for (h, place, refusal) in threads::check(&holders, mode)? {
            found.blockers.push(blocker(&holders[h], place, refusal));
        }
        for (point, refusal) in mounts.with_data(&self.root, mode)? {
            found.blockers.extend(init.map(|init| blocker(init, Place::Mount(point), refusal)));
        }
        found.descriptors = holders.iter().map(descriptors).collect();
        Ok(found)
    }
}

/// A collection that is going on.
struct Collection<'a> {
    scene: &'a Scene<'a>,
    diag: &'a UnixDiag,
    stdio: Stdio,
    owners: Owners,
    resolver: Resolver<'a>,
    found: Files,
}

impl Collection<'_> {
    fn run(mut self, descriptions: &[Description]) -> Result<Files, FilesError> {
        for (index, description) in descriptions.iter().enumerate() {
            let captured = self.capture(index, description);
            match self.scene.mode.forgive(captured)?.flatten() {
                Some(Ok(file)) => self.found.files.push(file),
                Some(Err(refusal)) => {
                    let blocker = self.blocker(description, refusal);
                    self.found.blockers.push(blocker);
                }
                None => {}
            }
        }
        self.judge_peers(descriptions)?;
        Ok(self.found)
    }

    /// `None` for a socket that is in passing.
    fn capture(
        &mut self,
        index: usize,
        description: &Description,
    ) -> Result<Option<Result<OpenFile, Refusal>>, FilesError> {
        let sample = Sample::take(self.scene.holders, index, description)?;
        let owner = self.owners.find(&sample)?;
        let stream = self.stdio.find(&sample).map(FileKind::Stdio);
        let flags = sample.info.status();
        let finding = if description::is_socket(sample.target) {
            self.capture_socket(description, sample.file)
        } else {
            Some(self.classify(description, &sample)?)
        };
        let kind = match finding {
            None => return Ok(None),
            Some(Finding::Carried(kind)) => kind,
            Some(Finding::Outside { refusal, substitute }) => match stream.or(substitute) {
                Some(kind) => kind,
                None => return Ok(Some(Err(refusal))),
            },
            Some(Finding::Refused(refusal)) => return Ok(Some(Err(refusal))),
        };
        Ok(Some(Ok(OpenFile { id: FileId(index as u32), flags, owner, kind })))
    }

    fn classify(&self, description: &Description, sample: &Sample<'_>) -> Result<Finding, FilesError> {
        let detail = &sample.info.detail;
        let kind = match sample.target {
            target if target.starts_with(b"/") => return path::capture(self.scene, description, sample),
            target if target.starts_with(b"pipe:[") => return pipe::capture(self.scene, sample, None),
            b"anon_inode:[eventfd]" => event::capture(detail),
            b"anon_inode:[timerfd]" => timer::capture(self.scene, sample)?,
            b"anon_inode:[signalfd]" => signal::capture(detail),
            b"anon_inode:[eventpoll]" => match self.resolver.capture(description)? {
                Ok(kind) => Some(kind),
                Err(refusal) => return Ok(Finding::Refused(refusal)),
            },
            _ => None,
        };
        Ok(kind.map_or_else(|| Finding::Refused(special_file(sample.target)), Finding::Carried))
    }

    fn capture_socket(&mut self, description: &Description, file: OwnedFd) -> Option<Finding> {
        match socket::capture(file, self.diag, self.scene.mode) {
            Ok(captured) => {
                self.found.sockets.push(captured.guard);
                Some(Finding::Carried(FileKind::Socket(Box::new(captured.socket))))
            }
            Err(refused) if !refused.transient => {
                Some(Finding::Outside { refusal: refused.refusal, substitute: None })
            }
            Err(refused) => {
                if self.scene.mode == Mode::Dump {
                    let blocker = self.blocker(description, refused.refusal);
                    self.found.transient.push(blocker);
                }
                None
            }
        }
    }

    /// Unix sockets whose peers turned out to be outside: stdio, or refused.
    fn judge_peers(&mut self, descriptions: &[Description]) -> Result<(), FilesError> {
        let description = |id: FileId| &descriptions[id.0 as usize];
        let inode = |id: FileId| description(id).first(self.scene.holders).1.info.inode;
        for (id, refusal) in socket::outside(&self.found.files, inode) {
            let sample = Sample::take(self.scene.holders, id.0 as usize, description(id));
            let stream = self.scene.mode.forgive(sample)?.and_then(|sample| self.stdio.find(&sample));
            match (stream, self.found.files.iter().position(|file| file.id == id)) {
                (Some(stream), Some(at)) => self.found.files[at].kind = FileKind::Stdio(stream),
                (None, Some(at)) => {
                    self.found.files.remove(at);
                    let blocker = self.blocker(description(id), refusal);
                    self.found.blockers.push(blocker);
                }
                (_, None) => {}
            }
        }
        Ok(())
    }

    fn blocker(&self, description: &Description, refusal: Refusal) -> Blocker {
        let (holder, entry) = description.first(self.scene.holders);
        blocker(holder, Place::Descriptor(entry.fd), refusal)
    }
}

fn blocker(holder: &Holder, place: Place, refusal: Refusal) -> Blocker {
    let comm = std::fs::read(format!("/proc/{}/comm", holder.pid)).unwrap_or_default();
    let comm = printable(comm.strip_suffix(b"\n").unwrap_or(&comm));
    Blocker { pid: holder.pid.0, vpid: holder.vpid, comm, place, what: refusal.what, hint: refusal.hint }
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
