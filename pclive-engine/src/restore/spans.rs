//! Address ranges of a restorer: what is free, what must move. Pure, but for reading a process's map.

use super::RestoreError;
use crate::model::layout::VdsoLayout;
use crate::model::{HUGE_PAGE_SIZE, PAGE_SIZE, Pid, ProcessLayout};
use crate::proc::maps::parse_maps;

/// Half-open address range.
pub(super) type Span = (u64, u64);

/// `vm.mmap_min_addr` at its usual value; nothing unprivileged is below.
const LOWEST: u64 = 0x10000;
/// End of the user's half of a four-level address space (`TASK_SIZE`).
pub(super) const HIGHEST: u64 = 0x7fff_ffff_f000;
/// Where the search for room begins: far from programs, heaps and the mmap area.
const ROOM_START: u64 = 0x2000_0000_0000;

/// The ranges of the kernel's mappings.
pub(super) fn spans_of(vdso: &VdsoLayout) -> Vec<Span> {
    [vdso.vdso, vdso.vvar, vdso.vvar_vclock].into_iter().flatten().collect()
}

/// Everything of the user's half that is not in `keep`.
pub(super) fn complement(keep: &mut [Span]) -> Vec<Span> {
    keep.sort_unstable();
    let mut gaps = Vec::new();
    let mut from = LOWEST;
    for (start, end) in keep.iter().copied().chain([(HIGHEST, HIGHEST)]) {
        if start > from {
            gaps.push((from, start));
        }
        from = from.max(end);
    }
    gaps
}

/// True if `span` meets a mapping of the layout or one of the kernel's.
pub(super) fn overlaps(layout: &ProcessLayout, span: Span) -> bool {
    occupied(layout).any(|(start, end)| start < span.1 && span.0 < end)
}

/// A free range of `len` bytes with a page of air on both sides.
pub(super) fn free_spot(layout: &ProcessLayout, len: u64) -> Option<u64> {
    free_among(occupied(layout).collect(), len)
}

/// The same, where these ranges are not free.
pub(super) fn free_among(mut taken: Vec<Span>, len: u64) -> Option<u64> {
    taken.sort_unstable();
    let mut spot = ROOM_START;
    for (start, end) in taken {
        if start < spot + len + PAGE_SIZE && spot < end + PAGE_SIZE {
            spot = end + PAGE_SIZE;
        }
    }
    (spot + len + PAGE_SIZE < HIGHEST).then_some(spot)
}

/// A free range for memory that may be in huge pages: it begins where one can.
pub(super) fn huge_spot(taken: &[Span], len: u64) -> Option<u64> {
    let len = len.checked_next_multiple_of(HUGE_PAGE_SIZE)?.checked_add(HUGE_PAGE_SIZE)?;
    Some(free_among(taken.to_vec(), len)?.next_multiple_of(HUGE_PAGE_SIZE))
}

fn occupied(layout: &ProcessLayout) -> impl Iterator<Item = Span> {
    layout.vmas.iter().map(|vma| (vma.start, vma.end)).chain(spans_of(&layout.vdso))
}

/// The moves (from, to, length) that take the kernel's mappings to their places; through a place of their own if
/// old and new places meet. `None` if they differ in kind or size, as those of another kernel do.
pub(super) fn moves(here: &VdsoLayout, wanted: &VdsoLayout) -> Option<Vec<(u64, u64, u64)>> {
    let pairs = [(here.vvar, wanted.vvar), (here.vvar_vclock, wanted.vvar_vclock), (here.vdso, wanted.vdso)];
    let mut direct = Vec::new();
    for pair in pairs {
        match pair {
            (Some(from), Some(to)) if from.1 - from.0 == to.1.checked_sub(to.0)? => {
                direct.push((from.0, to.0, from.1 - from.0));
            }
            (None, None) => {}
            _ => return None,
        }
    }
    let (old, new) = (spans_of(here), spans_of(wanted));
    let meet = old.iter().any(|a| new.iter().any(|b| a.0 < b.1 && b.0 < a.1));
    if !meet {
        return Some(direct);
    }
    let mut aside = (ROOM_START - 0x100_0000, Vec::new(), Vec::new());
    for (from, to, len) in direct {
        aside.1.push((from, aside.0, len));
        aside.2.push((aside.0, to, len));
        aside.0 += len;
    }
    Some(aside.1.into_iter().chain(aside.2).collect())
}

/// Where the kernel's mappings of a process are now.
pub(super) fn kernel_mappings(pid: Pid) -> Result<VdsoLayout, RestoreError> {
    let failed = |source| RestoreError::Maps { pid, source };
    let text = crate::proc::read(format!("/proc/{pid}/maps")).map_err(failed)?;
    let entries = parse_maps(&text).map_err(|error| failed(std::io::Error::other(error)))?;
    let mut found = VdsoLayout::default();
    for entry in entries {
        let place = match entry.name.as_slice() {
            b"[vdso]" => &mut found.vdso,
            b"[vvar]" => &mut found.vvar,
            b"[vvar_vclock]" => &mut found.vvar_vclock,
            _ => continue,
        };
        *place = Some((entry.start, entry.end));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(at: u64) -> VdsoLayout {
        VdsoLayout {
            vvar: Some((at, at + 0x4000)),
            vvar_vclock: Some((at + 0x4000, at + 0x6000)),
            vdso: Some((at + 0x6000, at + 0x8000)),
        }
    }

    #[test]
    fn huge_pages_find_room_that_nothing_meets_and_begin_where_they_can() {
        let mut taken = vec![(ROOM_START + 3 * PAGE_SIZE, ROOM_START + 5 * PAGE_SIZE)];
        for _ in 0..3 {
            let spot = huge_spot(&taken, PAGE_SIZE).unwrap();
            assert_eq!(spot % HUGE_PAGE_SIZE, 0);
            assert!(taken.iter().all(|(start, end)| *end <= spot || spot + HUGE_PAGE_SIZE <= *start));
            taken.push((spot, spot + PAGE_SIZE));
        }
        assert_eq!(huge_spot(&taken, u64::MAX), None);
    }

    #[test]
    fn complement_covers_all_but_what_is_kept() {
        let mut keep = vec![(0x50000, 0x60000), (0x20000, 0x30000)];
        assert_eq!(complement(&mut keep), [(LOWEST, 0x20000), (0x30000, 0x50000), (0x60000, HIGHEST)]);
    }

    #[test]
    fn moves_go_aside_when_old_and_new_places_meet() {
        let there = 0x7fff_0000_0000;
        assert_eq!(moves(&kernel(there), &kernel(there + 0x10_0000)).unwrap().len(), 3);
        let shifted = moves(&kernel(there), &kernel(there + 0x2000)).unwrap();
        assert_eq!(shifted.len(), 6);
        let mut at: Vec<(u64, u64)> = shifted[..3].iter().map(|(_, to, len)| (*to, *len)).collect();
        at.sort_unstable();
        assert!(at.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "the places aside do not meet");
    }

    #[test]
    fn another_kernels_vdso_is_refused() {
        let mut other = kernel(0x7000_0000);
        other.vdso = Some((0x7000_6000, 0x7000_9000));
        assert_eq!(moves(&kernel(0x6000_0000), &other), None);
    }
}
