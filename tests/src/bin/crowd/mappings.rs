//! Neighbouring pages that the kernel cannot make one mapping of: every other one may only be read.

use anyhow::{Context, Result, ensure};

/// Bytes of a page.
const BYTES: usize = 4096;

/// Mappings of a page each; the first word of page `i` is `round * pages + i`.
#[derive(Debug)]
pub(crate) struct Mappings {
    address: usize,
    pages: usize,
    round: u64,
}

impl Mappings {
    pub(crate) fn new(pages: usize) -> Result<Self> {
        let (flags, bytes) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, (pages + 2) * BYTES);
        // SAFETY: without MAP_FIXED the kernel takes addresses that nothing uses.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
        ensure!(address != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        // A page at either end stays out of reach, so that no neighbour becomes part of a mapping.
        let mut mappings = Self { address: address as usize + BYTES, pages, round: 0 };
        mappings.rewrite()?;
        Ok(mappings)
    }

    /// Every page has what was written to it and is a mapping of its own; then all get new contents.
    pub(crate) fn check(&mut self) -> Result<()> {
        for page in 0..self.pages {
            let expected = self.word(page);
            // SAFETY: the page is this object's and may be read.
            let found = unsafe { (self.at(page) as *const u64).read_volatile() };
            ensure!(found == expected, "page {page} has {found:x} instead of {expected:x}");
        }
        let found = self.mapped()?;
        ensure!(found == self.pages, "{found} mappings instead of {}", self.pages);
        self.rewrite()
    }

    fn rewrite(&mut self) -> Result<()> {
        self.round += 1;
        for page in 0..self.pages {
            self.protect(page, libc::PROT_READ | libc::PROT_WRITE)?;
            // SAFETY: the page is this object's and has just been made writable.
            unsafe { (self.at(page) as *mut u64).write_volatile(self.word(page)) };
            if !page.is_multiple_of(2) {
                self.protect(page, libc::PROT_READ)?;
            }
        }
        Ok(())
    }

    fn protect(&self, page: usize, protection: libc::c_int) -> Result<()> {
        // SAFETY: the page is this object's, which writes to it only after it has made it writable.
        let result = unsafe { libc::mprotect(self.at(page) as *mut libc::c_void, BYTES, protection) };
        ensure!(result == 0, "mprotect of page {page}: {}", std::io::Error::last_os_error());
        Ok(())
    }

    /// Mappings of this object that the kernel shows as one page with the protection that it must have.
    fn mapped(&self) -> Result<usize> {
        let maps = std::fs::read_to_string("/proc/self/maps").context("cannot read /proc/self/maps")?;
        let own = |line: &&str| -> Option<bool> {
            let mut words = line.split(' ');
            let (start, end) = words.next()?.split_once('-')?;
            let start = usize::from_str_radix(start, 16).ok()?;
            let page = start.checked_sub(self.address)? / BYTES;
            let protection = if page.is_multiple_of(2) { "rw-p" } else { "r--p" };
            let one_page = usize::from_str_radix(end, 16).ok()? == start + BYTES;
            Some(page < self.pages && one_page && words.next()? == protection)
        };
        Ok(maps.lines().filter(|line| own(line) == Some(true)).count())
    }

    fn at(&self, page: usize) -> usize {
        self.address + page * BYTES
    }

    fn word(&self, page: usize) -> u64 {
        self.round * self.pages as u64 + page as u64
    }
}
