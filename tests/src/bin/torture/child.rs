//! Forked children: one compares its copy and ends, another lives on, writes its own copy, and counts in memory
//! that it shares with its parent.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use super::memory::{self, Address, Backing, Protection};
use super::page::WORDS;
use super::region::{Mismatch, Region};
use pclive_tests::random::Random;

/// Words of the shared page before its data: the count when a write begins, and when it has ended.
const BEGUN: usize = 0;
const ENDED: usize = 1;
const DATA: usize = 2;

/// A page that a child writes and its parent reads.
#[derive(Debug)]
struct Nursery(Address);

impl Nursery {
    fn new() -> std::io::Result<Self> {
        memory::map(1, Protection::Write, Backing::Shared).map(Self)
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < WORDS);
        // SAFETY: the page is mapped as long as `self`, aligned, and used by atomic accesses only.
        unsafe { &*(self.0 as *const AtomicU64).add(index) }
    }

    /// Writes the next count and the data that belong to it.
    fn count(&self) {
        let count = self.word(BEGUN).load(Ordering::Relaxed) + 1;
        self.word(BEGUN).store(count, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        (DATA..WORDS).for_each(|index| self.word(index).store(data(count, index), Ordering::Relaxed));
        fence(Ordering::SeqCst);
        self.word(ENDED).store(count, Ordering::Relaxed);
    }

    /// The count, when no write was under way and the data were right; `None` when a write was under way.
    fn read(&self) -> Result<Option<u64>, String> {
        let ended = self.word(ENDED).load(Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let wrong = (DATA..WORDS)
            .find(|&index| ended > 0 && self.word(index).load(Ordering::Relaxed) != data(ended, index));
        fence(Ordering::SeqCst);
        if self.word(BEGUN).load(Ordering::SeqCst) != ended {
            return Ok(None);
        }
        wrong.map_or(Ok(Some(ended)), |index| {
            Err(format!("word {index} of shared page {:x} is not of count {ended}", self.0))
        })
    }
}

impl Drop for Nursery {
    fn drop(&mut self) {
        // SAFETY: nobody refers to the page any more; the child has its own mapping of it.
        let _ = unsafe { memory::unmap(self.0, 1) };
    }
}

fn data(count: u64, index: usize) -> u64 {
    Random::new(count.rotate_left(17) ^ index as u64).next()
}

/// A child as its parent sees it.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    nursery: Nursery,
    count: u64,
}

impl Child {
    /// Forks. The child makes `turns` turns over the regions and ends; 0 when it found nothing wrong.
    pub(crate) fn fork(regions: &mut [Region], turns: u64, random: &mut Random) -> std::io::Result<Self> {
        let nursery = Nursery::new()?;
        let seed = random.next();
        // SAFETY: the child uses what this thread alone owns, and glibc's allocator, which survives a fork.
        match unsafe { fork()? } {
            ForkResult::Parent { child } => Ok(Self { pid: child, nursery, count: 0 }),
            ForkResult::Child => {
                let code = i32::from(live(regions, &nursery, turns, seed).is_err());
                // SAFETY: ends this process at once; destructors belong to the parent.
                unsafe { libc::_exit(code) }
            }
        }
    }

    /// Looks after it: its shared page must be consistent and never go back. True when it has ended well.
    pub(crate) fn look(&mut self) -> Result<bool, String> {
        if let Some(count) = self.nursery.read()? {
            if count < self.count {
                return Err(format!("shared page of child {}: {count} after {}", self.pid, self.count));
            }
            self.count = count;
        }
        match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => Ok(false),
            Ok(WaitStatus::Exited(_, 0)) => Ok(true),
            other => Err(format!("child {}: {other:?}", self.pid)),
        }
    }
}

/// The child's life. Memory that is shared with the parent is the parent's to check.
fn live(regions: &mut [Region], nursery: &Nursery, turns: u64, seed: u64) -> Result<(), Mismatch> {
    let mut random = Random::new(seed);
    for _ in 0..turns {
        for region in regions.iter_mut().filter(|region| !region.kind().is_shared()) {
            let told = (0..region.len()).try_for_each(|index| region.check(index));
            told.inspect_err(|mismatch| eprintln!("child {}: {mismatch}", std::process::id()))?;
            let index = random.below(region.len());
            region.patch(index, &mut random);
        }
        nursery.count();
    }
    Ok(())
}
