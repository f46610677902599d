//! The tracker of one address space: a userfaultfd in asynchronous write-protect mode, and scans of its page tables.
//!
//! Invariants: the userfaultfd belongs to the address space that the process had when it was made; pages that are not
//! populated are never protected here, because the first touch of a protection marker costs ten times that of an
//! untouched page (shared memory, where nothing else would do, is the exception: [`View::take_shared_writes`]).
//! Kernel: Linux 6.7, `UFFD_FEATURE_WP_ASYNC` and `PAGEMAP_SCAN`. When this process ends, the kernel drops the tracker
//! and the tracked process runs on.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::error::{MemoryError, errno};
use super::layout_diff::USER_END;
use super::ranges::RangeSet;
use crate::model::{PAGE_SIZE, Pid};
use crate::sys::pagemap::{self, Query, Region, category as is};
use crate::sys::userfaultfd;

/// Regions that one scan call may return (24 bytes each).
const REGIONS: usize = 8192;

/// Something is in the page table: a page, or where it was swapped to.
pub(super) const POPULATED: u64 = is::PRESENT | is::SWAPPED;

/// Write-protect tracking of one address space.
#[derive(Debug)]
pub(super) struct Tracker {
    pid: Pid,
    uffd: OwnedFd,
    /// [`is::GUARD`] where the kernel knows guard pages, else 0.
    guard: u64,
}

impl Tracker {
    pub(super) fn new(pid: Pid, uffd: OwnedFd) -> Result<Self, MemoryError> {
        let features = userfaultfd::FEATURE_WP_ASYNC | userfaultfd::FEATURE_WP_UNPOPULATED;
        userfaultfd::handshake(uffd.as_fd(), features)
            .map_err(|source| MemoryError::Handshake { pid, source })?;
        let mut tracker = Self { pid, uffd, guard: 0 };
        let query = Query { any_of: is::GUARD, ..Query::default() };
        if tracker.view()?.scan(0, 0, query, &mut |_| {}).is_ok() {
            tracker.guard = is::GUARD;
        }
        Ok(tracker)
    }

    /// Opens the page tables. The result shows the tracked address space for sure only if [`Self::check_alive`]
    /// succeeds after what was done with it.
    pub(super) fn view(&self) -> Result<View<'_>, MemoryError> {
        self.check_alive()?;
        let pid = self.pid;
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).map_err(|error| match errno(&error) {
            Errno::ENOENT | Errno::ESRCH => MemoryError::AddressSpaceGone { pid },
            source => MemoryError::Proc { pid, name: "pagemap".into(), source },
        })?;
        Ok(View { tracker: self, pagemap, regions: vec![Region::default(); REGIONS] })
    }

    /// Fails with [`MemoryError::AddressSpaceGone`] once the process has ended or executed another program.
    pub(super) fn check_alive(&self) -> Result<(), MemoryError> {
        // The last page of user memory: never mapped, so that a living address space answers ENOENT.
        match userfaultfd::lift_write_protection(self.uffd.as_fd(), USER_END - PAGE_SIZE, USER_END) {
            Err(Errno::ESRCH | Errno::ENOMEM) => Err(MemoryError::AddressSpaceGone { pid: self.pid }),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Puts the mappings of a range under the tracker. `Ok(false)`: not possible for one of them, now or ever.
    pub(super) fn register(&self, start: u64, end: u64) -> Result<bool, MemoryError> {
        match userfaultfd::register_write_protect(self.uffd.as_fd(), start, end) {
            Ok(()) => Ok(true),
            Err(Errno::EPERM | Errno::EBUSY | Errno::EINVAL) => Ok(false),
            Err(source) => {
                self.check_alive()?;
                Err(MemoryError::Register { pid: self.pid, start, end, source })
            }
        }
    }
}

/// The page tables of a tracked address space, opened for one round.
pub(super) struct View<'a> {
    tracker: &'a Tracker,
    pagemap: File,
    regions: Vec<Region>,
}

impl View<'_> {
    /// Runs a query over a range, in as many calls as it takes.
    fn scan(
        &mut self,
        start: u64,
        end: u64,
        query: Query,
        found: &mut dyn FnMut(&Region),
    ) -> Result<(), MemoryError> {
        scan(self.tracker.pid, self.pagemap.as_fd(), &mut self.regions, (start, end), query, found)
    }

    fn collect(&mut self, spans: &[(u64, u64)], query: Query) -> Result<RangeSet, MemoryError> {
        let mut set = RangeSet::new();
        for (start, end) in spans {
            self.scan(*start, *end, query, &mut |region| set.insert(region.start, region.end))?;
        }
        Ok(set)
    }

    /// Populated pages in mappings that are not under the tracker.
    pub(super) fn untracked(&mut self, spans: &[(u64, u64)], kind: Kind) -> Result<RangeSet, MemoryError> {
        let without = is::WP_ALLOWED | kind.not_ours();
        self.collect(
            spans,
            Query { inverted: without, all_of: without, any_of: POPULATED, ..Query::default() },
        )
    }

    /// True if a part of the range, populated or not, is mapped and not under the tracker.
    pub(super) fn has_untracked(&mut self, start: u64, end: u64) -> Result<bool, MemoryError> {
        let query = Query { inverted: is::WP_ALLOWED, all_of: is::WP_ALLOWED, ..Query::default() };
        Ok(!self.collect(&[(start, end)], query)?.is_empty())
    }

    /// Huge pages: takes away what discarded ones have left behind, a marker that looks like a page which was swapped
    /// out (huge pages never are). A page that only moves to another place in memory just then counts as written.
    pub(super) fn clear_markers(&mut self, huge: &RangeSet) -> Result<(), MemoryError> {
        let query = Query { inverted: is::PRESENT, all_of: is::PRESENT | is::SWAPPED, ..Query::default() };
        let spans: Vec<(u64, u64)> = huge.iter().collect();
        let left = self.collect(&spans, query)?;
        for (start, end) in left.iter() {
            match userfaultfd::lift_write_protection(self.tracker.uffd.as_fd(), start, end) {
                // It was unmapped, or mapped anew, meanwhile.
                Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
                Err(source) => {
                    self.tracker.check_alive()?;
                    return Err(MemoryError::Scan { pid: self.tracker.pid, start, end, source });
                }
            }
        }
        Ok(())
    }

    /// Anonymous memory: pages of mappings in which nothing is there any more, and guard pages.
    pub(super) fn vacant(&mut self, spans: &[(u64, u64)]) -> Result<(RangeSet, RangeSet), MemoryError> {
        let guard = self.tracker.guard;
        let query = Query {
            inverted: POPULATED,
            all_of: is::PRESENT,
            any_of: is::SWAPPED | guard,
            report: guard,
            protect: false,
        };
        let (mut absent, mut guards) = (RangeSet::new(), RangeSet::new());
        for (start, end) in spans {
            self.scan(*start, *end, query, &mut |region| {
                let set = if region.categories & guard == 0 { &mut absent } else { &mut guards };
                set.insert(region.start, region.end);
            })?;
        }
        Ok((absent, guards))
    }

    /// Anonymous memory, all that [`Self::vacant`] and [`Self::peek_writes`] tell, in one walk: for a stopped process,
    /// where the walks are what the time is spent on.
    pub(super) fn take_stock(&mut self, spans: &[(u64, u64)]) -> Result<Stock, MemoryError> {
        let guard = self.tracker.guard;
        let query = Query {
            inverted: is::PRESENT,
            any_of: is::PRESENT | is::WRITTEN,
            report: POPULATED | is::WRITTEN | guard,
            ..Query::default()
        };
        let mut stock = Stock::default();
        for (start, end) in spans {
            self.scan(*start, *end, query, &mut |region| {
                let set = match region.categories {
                    found if found & guard != 0 => &mut stock.guards,
                    found if found & POPULATED == 0 => &mut stock.absent,
                    found if found & is::WRITTEN != 0 => &mut stock.written,
                    // Swapped out since it was last asked for.
                    _ => return,
                };
                set.insert(region.start, region.end);
            })?;
        }
        Ok(stock)
    }

    /// Private file mappings: what differs from the file.
    pub(super) fn copies(&mut self, spans: &[(u64, u64)]) -> Result<Copies, MemoryError> {
        let guard = self.tracker.guard;
        let query = Query {
            inverted: is::FILE,
            all_of: is::FILE,
            any_of: POPULATED,
            report: is::PRESENT | guard,
            protect: false,
        };
        let mut copies = Copies::default();
        for (start, end) in spans {
            self.scan(*start, *end, query, &mut |region| {
                let set = match region.categories {
                    found if found & guard != 0 => &mut copies.guards,
                    found if found & is::PRESENT != 0 => &mut copies.present,
                    _ => &mut copies.doubtful,
                };
                set.insert(region.start, region.end);
            })?;
        }
        Ok(copies)
    }

    /// Populated pages that were written since they were last asked for here; they are protected again in the same
    /// step, so that a later write is seen. On an error some may have been protected and not been told.
    pub(super) fn take_writes(&mut self, spans: &[(u64, u64)], kind: Kind) -> Result<RangeSet, MemoryError> {
        self.collect(spans, Query { protect: true, ..self.written_since(kind) })
    }

    /// What [`Self::take_writes`] would find; nothing is protected.
    pub(super) fn peek_writes(&mut self, spans: &[(u64, u64)], kind: Kind) -> Result<RangeSet, MemoryError> {
        self.collect(spans, self.written_since(kind))
    }

    fn written_since(&self, kind: Kind) -> Query {
        let without = self.tracker.guard | kind.not_ours();
        Query { inverted: without, all_of: is::WRITTEN | without, any_of: POPULATED, ..Query::default() }
    }

    /// Shared memory: every page of the range that was written since it was last asked for here, or whose place in
    /// the page table is empty, which may hide a write (a page that was written and then reclaimed leaves nothing
    /// behind). All are protected, the empty ones with a marker.
    pub(super) fn take_shared_writes(&mut self, start: u64, end: u64) -> Result<RangeSet, MemoryError> {
        let query = Query { all_of: is::WRITTEN, report: is::WRITTEN, protect: true, ..Query::default() };
        self.collect(&[(start, end)], query)
    }

    /// What [`Self::take_shared_writes`] would find; nothing is protected.
    pub(super) fn peek_shared_writes(&mut self, start: u64, end: u64) -> Result<RangeSet, MemoryError> {
        let query = Query { all_of: is::WRITTEN, report: is::WRITTEN, ..Query::default() };
        self.collect(&[(start, end)], query)
    }

    /// The first address from `start` on at which something is populated, or `end`.
    pub(super) fn next_populated(&mut self, start: u64, end: u64) -> Result<u64, MemoryError> {
        let query = Query { any_of: POPULATED, ..Query::default() };
        let mut first = end;
        self.scan(start, end, query, &mut |region| first = first.min(region.start))?;
        Ok(first.max(start))
    }
}

/// Runs a query over a range of a process's page tables, in as many calls as it takes.
pub(super) fn scan(
    pid: Pid,
    pagemap: BorrowedFd<'_>,
    regions: &mut [Region],
    (start, end): (u64, u64),
    query: Query,
    found: &mut dyn FnMut(&Region),
) -> Result<(), MemoryError> {
    let mut at = start;
    loop {
        let (count, walked) = pagemap::scan(pagemap, at, end, query, regions)
            .map_err(|source| MemoryError::Scan { pid, start: at, end, source })?;
        regions.iter().take(count).for_each(&mut *found);
        if count == 0 || walked >= end || walked <= at {
            return Ok(());
        }
        at = walked;
    }
}

/// The private memory that is scanned in one go. Asking whether a page belongs to a file makes a scan ten times
/// slower, so it is asked of file mappings only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Private anonymous mappings.
    Anonymous,
    /// Private mappings of files.
    File,
}

impl Kind {
    /// Pages that are not the process's own: those of the file itself.
    fn not_ours(self) -> u64 {
        match self {
            Self::Anonymous => 0,
            Self::File => is::FILE,
        }
    }
}

/// The pages of anonymous memory that have a story to tell.
#[derive(Debug, Default)]
pub(super) struct Stock {
    /// Written since they were last protected.
    pub(super) written: RangeSet,
    /// Nothing is there.
    pub(super) absent: RangeSet,
    /// Guard pages.
    pub(super) guards: RangeSet,
}

/// Pages of private file mappings that differ from the file.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// Copies for sure.
    pub(super) present: RangeSet,
    /// Swapped out copies, or markers that a discarded copy left behind: reading tells.
    pub(super) doubtful: RangeSet,
    /// Guard pages.
    pub(super) guards: RangeSet,
}
