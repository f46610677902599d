//! Huge pages of hugetlbfs: which size a file has, and how many the host can give.
//!
//! Kernel: fstatfs(2) tells the size of a page as that of a block; `/sys/kernel/mm/hugepages`
//! (Documentation/admin-guide/mm/hugetlbpage.rst). A page that is not to be had is `ENOMEM` when memory is mapped, and
//! where nothing was reserved then (`MAP_NORESERVE`) SIGBUS when it is touched.

use std::os::fd::AsFd;

use nix::sys::statfs::fstatfs;

use crate::model::HUGE_PAGE_SIZE;

/// `HUGETLBFS_MAGIC`.
const HUGETLBFS: i64 = 0x9584_58f6;

/// The size of the huge pages that a file is made of, bytes; `None` for a file of any other file system.
pub(crate) fn page_size(file: &impl AsFd) -> Option<u64> {
    let about = fstatfs(file.as_fd()).ok()?;
    (about.filesystem_type().0 == HUGETLBFS).then(|| u64::try_from(about.block_size()).unwrap_or(0))
}

/// Why memory in huge pages cannot be carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// Its pages have another size than those that are carried, bytes.
    PageSize(u64),
    /// It ends within a page: fallocate(2) can do that.
    Torn,
    /// It is larger than all huge pages of the host, so most of it is holes, which nothing tells from pages: hugetlbfs
    /// has no SEEK_DATA.
    Hollow,
}

/// Looks at a file in huge pages of `page_size` bytes: `size` bytes long, `blocks` of 512 bytes in memory.
pub(crate) fn unfit(page_size: u64, size: u64, blocks: u64) -> Option<Unfit> {
    match page_size {
        page_size if !is_carried(page_size) => Some(Unfit::PageSize(page_size)),
        _ if !size.is_multiple_of(HUGE_PAGE_SIZE) => Some(Unfit::Torn),
        // Without any page all of it is one hole.
        _ if blocks > 0 && is_hollow(size, blocks) => Some(Unfit::Hollow),
        _ => None,
    }
}

/// True for `size` bytes, `blocks` of 512 bytes of them in memory, that this host could never have in memory as a whole.
pub(crate) fn is_hollow(size: u64, blocks: u64) -> bool {
    // What is half full needs no look at the host.
    size / 2 > blocks.saturating_mul(512) && size > all().saturating_mul(HUGE_PAGE_SIZE)
}

/// Whether memory in huge pages of so many bytes can be carried.
pub(crate) fn is_carried(size: u64) -> bool {
    size == HUGE_PAGE_SIZE
}

/// How many pages of [`HUGE_PAGE_SIZE`] can be mapped that nobody has reserved: free ones, and those that the kernel may
/// make when they are asked for. (Whether it finds memory for these shows only then.)
pub(crate) fn available() -> u64 {
    count("free").saturating_sub(count("resv")) + possible()
}

/// How many the host has, and may make.
fn all() -> u64 {
    count("nr") + possible()
}

/// How many the kernel may make when they are asked for.
fn possible() -> u64 {
    count("nr_overcommit").saturating_sub(count("surplus"))
}

fn count(what: &str) -> u64 {
    let pool = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", HUGE_PAGE_SIZE / 1024);
    let text = std::fs::read_to_string(format!("{pool}/{what}_hugepages"));
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_carried_is_told() {
        let blocks = |pages: u64| pages * HUGE_PAGE_SIZE / 512;
        assert_eq!(unfit(HUGE_PAGE_SIZE, 4 * HUGE_PAGE_SIZE, blocks(4)), None);
        assert_eq!(unfit(1 << 30, 1 << 30, blocks(0)), Some(Unfit::PageSize(1 << 30)));
        assert_eq!(unfit(HUGE_PAGE_SIZE, HUGE_PAGE_SIZE + 4096, blocks(1)), Some(Unfit::Torn));
        assert_eq!(unfit(HUGE_PAGE_SIZE, 1 << 60, blocks(1)), Some(Unfit::Hollow));
        assert_eq!(unfit(HUGE_PAGE_SIZE, 1 << 60, blocks(0)), None, "nothing is there to be sent");
    }
}
