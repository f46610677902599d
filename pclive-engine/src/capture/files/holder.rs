//! Processes and their descriptors, as `/proc` tells them.
//!
//! procfs is slow (about 30 us a descriptor), and the container may be standing still: small files take one read,
//! the link of a socket or pipe is not asked for once its mount is known, and many descriptors are read by
//! several threads.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::Mode as Permissions;

use super::{FilesError, Mode};
use crate::model::{Pid, Vpid};
use crate::proc::fdinfo::{self, FdInfo};
use crate::sys::pidfd;

/// Descriptors below which one thread reads them all.
const WORTH_A_THREAD: usize = 64;
/// Most threads.
const MOST_THREADS: usize = 8;
/// Room for an fdinfo; only epoll instances need more.
const FDINFO_BYTES: usize = 4096;

/// A process.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) pid: Pid,
    pub(super) vpid: Vpid,
    /// Descriptors, ascending.
    pub(super) entries: Vec<Entry>,
    process: OwnedFd,
    links: OwnedFd,
    infos: OwnedFd,
}

/// A descriptor of a process.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) fd: RawFd,
    /// The `/proc/PID/fd/FD` link.
    pub(super) target: Vec<u8>,
    pub(super) info: FdInfo,
    /// Index of the description; set by grouping.
    pub(super) file: usize,
}

/// Reads the descriptors of processes, each once.
pub(super) fn scan(processes: &[(Pid, Vpid)], mode: Mode) -> Result<Vec<Holder>, FilesError> {
    let mut holders = Vec::with_capacity(processes.len());
    let mut waiting = Vec::new();
    for (pid, vpid) in processes {
        let opened = Holder::open(*pid, *vpid).and_then(|holder| Ok((holder.numbers()?, holder)));
        if let Some((numbers, holder)) = mode.forgive(opened)? {
            waiting.extend(numbers.into_iter().map(|fd| (holders.len(), fd)));
            holders.push(holder);
        }
    }
    for (at, entry) in read_all(&holders, &waiting, mode)? {
        holders[at].entries.push(entry);
    }
    Ok(holders)
}

/// The entries of (holder, number) pairs, in their order.
fn read_all(
    holders: &[Holder],
    waiting: &[(usize, RawFd)],
    mode: Mode,
) -> Result<Vec<(usize, Entry)>, FilesError> {
    let cpus = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let threads = (waiting.len() / WORTH_A_THREAD).clamp(1, cpus);
    if threads == 1 {
        return read_part(holders, waiting, mode);
    }
    thread::scope(|scope| {
        let part = |part| scope.spawn(move || read_part(holders, part, mode));
        let parts: Vec<_> = waiting.chunks(waiting.len().div_ceil(threads)).map(part).collect();
        let mut entries = Vec::with_capacity(waiting.len());
        for part in parts {
            entries.extend(part.join().unwrap_or(Err(FilesError::Thread))?);
        }
        Ok(entries)
    })
}

fn read_part(
    holders: &[Holder],
    part: &[(usize, RawFd)],
    mode: Mode,
) -> Result<Vec<(usize, Entry)>, FilesError> {
    let mut reader = Reader { buffer: vec![0; FDINFO_BYTES], mounts: HashMap::new() };
    let mut entries = Vec::with_capacity(part.len());
    for (at, fd) in part {
        let entry = reader.read(&holders[*at], *fd);
        entries.extend(mode.forgive(entry)?.map(|entry| (*at, entry)));
    }
    Ok(entries)
}

impl Holder {
    fn open(pid: Pid, vpid: Vpid) -> Result<Self, FilesError> {
        let process = pidfd::open(pid).map_err(|source| FilesError::Process {
            verb: "open a pidfd of",
            pid,
            source,
        })?;
        let links = directory(pid, "fd")?;
        Ok(Self { pid, vpid, entries: Vec::new(), process, links, infos: directory(pid, "fdinfo")? })
    }

    /// A duplicate of one of its descriptors.
    pub(super) fn duplicate(&self, fd: RawFd) -> Result<OwnedFd, FilesError> {
        pidfd::getfd(&self.process, fd).map_err(self.failed("duplicate", fd))
    }

    /// What one of its descriptors leads to, as an `O_PATH` descriptor: it keeps nothing open.
    pub(super) fn look(&self, fd: RawFd) -> Result<OwnedFd, FilesError> {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let found = openat(self.links.as_fd(), fd.to_string().as_str(), flags, Permissions::empty());
        found.map_err(self.failed("look at", fd))
    }

    /// The entry of a descriptor number.
    pub(super) fn entry(&self, fd: RawFd) -> Option<&Entry> {
        let index = self.entries.binary_search_by_key(&fd, |entry| entry.fd).ok()?;
        self.entries.get(index)
    }

    fn numbers(&self) -> Result<Vec<RawFd>, FilesError> {
        let failed = |source| FilesError::Process { verb: "list the descriptors of", pid: self.pid, source };
        let links = self.links.try_clone().map_err(|_| failed(Errno::EMFILE))?;
        let mut listing = nix::dir::Dir::from_fd(links).map_err(failed)?;
        let mut numbers = Vec::new();
        for entry in listing.iter() {
            let entry = entry.map_err(failed)?;
            numbers.extend(entry.file_name().to_str().ok().and_then(|name| name.parse::<RawFd>().ok()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn failed(&self, verb: &'static str, fd: RawFd) -> impl Fn(Errno) -> FilesError {
        let pid = self.pid;
        move |source| FilesError::Descriptor { verb, pid, fd, source }
    }
}

fn directory(pid: Pid, name: &str) -> Result<OwnedFd, FilesError> {
    let path = format!("/proc/{pid}/{name}");
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(path.as_str(), flags, Permissions::empty()).map_err(|source| FilesError::Process {
        verb: "list the descriptors of",
        pid,
        source,
    })
}

/// Reads entries, and remembers which mounts are the kernel's own of sockets and pipes.
struct Reader {
    buffer: Vec<u8>,
    mounts: HashMap<i32, &'static str>,
}

impl Reader {
    fn read(&mut self, holder: &Holder, fd: RawFd) -> Result<Entry, FilesError> {
        let name = fd.to_string();
        let length = self.read_info(holder, fd, &name)?;
        let text = self.buffer.get(..length).unwrap_or_default();
        let info = fdinfo::parse(text).map_err(|source| FilesError::Info { pid: holder.pid, fd, source })?;
        let target = match self.mounts.get(&info.mount) {
            Some(kind) => format!("{kind}[{}]", info.inode).into_bytes(),
            None => self.read_link(holder, fd, &name, &info)?,
        };
        Ok(Entry { fd, target, info, file: usize::MAX })
    }

    fn read_link(
        &mut self,
        holder: &Holder,
        fd: RawFd,
        name: &str,
        info: &FdInfo,
    ) -> Result<Vec<u8>, FilesError> {
        let target =
            readlinkat(&holder.links, name).map_err(holder.failed("read the link of", fd))?.into_vec();
        for kind in ["socket:", "pipe:"] {
            if target.starts_with(kind.as_bytes()) {
                self.mounts.insert(info.mount, kind);
            }
        }
        Ok(target)
    }

    /// Reads an fdinfo into the buffer, which grows as needed. A read that does not fill it has come to the end:
    /// the kernel makes the whole text at once.
    fn read_info(&mut self, holder: &Holder, fd: RawFd, name: &str) -> Result<usize, FilesError> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file = openat(holder.infos.as_fd(), name, flags, Permissions::empty())
            .map_err(holder.failed("open the fdinfo of", fd))?;
        let mut length = 0;
        loop {
            let room = self.buffer.get_mut(length..).unwrap_or_default();
            let wanted = room.len();
            let count = nix::unistd::read(&file, room).map_err(holder.failed("read the fdinfo of", fd))?;
            length += count;
            if count < wanted {
                return Ok(length);
            }
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
    }
}
