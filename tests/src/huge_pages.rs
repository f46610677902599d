//! Huge pages that the host makes when a test asks for them.

use std::fs::File;

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

/// How many pages of 2 MiB may be made beyond those that the host keeps ready, and how many are
/// (Documentation/admin-guide/mm/hugetlbpage.rst).
const EXTRA: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages";
const MADE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/surplus_hugepages";

/// Permission to use so many; the host's own setting comes back at the end. One test at a time has it.
#[derive(Debug)]
pub struct HugePages {
    before: u64,
    _only: Flock<File>,
}

impl HugePages {
    /// Waits until no other test needs any.
    pub fn allow(pages: u64) -> Result<Self> {
        let file = File::open(EXTRA).with_context(|| format!("cannot open {EXTRA}"))?;
        let only = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
        let number = |path: &str| Ok::<u64, anyhow::Error>(std::fs::read_to_string(path)?.trim().parse()?);
        let before = number(EXTRA)?;
        let extra = before.max(number(MADE)? + pages);
        std::fs::write(EXTRA, extra.to_string()).with_context(|| format!("cannot write {EXTRA}"))?;
        Ok(Self { before, _only: only })
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(EXTRA, self.before.to_string());
    }
}
