//! The memory of one process of the copy that lacks pages.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::{Lack, Missing};
use crate::model::{PAGE_SIZE, Vpid};
use crate::sys::missing::{self as kernel, Told};

/// The kernel does not do its part.
#[derive(Debug, thiserror::Error)]
pub enum SpaceError {
    /// The descriptor.
    #[error("cannot hear which pages process {vpid} waits for")]
    Hear {
        /// The process whose memory it was at the source.
        vpid: Vpid,
        /// Why.
        source: nix::Error,
    },
    /// Changes that the kernel told in an order in which they cannot have been.
    #[error(
        "cannot tell where the missing pages of process {vpid} belong: its threads have moved them at once"
    )]
    Ambiguous {
        /// The process whose memory it was at the source.
        vpid: Vpid,
    },
    /// A page.
    #[error("cannot put a page of process {vpid} at {start:x}")]
    Place {
        /// The process whose memory it was at the source.
        vpid: Vpid,
        /// Where.
        start: u64,
        /// Why.
        source: nix::Error,
    },
}

/// What [`Space::hear`] says.
#[derive(Debug)]
pub enum News {
    /// A thread waits for the page of this origin.
    Wanted(u64),
    /// The process has a child, which lacks what its parent lacks.
    Born(Space),
    /// Something that was dealt with.
    Settled,
    /// Nothing for now.
    Nothing,
    /// The process has ended, or executed another program.
    Gone,
}

/// What came of pages that were to be put in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placing {
    /// They are, as far as somebody lacks them.
    Done,
    /// There is news to be heard first: try again.
    Later,
    /// There is no memory for them at the moment: try again.
    NoMemory,
    /// The process has ended, or executed another program.
    Gone,
}

/// The memory of one process that lacks pages. The last of its descriptors keeps it from reading zeros instead.
#[derive(Debug)]
pub struct Space {
    vpid: Vpid,
    uffd: OwnedFd,
    missing: Missing,
    /// Faults whose page could not be put there at once.
    zeros: Vec<u64>,
}

impl Space {
    /// The process whose userfaultfd this is, not blocking, with its mappings registered.
    pub fn new(lack: &Lack, uffd: OwnedFd) -> Self {
        let missing = Missing::new(&lack.areas, lack.later.runs.iter().copied());
        Self { vpid: lack.later.vpid, uffd, missing, zeros: Vec::new() }
    }

    /// The process at the source whose memory it is.
    pub fn vpid(&self) -> Vpid {
        self.vpid
    }

    /// What it lacks.
    pub fn missing(&self) -> &Missing {
        &self.missing
    }

    /// Readable when there is news.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }

    /// The next news. Never blocks.
    pub fn hear(&mut self) -> Result<News, SpaceError> {
        match kernel::read(self.uffd.as_fd()) {
            Ok(told) => self.understand(told),
            Err(Errno::EAGAIN | Errno::EINTR) => {
                self.settle()?;
                let gone = self.put_zeros()?;
                Ok(if gone { News::Gone } else { News::Nothing })
            }
            Err(source) => Err(SpaceError::Hear { vpid: self.vpid, source }),
        }
    }

    fn understand(&mut self, told: Told) -> Result<News, SpaceError> {
        match told {
            Told::Fault(address) => {
                if let Some(origin) = self.missing.origin_at(address) {
                    return Ok(News::Wanted(origin));
                }
                self.zeros.push(address / PAGE_SIZE * PAGE_SIZE);
                let gone = self.put_zeros()?;
                return Ok(if gone { News::Gone } else { News::Settled });
            }
            Told::Forked(uffd) => return Ok(News::Born(self.child(uffd))),
            Told::Moved { from, to, len } => {
                self.missing.moved(from, to, len);
                self.wake(from, len);
                // Who got to a missing page there before the move was told waits for what is not to be zeros.
                self.wake(to, len);
            }
            Told::Removed(start, end) => {
                self.missing.dropped(start, end);
                self.wake(start, end.saturating_sub(start));
            }
            Told::Unmapped(start, end) => {
                self.missing.unmapped(start, end);
                self.wake(start, end.saturating_sub(start));
            }
            Told::Other(_) => {}
        }
        Ok(News::Settled)
    }

    /// Once every change was told and every task that made one has gone on, what was in doubt is looked at.
    fn settle(&mut self) -> Result<(), SpaceError> {
        if !self.missing.is_unsettled() || self.is_changing() {
            return Ok(());
        }
        let mut settled = self.missing.clone();
        let is_ours = |page| kernel::belongs(self.uffd.as_fd(), page, PAGE_SIZE) != Errno::ENOENT;
        let is_known = settled.settle(is_ours);
        if self.is_changing() {
            // What was looked at may have moved meanwhile: once more, when that has been told.
            return Ok(());
        }
        self.missing = settled;
        if is_known { Ok(()) } else { Err(SpaceError::Ambiguous { vpid: self.vpid }) }
    }

    /// True if a change has to be told first, or the task that made it has not gone on yet.
    fn is_changing(&self) -> bool {
        // An address that is nobody's.
        kernel::belongs(self.uffd.as_fd(), 0, PAGE_SIZE) == Errno::EAGAIN
    }

    fn child(&self, uffd: OwnedFd) -> Self {
        Self { vpid: self.vpid, uffd, missing: self.missing.of_child(), zeros: Vec::new() }
    }

    /// Threads that wait for a page which is not what it was look again: faults are told before older events.
    fn wake(&self, start: u64, len: u64) {
        // ESRCH: nobody waits any more.
        let _ = kernel::wake(self.uffd.as_fd(), start, len);
    }

    /// Memory that has nothing at the source reads as zeros. True if the process is gone.
    fn put_zeros(&mut self) -> Result<bool, SpaceError> {
        while let Some(start) = self.zeros.last().copied() {
            if self.missing.origin_at(start).is_some() {
                // A missing page has moved there since: who waits asks for that one.
                self.wake(start, PAGE_SIZE);
                self.zeros.pop();
                continue;
            }
            match kernel::zero(self.uffd.as_fd(), start, PAGE_SIZE) {
                Ok(()) => {}
                // It is there by now, or its mapping is another: who waits looks again.
                Err(Errno::EEXIST | Errno::ENOENT) => self.wake(start, PAGE_SIZE),
                // An event comes first, which the caller hears.
                Err(Errno::EAGAIN | Errno::ENOMEM) => return Ok(false),
                Err(Errno::ESRCH) => return Ok(true),
                Err(source) => return Err(SpaceError::Place { vpid: self.vpid, start, source }),
            }
            self.zeros.pop();
        }
        Ok(false)
    }

    /// True if threads wait for memory that could not be given to them yet: [`Self::hear`] tries again.
    pub fn owes(&self) -> bool {
        !self.zeros.is_empty() || self.missing.is_unsettled()
    }

    /// Puts pages in place where they are missing; `bytes` are those from `origin` on.
    pub fn place(&mut self, origin: u64, bytes: &[u8]) -> Result<Placing, SpaceError> {
        let end = origin.saturating_add(bytes.len() as u64);
        for (address, first, len) in self.missing.belongs(origin, end) {
            let from = usize::try_from(first - origin).unwrap_or(usize::MAX);
            let until = from.saturating_add(usize::try_from(len).unwrap_or(usize::MAX));
            let part = bytes.get(from..until).unwrap_or_default();
            let placed = self.place_run(address, first, part)?;
            if placed != Placing::Done {
                return Ok(placed);
            }
        }
        Ok(Placing::Done)
    }

    fn place_run(&mut self, address: u64, origin: u64, bytes: &[u8]) -> Result<Placing, SpaceError> {
        let (mut done, mut step) = (0u64, bytes.len() as u64);
        while done < bytes.len() as u64 {
            let from = usize::try_from(done).unwrap_or(usize::MAX);
            let until = usize::try_from(done.saturating_add(step)).unwrap_or(usize::MAX).min(bytes.len());
            let part = bytes.get(from..until).unwrap_or_default();
            let (copied, error) = kernel::copy(self.uffd.as_fd(), address + done, part);
            self.missing.placed(origin + done, origin + done + copied);
            done += copied;
            match error {
                None => step = bytes.len() as u64,
                Some(Errno::EAGAIN) if copied > 0 => {}
                Some(Errno::EAGAIN) => return Ok(Placing::Later),
                Some(Errno::ENOMEM) => return Ok(Placing::NoMemory),
                Some(Errno::ESRCH) => return Ok(Placing::Gone),
                // Over the end of a mapping, or over a page that is there: one by one.
                Some(Errno::ENOENT | Errno::EEXIST | Errno::EINVAL) if part.len() as u64 > PAGE_SIZE => {
                    step = PAGE_SIZE;
                }
                // The kernel looks for the mapping before it looks whether one has just moved, untold.
                Some(Errno::ENOENT) if self.is_changing() => return Ok(Placing::Later),
                Some(Errno::ENOENT | Errno::EEXIST) => {
                    self.wake(address + done, PAGE_SIZE);
                    self.missing.placed(origin + done, origin + done + PAGE_SIZE);
                    done += PAGE_SIZE;
                }
                Some(source) => {
                    return Err(SpaceError::Place { vpid: self.vpid, start: address + done, source });
                }
            }
        }
        Ok(Placing::Done)
    }
}
