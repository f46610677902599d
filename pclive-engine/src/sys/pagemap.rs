//! `PAGEMAP_SCAN` on `/proc/PID/pagemap`: which pages are there, which were written, and protect them again.
//!
//! Kernel: Linux 6.7 (`PAGE_IS_GUARD`: 6.16), `Documentation/admin-guide/mm/pagemap.rst`. Addresses in bytes.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::Error;
use nix::errno::Errno;

/// Categories of a page (`PAGE_IS_*`), a bit each.
pub mod category {
    /// The mapping is under asynchronous write protection.
    pub const WP_ALLOWED: u64 = 1 << 0;
    /// Written since it was protected, or never protected.
    pub const WRITTEN: u64 = 1 << 1;
    /// Backed by a file's page cache (not an anonymous copy).
    pub const FILE: u64 = 1 << 2;
    /// In memory and mapped.
    pub const PRESENT: u64 = 1 << 3;
    /// A swap entry, a migration entry or a marker in the page table.
    pub const SWAPPED: u64 = 1 << 4;
    /// The shared zero page.
    pub const PFN_ZERO: u64 = 1 << 5;
    /// A guard page (`MADV_GUARD_INSTALL`).
    pub const GUARD: u64 = 1 << 8;
}

/// `struct page_region`: a run of pages with the same reported categories.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// The categories that were asked for and that all these pages have.
    pub categories: u64,
}

#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const PAGEMAP_SCAN: u64 = (3 << 30) | ((size_of::<ScanArg>() as u64) << 16) | ((b'f' as u64) << 8) | 16;
const _: () = assert!(size_of::<ScanArg>() == 96 && PAGEMAP_SCAN == 0xc060_6610);
const _: () = assert!(size_of::<Region>() == 24);

const PM_SCAN_WP_MATCHING: u64 = 1 << 0;

/// Which pages a scan reports: with the bits of `inverted` flipped, those with every category of `all_of` and,
/// unless that is empty, one of `any_of`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Query {
    /// Categories that count as there when they are not.
    pub inverted: u64,
    /// Categories that must be there.
    pub all_of: u64,
    /// Categories of which one must be there; 0 for no such condition.
    pub any_of: u64,
    /// Categories to report (not inverted); runs are split where these differ.
    pub report: u64,
    /// Protect every reported page in the same step; skips mappings that are not under the tracker.
    pub protect: bool,
}

/// One `PAGEMAP_SCAN` over a range. Returns how many regions were filled in, and where the walk ended: the range
/// is done when that is not below `end` or when there was no region.
///
/// Errors: EINVAL (a category that the kernel does not know, an unaligned range), EFAULT, ENOMEM. On an error pages
/// may have been protected without having been reported.
pub fn scan(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    query: Query,
    regions: &mut [Region],
) -> Result<(usize, u64), Error> {
    let mut argument = ScanArg {
        size: size_of::<ScanArg>() as u64,
        flags: if query.protect { PM_SCAN_WP_MATCHING } else { 0 },
        start,
        end,
        walk_end: 0,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        max_pages: 0,
        category_inverted: query.inverted,
        category_mask: query.all_of,
        category_anyof_mask: query.any_of,
        return_mask: query.report,
    };
    // SAFETY: `argument` is a live `struct pm_scan_arg` (layout const-asserted); `vec` and `vec_len` describe
    // exactly the exclusively borrowed slice, the only other memory that the kernel writes.
    let found =
        Errno::result(unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN as _, &raw mut argument) })?;
    Ok((usize::try_from(found).unwrap_or(0).min(regions.len()), argument.walk_end))
}
