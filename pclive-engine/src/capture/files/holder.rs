//! A process and its descriptors, as `/proc` tells them.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::Mode as Permissions;

use super::{FilesError, Mode};
use crate::model::{Pid, Vpid};
use crate::proc::fdinfo::{self, FdInfo};
use crate::sys::pidfd;

/// A process.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) pid: Pid,
    pub(super) vpid: Vpid,
    /// Descriptors, ascending.
    pub(super) entries: Vec<Entry>,
    process: OwnedFd,
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

impl Holder {
    /// Reads the descriptors of a process, each once.
    pub(super) fn scan(pid: Pid, vpid: Vpid, mode: Mode) -> Result<Self, FilesError> {
        let process = pidfd::open(pid).map_err(|source| FilesError::Process {
            verb: "open a pidfd of",
            pid,
            source,
        })?;
        let numbers = numbers(pid)?;
        let links = directory(pid, "fd")?;
        let infos = directory(pid, "fdinfo")?;
        let mut entries = Vec::with_capacity(numbers.len());
        let mut buffer = Vec::new();
        for fd in numbers {
            let entry = read_entry(pid, fd, links.as_fd(), infos.as_fd(), &mut buffer);
            entries.extend(mode.forgive(entry)?);
        }
        Ok(Self { pid, vpid, entries, process })
    }

    /// A duplicate of one of its descriptors.
    pub(super) fn duplicate(&self, fd: RawFd) -> Result<OwnedFd, FilesError> {
        pidfd::getfd(&self.process, fd).map_err(|source| FilesError::Descriptor {
            verb: "duplicate",
            pid: self.pid,
            fd,
            source,
        })
    }

    /// The entry of a descriptor number.
    pub(super) fn entry(&self, fd: RawFd) -> Option<&Entry> {
        let index = self.entries.binary_search_by_key(&fd, |entry| entry.fd).ok()?;
        self.entries.get(index)
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

fn numbers(pid: Pid) -> Result<Vec<RawFd>, FilesError> {
    let failed = |error: std::io::Error| FilesError::Process {
        verb: "list the descriptors of",
        pid,
        source: Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)),
    };
    let mut numbers = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn read_entry(
    pid: Pid,
    fd: RawFd,
    links: BorrowedFd<'_>,
    infos: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
) -> Result<Entry, FilesError> {
    let failed = |verb| move |source| FilesError::Descriptor { verb, pid, fd, source };
    let name = fd.to_string();
    let target = readlinkat(links, name.as_str()).map_err(failed("read the link of"))?.into_vec();
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let file =
        openat(infos, name.as_str(), flags, Permissions::empty()).map_err(failed("open the fdinfo of"))?;
    buffer.clear();
    File::from(file)
        .read_to_end(buffer)
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
        .map_err(failed("read the fdinfo of"))?;
    let info = fdinfo::parse(buffer).map_err(|source| FilesError::Info { pid, fd, source })?;
    Ok(Entry { fd, target, info, file: usize::MAX })
}
