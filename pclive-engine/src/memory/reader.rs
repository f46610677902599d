//! Reads runs of pages of a process into batches, also while it runs and changes its mappings.
//!
//! process_vm_readv(2) takes up to 1024 runs a call. Where it stops short (no read permission, or the page went away)
//! `/proc/PID/mem` goes on, which disregards permissions. A page that neither can read is reported and not waited
//! for: the caller tries again in the next round, when it may have vanished.

use std::fs::File;
use std::os::fd::AsFd;

use nix::errno::Errno;

use super::error::{MemoryError, errno};
use super::payload::Payload;
use super::ranges::RangeSet;
use super::tracker::View;
use crate::model::{Batch, PAGE_SIZE, Pid, Target};
use crate::sys::process_vm::{self, MAX_RANGES, RemoteRange};

/// Walks a set of pages of one process by ascending address.
pub(super) struct Reader<'a, 'v> {
    pid: Pid,
    pages: &'a RangeSet,
    view: &'a mut View<'v>,
    mem: Option<File>,
    /// Everything below was read or given up.
    at: u64,
    /// Pages that could not be read.
    pub(super) unreadable: RangeSet,
}

impl<'a, 'v> Reader<'a, 'v> {
    pub(super) fn new(pid: Pid, pages: &'a RangeSet, view: &'a mut View<'v>) -> Self {
        Self { pid, pages, view, mem: None, at: 0, unreadable: RangeSet::new() }
    }

    /// Every page below this address is in a batch that was returned, or in [`Self::unreadable`].
    pub(super) fn position(&self) -> u64 {
        self.at
    }

    /// The next batch, `None` after the last page.
    pub(super) fn next_batch(
        &mut self,
        target: Target,
        batch_bytes: usize,
    ) -> Result<Option<Batch>, MemoryError> {
        let left = self.pages.within(self.at, u64::MAX).map(|(start, end)| end - start);
        let left = left.scan(0, |sum: &mut u64, run| {
            let before = *sum;
            *sum = sum.saturating_add(run);
            (before < batch_bytes as u64).then_some(*sum)
        });
        let Some(left) = left.last() else { return Ok(None) };
        let mut payload = Payload::new(target, batch_bytes.min(usize::try_from(left).unwrap_or(usize::MAX)));
        while payload.room() > 0 {
            let wanted = self.wanted(payload.room() as u64);
            if wanted.is_empty() {
                break;
            }
            self.read_runs(&wanted, &mut payload)?;
        }
        Ok(payload.finish())
    }

    /// The next runs, at most `room` bytes.
    fn wanted(&self, mut room: u64) -> Vec<RemoteRange> {
        let runs = self.pages.within(self.at, u64::MAX).take(MAX_RANGES);
        let fits = runs.map_while(|(start, end)| {
            let len = room.min(end - start);
            room -= len;
            (len > 0).then_some(RemoteRange { start, len })
        });
        fits.collect()
    }

    /// Reads runs as far as they are readable; at the first page that is not, goes on with the slow way.
    fn read_runs(&mut self, wanted: &[RemoteRange], payload: &mut Payload) -> Result<(), MemoryError> {
        let mut read = match process_vm::read_append(self.pid, wanted, payload.buffer()) {
            Ok(bytes) => bytes as u64,
            Err(Errno::EFAULT) => 0,
            Err(Errno::ESRCH) => return Err(MemoryError::AddressSpaceGone { pid: self.pid }),
            Err(source) => return Err(MemoryError::Read { pid: self.pid, start: self.at, source }),
        };
        for run in wanted {
            let taken = read.min(run.len);
            read -= taken;
            let end = run.start + run.len;
            let stopped = run.start + whole_pages(taken);
            self.advance(payload, run.start, stopped, taken);
            if stopped < end {
                return self.read_slowly(stopped, end, payload);
            }
        }
        Ok(())
    }

    /// `taken` bytes from `start` on are in the payload, of which those up to `stopped` are whole pages.
    fn advance(&mut self, payload: &mut Payload, start: u64, stopped: u64, taken: u64) {
        let torn = usize::try_from(taken - (stopped - start)).unwrap_or(0);
        let keep = payload.buffer().len().saturating_sub(torn);
        payload.buffer().truncate(keep);
        if stopped > start {
            payload.took(start, stopped);
        }
        self.at = stopped;
    }

    /// The rest of a run through `/proc/PID/mem`, one system call; gives up pages that cannot be read at all.
    fn read_slowly(&mut self, start: u64, end: u64, payload: &mut Payload) -> Result<(), MemoryError> {
        let pid = self.pid;
        let len = payload.room().min(usize::try_from(end - start).unwrap_or(usize::MAX));
        let mem = match &self.mem {
            Some(mem) => mem,
            None => self.mem.insert(open_mem(pid)?),
        };
        match process_vm::pread_append(mem.as_fd(), start, len, payload.buffer()) {
            Ok(read) if read as u64 >= PAGE_SIZE => {
                let read = read as u64;
                self.advance(payload, start, start + whole_pages(read), read);
                Ok(())
            }
            Ok(read) => {
                self.advance(payload, start, start, read as u64);
                self.give_up(start, end)
            }
            Err(Errno::EIO | Errno::EFAULT | Errno::ENXIO) => self.give_up(start, end),
            Err(Errno::ESRCH) => Err(MemoryError::AddressSpaceGone { pid }),
            Err(source) => Err(MemoryError::Read { pid, start, source }),
        }
    }

    /// The page at `start` cannot be read; neither can what has vanished right behind it.
    fn give_up(&mut self, start: u64, end: u64) -> Result<(), MemoryError> {
        let next = self.view.next_populated(start + PAGE_SIZE, end)?;
        self.unreadable.insert(start, next);
        self.at = next;
        Ok(())
    }
}

fn whole_pages(bytes: u64) -> u64 {
    bytes / PAGE_SIZE * PAGE_SIZE
}

/// `/proc/PID/mem`, which disregards the protection of mappings.
pub(super) fn open_mem(pid: Pid) -> Result<File, MemoryError> {
    File::open(format!("/proc/{pid}/mem")).map_err(|error| match errno(&error) {
        Errno::ENOENT | Errno::ESRCH => MemoryError::AddressSpaceGone { pid },
        source => MemoryError::Proc { pid, name: "mem".into(), source },
    })
}
