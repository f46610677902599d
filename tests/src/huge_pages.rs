//! Huge pages that the host makes when a test asks for them.

use std::fs::File;

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

/// How many pages of 2 MiB may be made beyond those that the host keeps ready, and how many are
/// (Documentation/admin-guide/mm/hugetlbpage.rst).
const EXTRA: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages";
const MADE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/surplus_hugepages";
/// How many nobody has, and how many of these somebody may take at any time.
const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
const RESERVED: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages";

/// Where the host's own setting waits meanwhile.
const BEFORE: &str = "/run/pclive-tests-nr_overcommit_hugepages";

fn number(path: &str) -> Result<u64> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    text.trim().parse().with_context(|| format!("{path} has no number: {text}"))
}

/// Permission to use so many; the host's own setting comes back at the end. One test at a time has it.
#[derive(Debug)]
pub struct HugePages {
    before: u64,
    _only: Flock<File>,
}

impl HugePages {
    /// Takes the permission back; no other test has it while this lives. How many pages are there all the same.
    pub fn withdraw(&self) -> Result<u64> {
        std::fs::write(EXTRA, self.before.to_string()).with_context(|| format!("cannot write {EXTRA}"))?;
        Ok(number(FREE)?.saturating_sub(number(RESERVED)?) + self.before.saturating_sub(number(MADE)?))
    }

    /// Waits until no other test needs any.
    pub fn allow(pages: u64) -> Result<Self> {
        let file = File::open(EXTRA).with_context(|| format!("cannot open {EXTRA}"))?;
        let only = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
        // A test that was killed has not put it back.
        let before = match number(BEFORE) {
            Ok(before) => before,
            Err(_) => {
                let before = number(EXTRA)?;
                std::fs::write(BEFORE, before.to_string())
                    .with_context(|| format!("cannot write {BEFORE}"))?;
                before
            }
        };
        let extra = before.max(number(MADE)? + pages);
        std::fs::write(EXTRA, extra.to_string()).with_context(|| format!("cannot write {EXTRA}"))?;
        Ok(Self { before, _only: only })
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(EXTRA, self.before.to_string()).and_then(|()| std::fs::remove_file(BEFORE));
    }
}
