//! What turns one set of mappings into another: pure, by intervals of addresses.
//!
//! Both ends use it. The destination runs the operations in its restorers; the source takes from the same operations
//! which memory the destination loses that way, and sends it again. A mapping that the kernel has split or merged
//! without changing what any page shows costs nothing. Memory that moved is unmapped and mapped anew.

use crate::model::{HUGE_PAGE_SIZE, Mapping, PAGE_SIZE, Protection, Vma, VmaFlags};

/// First address above the memory of a process (x86-64, four-level page tables).
pub const USER_END: u64 = 0x7fff_ffff_f000;

/// A step; ranges are half-open and page-aligned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayoutOp {
    /// Drop whatever is mapped; its contents are lost.
    Unmap {
        /// First address.
        start: u64,
        /// One past the last address.
        end: u64,
    },
    /// Map new memory, with its protection and flags; nothing is mapped there.
    Map(Vma),
    /// Change the protection; contents stay.
    Protect {
        /// First address.
        start: u64,
        /// One past the last address.
        end: u64,
        /// The new protection.
        protection: Protection,
    },
    /// Change the properties that madvise(2) and mlock(2) set; contents stay.
    Advise {
        /// First address.
        start: u64,
        /// One past the last address.
        end: u64,
        /// What is set now.
        old: VmaFlags,
        /// What is to be set.
        new: VmaFlags,
    },
}

/// A list of mappings that no kernel can have reported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("mapping {start:x}-{end:x} {what}")]
pub struct LayoutError {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// "overlaps the one before it" ...
    pub what: &'static str,
}

/// Checks mappings that came from a peer: ascending, not overlapping, page-aligned, in user memory.
pub fn check_vmas(vmas: &[Vma]) -> Result<(), LayoutError> {
    let mut last = 0;
    for vma in vmas {
        let refuse = |what| Err(LayoutError { start: vma.start, end: vma.end, what });
        let huge = vma.mapping == Mapping::PrivateHuge;
        match () {
            () if vma.start >= vma.end => return refuse("is empty"),
            () if vma.start % PAGE_SIZE != 0 || vma.end % PAGE_SIZE != 0 => {
                return refuse("is not page-aligned");
            }
            () if huge && (vma.start % HUGE_PAGE_SIZE != 0 || vma.end % HUGE_PAGE_SIZE != 0) => {
                return refuse("is not aligned to its huge pages");
            }
            () if vma.end > USER_END => return refuse("is not user memory"),
            () if vma.start < last => return refuse("overlaps the one before it"),
            () => last = vma.end,
        }
    }
    Ok(())
}

/// The steps from `old` to `new` (both as [`check_vmas`] demands): first everything that is dropped, then what is
/// mapped, then changes of protection, then of flags; ascending within each kind.
pub fn plan(old: &[Vma], new: &[Vma]) -> Vec<LayoutOp> {
    if old == new {
        return Vec::new();
    }
    let mut steps = Steps::default();
    let (mut olds, mut news) = (Cursor::new(old), Cursor::new(new));
    let mut at = 0;
    while let Some(next) = olds.boundary(at).into_iter().chain(news.boundary(at)).min() {
        steps.interval(at, next, olds.covering(at), news.covering(at));
        at = next;
    }
    steps.in_order()
}

/// Walks a list of mappings by ascending address.
struct Cursor<'a> {
    vmas: &'a [Vma],
}

impl<'a> Cursor<'a> {
    fn new(vmas: &'a [Vma]) -> Self {
        Self { vmas }
    }

    /// The next address after `at` at which a mapping starts or ends.
    fn boundary(&mut self, at: u64) -> Option<u64> {
        while let Some((_, rest)) = self.vmas.split_first().filter(|(first, _)| first.end <= at) {
            self.vmas = rest;
        }
        self.vmas.first().map(|vma| if vma.start > at { vma.start } else { vma.end })
    }

    /// The mapping at `at`, after [`Self::boundary`] was asked for the same address.
    fn covering(&self, at: u64) -> Option<&'a Vma> {
        self.vmas.first().filter(|vma| vma.start <= at)
    }
}

#[derive(Default)]
struct Steps {
    unmaps: Vec<(u64, u64)>,
    maps: Vec<Vma>,
    protects: Vec<(u64, u64, Protection)>,
    advises: Vec<(u64, u64, VmaFlags, VmaFlags)>,
}

impl Steps {
    fn interval(&mut self, start: u64, end: u64, old: Option<&Vma>, new: Option<&Vma>) {
        match (old, new) {
            (None, None) => {}
            (Some(_), None) => self.unmap(start, end),
            (None, Some(new)) => self.map(start, end, new),
            (Some(old), Some(new)) if same_memory(old, new, start) => self.change(start, end, old, new),
            (Some(_), Some(new)) => {
                self.unmap(start, end);
                self.map(start, end, new);
            }
        }
    }

    fn unmap(&mut self, start: u64, end: u64) {
        match self.unmaps.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => self.unmaps.push((start, end)),
        }
    }

    /// Intervals of one mapping that follow each other become one map.
    fn map(&mut self, start: u64, end: u64, new: &Vma) {
        match self.maps.last_mut() {
            Some(last) if last.end == start && start > new.start => last.end = end,
            _ => self.maps.push(new.cut(start, end)),
        }
    }

    fn change(&mut self, start: u64, end: u64, old: &Vma, new: &Vma) {
        if old.protection != new.protection {
            match self.protects.last_mut() {
                Some(last) if last.1 == start && last.2 == new.protection => last.1 = end,
                _ => self.protects.push((start, end, new.protection)),
            }
        }
        if advisable(old.flags) != advisable(new.flags) {
            match self.advises.last_mut() {
                Some(last) if last.1 == start && last.2 == old.flags && last.3 == new.flags => last.1 = end,
                _ => self.advises.push((start, end, old.flags, new.flags)),
            }
        }
    }

    fn in_order(self) -> Vec<LayoutOp> {
        let unmaps = self.unmaps.into_iter().map(|(start, end)| LayoutOp::Unmap { start, end });
        let maps = self.maps.into_iter().map(LayoutOp::Map);
        let protects = self.protects.into_iter();
        let protects = protects.map(|(start, end, protection)| LayoutOp::Protect { start, end, protection });
        let advises = self.advises.into_iter();
        let advises = advises.map(|(start, end, old, new)| LayoutOp::Advise { start, end, old, new });
        unmaps.chain(maps).chain(protects).chain(advises).collect()
    }
}

/// MAP_NORESERVE only says how the mapping was accounted when it was made, and cannot change in place.
fn advisable(flags: VmaFlags) -> VmaFlags {
    VmaFlags { no_reserve: false, ..flags }
}

/// True if both mappings show the same memory at `at`, so that a change in place is enough.
fn same_memory(old: &Vma, new: &Vma, at: u64) -> bool {
    if old.flags.grows_down != new.flags.grows_down {
        return false;
    }
    let position = |vma: &Vma, offset: u64| offset.wrapping_add(at - vma.start);
    match (&old.mapping, &new.mapping) {
        (Mapping::PrivateAnonymous, Mapping::PrivateAnonymous)
        | (Mapping::PrivateHuge, Mapping::PrivateHuge) => true,
        (Mapping::PrivateFile(a), Mapping::PrivateFile(b)) => {
            a.path == b.path && position(old, a.offset) == position(new, b.offset)
        }
        (
            Mapping::SharedFile { file: a, may_write: write_a, object: object_a },
            Mapping::SharedFile { file: b, may_write: write_b, object: object_b },
        ) => {
            (&a.path, write_a, object_a) == (&b.path, write_b, object_b)
                && position(old, a.offset) == position(new, b.offset)
        }
        (
            Mapping::SharedObject { object: a, offset: offset_a, may_write: write_a },
            Mapping::SharedObject { object: b, offset: offset_b, may_write: write_b },
        ) => (a, write_a) == (b, write_b) && position(old, *offset_a) == position(new, *offset_b),
        (
            Mapping::PrivateObject { object: a, offset: offset_a },
            Mapping::PrivateObject { object: b, offset: offset_b },
        ) => a == b && position(old, *offset_a) == position(new, *offset_b),
        (
            Mapping::PrivateAnonymous
            | Mapping::PrivateHuge
            | Mapping::PrivateFile(_)
            | Mapping::SharedFile { .. }
            | Mapping::SharedObject { .. }
            | Mapping::PrivateObject { .. },
            _,
        ) => false,
    }
}

#[cfg(test)]
#[path = "layout_diff_tests.rs"]
mod tests;
