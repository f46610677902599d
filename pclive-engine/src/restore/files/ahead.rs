//! Files that restorers have open before the stop.
//!
//! To open a file by its path takes most of the time that a descriptor costs. What processes have open while the
//! container runs is therefore opened, and put in its place, round by round. At the stop a file is taken only if its path
//! still leads to it: it is the same then as if it were opened at that moment. This holds for file systems whose names
//! and inodes this kernel alone looks after; files of others, and what cannot be opened ahead, are left for the stop.
//! Listening TCP sockets are made ahead too, behind the locked network; at the stop one is taken if it is just what is
//! wanted, and nothing else is to be bound to its port: a socket that listens is in the way of others.
//!
//! Invariant: an [`Installed`] table is what the restorer has, and nothing else. Where that is not known there is none.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::fstat;
use nix::sys::statfs::fstatfs;

use super::error::FilesError;
use super::stdio::Streams;
use super::{INIT, path, table};
use crate::model::socket::{Socket, SocketKind};
use crate::model::{Descriptor, FileId, FileKind, OpenFile, OpenFiles, Pid, Vpid};
use crate::proc::root::ContainerRoot;
use crate::remote::Processes;
use crate::restore::sockets::{Builder, BuiltSockets};

/// Most files that are open ahead: more are left for the stop. At most a quarter of what the agent may have open, too.
const MOST_FILES: usize = 1 << 14;
/// Numbers that stay free in every table, so that the engine can hand descriptors in for its own purposes.
const RESERVE: u64 = 256;

/// ext2 to ext4, XFS, Btrfs, F2FS, ZFS, tmpfs, overlayfs, SquashFS and EROFS: the names of others (a network's, FUSE's) change
/// without this kernel's knowledge, and their inode numbers may be used again while a file is open.
const LOCAL: [i64; 9] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0xf2f5_2010,
    0x2fc1_2fc1,
    0x0102_1994,
    0x794c_7630,
    0x7371_7368,
    0xe0f5_e1e2,
];

/// The descriptors of a restorer, by number.
pub type Installed = BTreeMap<i32, Occupant>;

/// The tables that are known.
pub type Tables = HashMap<Vpid, Installed>;

/// Which open file each file that is wanted is.
pub(super) type Claims = HashMap<FileId, u64>;

/// What is under a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupant {
    /// Names a file of [`Ahead`].
    pub(super) early: u64,
    /// `FD_CLOEXEC`.
    pub(super) close_on_exec: bool,
}

/// The files that are open ahead.
#[derive(Debug, Default)]
pub struct Ahead {
    /// Of the created container's init, which loses them when its table is filled for the first time.
    pub(super) streams: Option<Streams>,
    files: HashMap<u64, Early>,
    last: u64,
    /// A listener was made: a process whose table is not known may have it.
    has_listened: bool,
}

/// A file that is open.
#[derive(Debug)]
struct Early {
    key: Key,
    /// Device and inode.
    identity: (u64, u64),
    file: OwnedFd,
}

/// Files of one key are as good as each other.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    flags: i32,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Path { path: Vec<u8>, file_type: u32 },
    Listener(Box<Socket>),
}

impl Key {
    /// `None` for what is not opened ahead.
    fn of(file: &OpenFile) -> Option<Self> {
        let kind = if let FileKind::Path { path, file_type, .. } = &file.kind {
            Kind::Path { path: path.clone(), file_type: *file_type }
        } else {
            Kind::Listener(Box::new(listener(file)?.clone()))
        };
        Some(Self { flags: file.flags & !libc::O_ASYNC, kind })
    }
}

impl Ahead {
    /// Opens what `told` (which was checked) lists and gives it to the processes that have it, and closes what it does not
    /// list. `tables` are those of the restorers, and so is what is returned.
    pub fn follow(
        &mut self,
        told: &OpenFiles,
        tables: Tables,
        root: &ContainerRoot,
        sockets: &mut Builder,
        processes: &mut dyn Processes,
    ) -> Result<Tables, FilesError> {
        if self.streams.is_none() {
            let init = processes.pid(INIT).ok_or(FilesError::NoProcess { vpid: INIT })?;
            self.streams = Some(Streams::fetch(init)?);
        }
        let mut claims = self.claim(&told.files, &told.descriptors, &tables);
        let kept: HashSet<u64> = claims.values().copied().collect();
        self.files.retain(|early, _| kept.contains(early));
        let fillable: Vec<(Vpid, Pid, Vec<Descriptor>)> =
            told.descriptors.iter().filter_map(|(vpid, own)| fillable(*vpid, own, &*processes)).collect();
        let wanted: HashSet<FileId> =
            fillable.iter().flat_map(|(_, _, own)| own.iter().map(|descriptor| descriptor.file)).collect();
        for file in told.files.iter().filter(|file| wanted.contains(&file.id)).take(most_files()) {
            if !claims.contains_key(&file.id) {
                claims.extend(self.open(file, root, sockets).map(|early| (file.id, early)));
            }
        }
        let opened: HashMap<FileId, BorrowedFd<'_>> = claims
            .iter()
            .filter_map(|(id, early)| Some((*id, self.files.get(early)?.file.as_fd())))
            .collect();
        let mut filled = Tables::new();
        for (vpid, pid, mut wanted) in fillable {
            wanted.retain(|descriptor| claims.contains_key(&descriptor.file));
            let Some(task) = processes.leader(vpid) else { continue };
            match table::fill(task, (pid, vpid), &wanted, &opened, (tables.get(&vpid), &claims)) {
                Ok(()) => drop(filled.insert(vpid, installed(&wanted, &claims))),
                // Its table is emptied before it is filled again.
                Err(error) => tracing::warn!(%vpid, %error, "descriptors are left for the stop"),
            }
        }
        Ok(filled)
    }

    /// Lets go of programs that are open for writing: nobody can execute a file that is. A process that has one loses
    /// everything that was put in its place; the next round, or the stop, puts it there again.
    pub fn release_programs(
        &mut self,
        mut tables: Tables,
        processes: &mut dyn Processes,
    ) -> Result<Tables, FilesError> {
        let programs: HashSet<u64> =
            self.files.iter().filter(|(_, early)| is_writable_program(early)).map(|(id, _)| *id).collect();
        self.release(&programs, &mut tables, processes)?;
        Ok(tables)
    }

    /// Closes files. A process that has one of them loses everything that was put in its place.
    fn release(
        &mut self,
        files: &HashSet<u64>,
        tables: &mut Tables,
        processes: &mut dyn Processes,
    ) -> Result<(), FilesError> {
        for (vpid, table) in tables {
            if table.values().any(|occupant| files.contains(&occupant.early)) {
                empty(*vpid, processes)?;
                table.clear();
            }
        }
        self.files.retain(|early, _| !files.contains(early));
        Ok(())
    }

    /// At the stop: the files that are open already, with their offsets set, and which of the early ones they are. Sockets
    /// that are not taken are closed, in `tables` too.
    pub(super) fn take(
        mut self,
        files: &[OpenFile],
        wanted: &[(Vpid, Vec<Descriptor>)],
        tables: &mut Tables,
        root: &ContainerRoot,
        processes: &mut dyn Processes,
    ) -> Result<(HashMap<FileId, OwnedFd>, Claims), FilesError> {
        let mut claims = self.claim(files, wanted, tables);
        let crowded = crowded_ports(files, &claims);
        claims.retain(|_, early| !self.files.get(early).is_some_and(|early| listens_on(early, &crowded)));
        let taken: HashSet<u64> = claims.values().copied().collect();
        let listeners = self.files.iter().filter(|(_, early)| matches!(early.key.kind, Kind::Listener(_)));
        let left: HashSet<u64> = listeners.map(|(id, _)| *id).filter(|id| !taken.contains(id)).collect();
        self.release(&left, tables, processes)?;
        let unknown = wanted.iter().map(|(vpid, _)| *vpid).filter(|vpid| !tables.contains_key(vpid));
        let unknown: Vec<Vpid> = if self.has_listened { unknown.collect() } else { Vec::new() };
        unknown.into_iter().try_for_each(|vpid| empty(vpid, processes))?;
        let mut opened = HashMap::new();
        for file in files {
            let Some(early) = claims.get(&file.id).and_then(|early| self.files.remove(early)) else {
                continue;
            };
            if !is_current(&early, root) {
                claims.remove(&file.id);
                continue;
            }
            if let FileKind::Path { path, offset, file_type } = &file.kind {
                path::rewind(&early.file, path, file.flags, *file_type)?;
                path::set_offset(&early.file, path, file.flags, *offset, *file_type)?;
            }
            opened.insert(file.id, early.file);
        }
        Ok((opened, claims))
    }

    /// A wanted file is an early one of the same key that a process has where it wants it.
    fn claim(&self, files: &[OpenFile], wanted: &[(Vpid, Vec<Descriptor>)], tables: &Tables) -> Claims {
        let keys: HashMap<FileId, Key> =
            files.iter().filter_map(|file| Some((file.id, Key::of(file)?))).collect();
        let (mut claims, mut taken) = (Claims::new(), HashSet::new());
        for (vpid, descriptors) in wanted {
            let Some(table) = tables.get(vpid) else { continue };
            for descriptor in descriptors {
                let Some(Occupant { early, .. }) = table.get(&descriptor.fd) else { continue };
                let same =
                    self.files.get(early).is_some_and(|early| keys.get(&descriptor.file) == Some(&early.key));
                if same && !claims.contains_key(&descriptor.file) && taken.insert(*early) {
                    claims.insert(descriptor.file, *early);
                }
            }
        }
        claims
    }

    /// `None` if it cannot be opened now.
    fn open(&mut self, file: &OpenFile, root: &ContainerRoot, sockets: &mut Builder) -> Option<u64> {
        let key = Key::of(file)?;
        let opened = match &key.kind {
            Kind::Path { path, file_type } => {
                root.resolve(path).ok().filter(is_local)?;
                path::open(root, path, key.flags, 0, *file_type)
            }
            Kind::Listener(socket) => {
                let built = sockets.build(&[(file.id, socket, file.flags)]);
                let missing = || FilesError::Invalid { what: "a socket that is none".into() };
                let own = |mut built: BuiltSockets| built.fds.remove(&file.id).ok_or_else(missing);
                self.has_listened = true;
                built.map_err(FilesError::from).and_then(own)
            }
        };
        match opened {
            Ok(opened) => {
                let identity = identity(&opened)?;
                self.last += 1;
                self.files.insert(self.last, Early { key, identity, file: opened });
                Some(self.last)
            }
            Err(error) => {
                tracing::debug!(%error, "a file is left for the stop");
                None
            }
        }
    }
}

/// Closes everything that a process has.
fn empty(vpid: Vpid, processes: &mut dyn Processes) -> Result<(), FilesError> {
    let missing = FilesError::NoProcess { vpid };
    let (Some(pid), Some(task)) = (processes.pid(vpid), processes.leader(vpid)) else { return Err(missing) };
    table::fill(task, (pid, vpid), &[], &HashMap::new(), (None, &Claims::new()))
}

fn installed(wanted: &[Descriptor], claims: &Claims) -> Installed {
    let occupant = |descriptor: &Descriptor| {
        let early = *claims.get(&descriptor.file)?;
        Some((descriptor.fd, Occupant { early, close_on_exec: descriptor.close_on_exec }))
    };
    wanted.iter().filter_map(occupant).collect()
}

/// Whether the path leads to the file that is open: while it is, nothing else of its file system has its inode.
fn is_current(early: &Early, root: &ContainerRoot) -> bool {
    match &early.key.kind {
        Kind::Path { path, .. } => root.resolve(path).ok().and_then(identity) == Some(early.identity),
        Kind::Listener(_) => true,
    }
}

/// Ports that sockets are to be bound to which are not there yet. (A connection is bound in repair mode, which no listener
/// keeps from it.)
fn crowded_ports(files: &[OpenFile], claims: &Claims) -> HashSet<u16> {
    let port = |file: &OpenFile| {
        let FileKind::Socket(socket) = &file.kind else { return None };
        if let SocketKind::TcpClosed { bound, .. } = &socket.kind {
            return bound.map(|address| address.port());
        }
        port_of(listener(file)?)
    };
    files.iter().filter(|file| !claims.contains_key(&file.id)).filter_map(port).collect()
}

/// The listening TCP socket that a file is.
fn listener(file: &OpenFile) -> Option<&Socket> {
    let FileKind::Socket(socket) = &file.kind else { return None };
    port_of(socket).map(|_| &**socket)
}

/// Where a socket listens.
fn port_of(socket: &Socket) -> Option<u16> {
    let SocketKind::TcpListener { local, .. } = &socket.kind else { return None };
    Some(local.port())
}

fn listens_on(early: &Early, ports: &HashSet<u16>) -> bool {
    let Kind::Listener(socket) = &early.key.kind else { return false };
    port_of(socket).is_some_and(|port| ports.contains(&port))
}

fn identity(file: impl AsFd) -> Option<(u64, u64)> {
    fstat(file).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

/// The descriptors that a process can be given ahead; `None` if it is not there.
fn fillable(
    vpid: Vpid,
    descriptors: &[Descriptor],
    processes: &dyn Processes,
) -> Option<(Vpid, Pid, Vec<Descriptor>)> {
    let pid = processes.pid(vpid)?;
    let limit = crate::sys::prlimit::get(pid, libc::RLIMIT_NOFILE).ok()?.soft.saturating_sub(RESERVE);
    let below = descriptors.iter().filter(|descriptor| (descriptor.fd as u64) < limit);
    Some((vpid, pid, below.copied().collect()))
}

fn most_files() -> usize {
    let own = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft / 4);
    usize::try_from(own).unwrap_or(usize::MAX).min(MOST_FILES)
}

fn is_local(file: &OwnedFd) -> bool {
    fstatfs(file).is_ok_and(|about| LOCAL.contains(&about.filesystem_type().0))
}

fn is_writable_program(early: &Early) -> bool {
    let writable = early.key.flags & libc::O_ACCMODE != libc::O_RDONLY && early.key.flags & libc::O_PATH == 0;
    writable
        && matches!(early.key.kind, Kind::Path { file_type: libc::S_IFREG, .. })
        && fstat(&early.file).is_ok_and(|stat| stat.st_mode & 0o111 != 0)
}
