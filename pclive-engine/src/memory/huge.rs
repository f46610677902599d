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

/// Whether memory in huge pages of so many bytes can be carried.
pub(crate) fn is_carried(size: u64) -> bool {
    size == HUGE_PAGE_SIZE
}

/// How many pages of [`HUGE_PAGE_SIZE`] can be mapped that nobody has reserved: free ones, and those that the kernel may
/// make when they are asked for. (Whether it finds memory for these shows only then.)
pub(crate) fn available() -> u64 {
    let count = |name: &str| {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/{name}_hugepages", HUGE_PAGE_SIZE / 1024);
        std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let free = count("free").saturating_sub(count("resv"));
    free + count("nr_overcommit").saturating_sub(count("surplus"))
}
