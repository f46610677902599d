//! epoll(7): the watches, each with a process and a descriptor number under which it can be added again.
//!
//! An entry belongs to a description and the number under which it was added; the number may have been closed, or
//! used again, in the process that added it. A socket is recognised by its inode; anything else the kernel is
//! asked about (kcmp(2), KCMP_EPOLL_TFD), first the number as it is, then every descriptor with that inode.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::os::fd::RawFd;

use nix::errno::Errno;

use super::description::{Description, is_socket};
use super::holder::Holder;
use super::refusal::Refusal;
use super::{FilesError, Mode};
use crate::model::file::EpollWatch;
use crate::model::{FileId, FileKind, Pid};
use crate::proc::fdinfo::{Detail, EpollEntry};
use crate::sys::kcmp;

/// Descriptors by the inode of what they refer to: (holder, entry).
type ByInode = HashMap<u64, Vec<(usize, usize)>>;

/// Finds the files behind epoll entries.
pub(super) struct Resolver<'a> {
    holders: &'a [Holder],
    by_inode: ByInode,
    mode: Mode,
}

/// An epoll instance: who has it under which number, the first one answers the kernel's questions.
struct Instance {
    held: Vec<(usize, RawFd)>,
    asked: (Pid, RawFd),
}

/// What an entry's file turned out to be.
enum Match {
    /// This descriptor: (holder, entry).
    Found(usize, usize),
    /// Nobody who has the instance has the file.
    Nowhere,
    /// The entry went away while the container ran.
    Gone,
}

impl<'a> Resolver<'a> {
    pub(super) fn new(holders: &'a [Holder], mode: Mode) -> Self {
        let mut by_inode = ByInode::new();
        for (h, holder) in holders.iter().enumerate() {
            for (e, entry) in holder.entries.iter().enumerate() {
                by_inode.entry(entry.info.inode).or_default().push((h, e));
            }
        }
        Self { holders, by_inode, mode }
    }

    /// Captures an epoll instance, or says which of its watches cannot be carried.
    pub(super) fn capture(&self, description: &Description) -> Result<Result<FileKind, Refusal>, FilesError> {
        let (holder, entry) = description.first(self.holders);
        let entries: &[EpollEntry] = match &entry.info.detail {
            Detail::Epoll(entries) => entries,
            Detail::Plain
            | Detail::Event { .. }
            | Detail::Timer(_)
            | Detail::Signal(_)
            | Detail::Terminal(_) => &[],
        };
        let instance = Instance { held: self.numbers(description), asked: (holder.pid, entry.fd) };
        let mut offsets: HashMap<RawFd, u32> = HashMap::new();
        let mut watches = Vec::with_capacity(entries.len());
        for entry in entries {
            let offset = offsets.entry(entry.fd).or_default();
            match self.find(&instance, entry, *offset)? {
                Match::Found(h, e) => watches.push(self.watch(entry, h, e)),
                Match::Nowhere => return Ok(Err(refusal(entry))),
                Match::Gone => {}
            }
            *offset += 1;
        }
        Ok(Ok(FileKind::Epoll { watches }))
    }

    fn numbers(&self, description: &Description) -> Vec<(usize, RawFd)> {
        let number = |&(h, e): &(usize, usize)| (h, self.holders[h].entries[e].fd);
        let mut held: Vec<(usize, RawFd)> = description.held.iter().map(number).collect();
        held.dedup_by_key(|(h, _)| *h);
        held
    }

    fn watch(&self, entry: &EpollEntry, h: usize, e: usize) -> EpollWatch {
        let holder = &self.holders[h];
        let target = &holder.entries[e];
        EpollWatch {
            process: holder.vpid,
            fd: target.fd,
            file: FileId(target.file as u32),
            events: entry.events,
            data: entry.data,
        }
    }

    fn find(&self, instance: &Instance, entry: &EpollEntry, offset: u32) -> Result<Match, FilesError> {
        if let Some((h, e)) = self.by_number(instance, entry, offset)? {
            return Ok(Match::Found(h, e));
        }
        let candidates = self.by_inode.get(&entry.inode).map_or(&[][..], Vec::as_slice);
        for &(h, e) in candidates.iter().filter(|(h, _)| instance.held.iter().any(|held| held.0 == *h)) {
            match self.is_target(instance, entry, offset, h, e)? {
                Some(true) => return Ok(Match::Found(h, e)),
                Some(false) => {}
                None => return Ok(Match::Gone),
            }
        }
        // Nothing to compare with: only a question to the kernel tells a lost entry from a missing file.
        let (h, _) = instance.held[0];
        match self.is_target(instance, entry, offset, h, 0)? {
            None => Ok(Match::Gone),
            Some(_) => Ok(Match::Nowhere),
        }
    }

    /// The descriptor with the entry's own number, in the first process where it still is the entry's file.
    fn by_number(
        &self,
        instance: &Instance,
        entry: &EpollEntry,
        offset: u32,
    ) -> Result<Option<(usize, usize)>, FilesError> {
        for &(h, _) in &instance.held {
            let Ok(e) = self.holders[h].entries.binary_search_by_key(&entry.fd, |entry| entry.fd) else {
                continue;
            };
            let candidate = &self.holders[h].entries[e];
            if candidate.info.inode != entry.inode {
                continue;
            }
            if is_socket(&candidate.target) || self.is_target(instance, entry, offset, h, e)? == Some(true) {
                return Ok(Some((h, e)));
            }
        }
        Ok(None)
    }

    /// `None` when the running container took the entry (or the descriptor) away meanwhile.
    fn is_target(
        &self,
        instance: &Instance,
        entry: &EpollEntry,
        offset: u32,
        h: usize,
        e: usize,
    ) -> Result<Option<bool>, FilesError> {
        let holder = &self.holders[h];
        let fd = holder.entries[e].fd;
        match kcmp::epoll_target((holder.pid, fd), instance.asked, entry.fd, offset) {
            Ok(order) => Ok(Some(order == Ordering::Equal)),
            Err(Errno::ENOENT | Errno::EBADF | Errno::ESRCH) if self.mode == Mode::Check => Ok(None),
            Err(source) => {
                Err(FilesError::Descriptor { verb: "compare (kcmp)", pid: holder.pid, fd, source })
            }
        }
    }
}

fn refusal(entry: &EpollEntry) -> Refusal {
    Refusal::new(
        format!(
            "epoll instance that watches a file (inode {}, added as descriptor {}) which no process with the instance has open",
            entry.inode, entry.fd
        ),
        "let the application remove the watch (EPOLL_CTL_DEL) before it closes the descriptor",
    )
}
