//! Which pages of a process are missing, while it maps, moves and drops its memory.
//!
//! A page is known by where it was at the source, its *origin*; where it belongs now is looked up. Pure.
//!
//! Threads change their memory at the same time, and the kernel tells these changes in another order than it made them:
//! a thread that has moved or unmapped something may tell so only after another has moved something into the gap. What
//! is found where something else arrives is therefore *departing*: the next event for that place is its own. What has
//! arrived is *fresh*, and to unmap it is in doubt, until every change has been told ([`Missing::settle`]); until then
//! the kernel takes no page ([`super::Placing::Later`]).

use std::collections::BTreeMap;

use crate::model::PAGE_SIZE;

/// Pages in one word's worth of a [`Pages`] block.
const WORD: u64 = 64;
/// Pages of a block.
const BLOCK: u64 = 8 * WORD;

/// A set of pages that is changed page by page: a bitmap for each 2 MiB.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Pages {
    blocks: BTreeMap<u64, [u64; 8]>,
    count: u64,
}

impl Pages {
    fn slot(address: u64) -> (u64, usize, u64) {
        let page = address / PAGE_SIZE;
        (page / BLOCK, (page % BLOCK / WORD) as usize, 1 << (page % WORD))
    }

    fn insert(&mut self, address: u64) {
        let (block, word, bit) = Self::slot(address);
        let word = &mut self.blocks.entry(block).or_default()[word];
        self.count += u64::from(*word & bit == 0);
        *word |= bit;
    }

    fn contains(&self, address: u64) -> bool {
        let (block, word, bit) = Self::slot(address);
        self.blocks.get(&block).is_some_and(|words| words[word] & bit != 0)
    }

    fn first(&self) -> Option<u64> {
        let (block, words) = self.blocks.iter().find(|(_, words)| words.iter().any(|word| *word != 0))?;
        let word = words.iter().position(|word| *word != 0)?;
        let bit = u64::from(words[word].trailing_zeros());
        Some((block * BLOCK + word as u64 * WORD + bit) * PAGE_SIZE)
    }

    fn remove(&mut self, start: u64, end: u64) {
        if self.count == 0 || start >= end {
            return;
        }
        let (first, past) = (start / PAGE_SIZE, end.div_ceil(PAGE_SIZE));
        for (block, words) in self.blocks.range_mut(first / BLOCK..past.div_ceil(BLOCK)) {
            let base = block * BLOCK;
            for page in first.max(base)..past.min(base + BLOCK) {
                let (_, word, bit) = Self::slot(page * PAGE_SIZE);
                self.count -= u64::from(words[word] & bit != 0);
                words[word] &= !bit;
            }
        }
        if self.count == 0 {
            self.blocks.clear();
        }
    }
}

/// A stretch of memory that has come with the process, and where it was at the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    start: u64,
    end: u64,
    origin: u64,
    /// It has arrived since every change was told.
    fresh: bool,
}

impl Place {
    /// The part within `start..end`.
    fn part(&self, start: u64, end: u64) -> Option<Self> {
        let (from, to) = (self.start.max(start), self.end.min(end));
        (from < to).then(|| Self { start: from, end: to, origin: self.origin + (from - self.start), ..*self })
    }

    fn origin_end(&self) -> u64 {
        self.origin + (self.end - self.start)
    }
}

/// What a process lacks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Missing {
    /// Ascending, without overlaps; no two have an origin in common.
    places: Vec<Place>,
    /// Origins of the pages that are not in place.
    left: Pages,
    /// What has left its place without having told so.
    departing: Vec<Place>,
    /// Ranges with fresh places that somebody has unmapped, or what was there before.
    doubtful: Vec<(u64, u64)>,
    /// Two changes of one place that could be in either order.
    ambiguous: bool,
}

impl Missing {
    /// The pages of `runs` in the mappings `areas`, all of them where they were at the source.
    pub fn new(areas: &[(u64, u64)], runs: impl Iterator<Item = (u64, u64)>) -> Self {
        let place =
            |(start, end): &(u64, u64)| Place { start: *start, end: *end, origin: *start, fresh: false };
        let mut missing = Self { places: areas.iter().map(place).collect(), ..Self::default() };
        missing.places.sort_unstable_by_key(|place| place.start);
        for (start, end) in runs {
            (start..end).step_by(PAGE_SIZE as usize).for_each(|page| missing.left.insert(page));
        }
        missing
    }

    /// True once nothing is missing.
    pub fn is_empty(&self) -> bool {
        self.left.count == 0
    }

    /// How many pages are missing.
    pub fn pages(&self) -> u64 {
        self.left.count
    }

    /// The lowest origin of a missing page.
    pub fn first(&self) -> Option<u64> {
        self.left.first()
    }

    /// The origin of the page that is missing at an address.
    pub fn origin_at(&self, address: u64) -> Option<u64> {
        let page = address / PAGE_SIZE * PAGE_SIZE;
        let at = self.places.partition_point(|place| place.end <= page);
        let place = self.places.get(at).filter(|place| place.start <= page)?;
        let origin = place.origin + (page - place.start);
        self.left.contains(origin).then_some(origin)
    }

    /// True if the page of this origin is missing.
    pub fn lacks(&self, origin: u64) -> bool {
        self.left.contains(origin)
    }

    /// Where the missing pages among `count` from an origin on belong, in runs: address, origin, bytes.
    pub fn belongs(&self, origin: u64, end: u64) -> Vec<(u64, u64, u64)> {
        let mut runs: Vec<(u64, u64, u64)> = Vec::new();
        for place in self.places.iter().filter(|place| place.origin < end && origin < place.origin_end()) {
            let (from, to) = (place.origin.max(origin), place.origin_end().min(end));
            for page in (from..to).step_by(PAGE_SIZE as usize).filter(|page| self.left.contains(*page)) {
                let address = place.start + (page - place.origin);
                match runs.last_mut() {
                    Some((start, first, len)) if *start + *len == address && *first + *len == page => {
                        *len += PAGE_SIZE;
                    }
                    Some(_) | None => runs.push((address, page, PAGE_SIZE)),
                }
            }
        }
        runs
    }

    /// These pages are in place.
    pub fn placed(&mut self, origin: u64, end: u64) {
        self.left.remove(origin, end);
    }

    /// The process has dropped the pages of a range: they read as zeros.
    pub fn dropped(&mut self, start: u64, end: u64) {
        for part in self.places.iter().filter_map(|place| place.part(start, end)) {
            self.left.remove(part.origin, part.origin_end());
        }
    }

    /// The process has unmapped a range.
    pub fn unmapped(&mut self, start: u64, end: u64) {
        let (gone, rest) = self.take_departing(start, end);
        gone.iter().for_each(|place| self.left.remove(place.origin, place.origin_end()));
        for (start, end) in rest {
            if self.places.iter().any(|place| place.fresh && place.part(start, end).is_some()) {
                self.doubtful.push((start, end));
            } else {
                self.forget(start, end);
            }
        }
    }

    /// What a child lacks. What has left its place without having told so tells it to the parent alone.
    pub fn of_child(&self) -> Self {
        let mut child = self.clone();
        for place in std::mem::take(&mut child.departing) {
            child.left.remove(place.origin, place.origin_end());
        }
        child
    }

    fn forget(&mut self, start: u64, end: u64) {
        self.dropped(start, end);
        self.cut(start, end);
    }

    /// What departs from a range, which is taken out, and the parts of the range without.
    fn take_departing(&mut self, start: u64, end: u64) -> (Vec<Place>, Vec<(u64, u64)>) {
        if self.departing.is_empty() {
            return (Vec::new(), vec![(start, end)]);
        }
        let mut gone: Vec<Place> = self.departing.iter().filter_map(|place| place.part(start, end)).collect();
        let keep = |place: &Place| [place.part(0, start), place.part(end, u64::MAX)];
        self.departing = self.departing.iter().flat_map(keep).flatten().collect();
        gone.sort_unstable_by_key(|place| place.start);
        let (mut rest, mut at) = (Vec::new(), start);
        for place in &gone {
            // Two of them in one place: which of them it is that has told cannot be known.
            self.ambiguous |= place.start < at;
            if at < place.start {
                rest.push((at, place.start));
            }
            at = at.max(place.end);
        }
        if at < end {
            rest.push((at, end));
        }
        (gone, rest)
    }

    /// True if something is departing, fresh or in doubt: [`Self::settle`] once every change was told.
    pub fn is_unsettled(&self) -> bool {
        !self.departing.is_empty() || !self.doubtful.is_empty() || self.places.iter().any(|place| place.fresh)
    }

    /// Every change was told. `is_ours` says whether the mapping at an address is one that lacks pages. False: what became
    /// of a page cannot be known.
    pub fn settle(&mut self, is_ours: impl Fn(u64) -> bool) -> bool {
        for (start, end) in std::mem::take(&mut self.doubtful) {
            let parts: Vec<Place> = self.places.iter().filter_map(|place| place.part(start, end)).collect();
            for part in parts {
                let gone = (part.start..part.end).step_by(PAGE_SIZE as usize).filter(|page| !is_ours(*page));
                for page in gone.collect::<Vec<_>>() {
                    self.forget(page, page + PAGE_SIZE);
                }
            }
        }
        let lost = self.departing.iter().any(|place| {
            (place.origin..place.origin_end())
                .step_by(PAGE_SIZE as usize)
                .any(|page| self.left.contains(page))
        });
        self.departing.clear();
        self.places.iter_mut().for_each(|place| place.fresh = false);
        !self.ambiguous && !lost
    }

    /// The process has moved its mappings.
    pub fn moved(&mut self, from: u64, to: u64, len: u64) {
        let (end, past) = (from.saturating_add(len), to.saturating_add(len));
        let (mut moving, rest) = self.take_departing(from, end);
        for (start, end) in rest {
            // Has it arrived here just now and moves on, or is it told late by what was here before and knew nothing of
            // its pages? The latter moves nothing that is known.
            moving.extend(self.places.iter().filter_map(|place| place.part(start, end)));
            self.cut(start, end);
        }
        // A mapping that is moved over another unmaps that first, and tells so: what is here has left.
        let leaving: Vec<Place> = self.places.iter().filter_map(|place| place.part(to, past)).collect();
        self.departing.extend(leaving);
        self.cut(to, past);
        let moved = moving.into_iter().map(|place| {
            let start = to + (place.start - from);
            Place { start, end: start + (place.end - place.start), origin: place.origin, fresh: true }
        });
        self.places.extend(moved);
        self.places.sort_unstable_by_key(|place| place.start);
    }

    fn cut(&mut self, start: u64, end: u64) {
        let keep = |place: &Place| [place.part(0, start), place.part(end, u64::MAX)];
        self.places = self.places.iter().flat_map(keep).flatten().collect();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const P: u64 = PAGE_SIZE;

    fn of(areas: &[(u64, u64)], runs: &[(u64, u64)]) -> Missing {
        let bytes = |(start, end): &(u64, u64)| (start * P, end * P);
        let areas: Vec<_> = areas.iter().map(bytes).collect();
        Missing::new(&areas, runs.iter().map(bytes))
    }

    #[test]
    fn a_page_is_missing_until_it_is_in_place() {
        let mut missing = of(&[(10, 20)], &[(12, 14), (600, 600)]);
        assert_eq!(missing.origin_at(12 * P + 5), Some(12 * P));
        assert_eq!(missing.origin_at(14 * P), None);
        assert_eq!(missing.belongs(10 * P, 20 * P), [(12 * P, 12 * P, 2 * P)]);
        missing.placed(12 * P, 13 * P);
        assert_eq!((missing.origin_at(12 * P), missing.pages()), (None, 1));
        missing.placed(13 * P, 14 * P);
        assert!(missing.is_empty());
    }

    #[test]
    fn what_was_dropped_is_not_missing_any_more() {
        let mut missing = of(&[(0, 8)], &[(0, 8)]);
        missing.dropped(2 * P, 4 * P);
        missing.unmapped(6 * P, 9 * P);
        assert_eq!(missing.belongs(0, 8 * P), [(0, 0, 2 * P), (4 * P, 4 * P, 2 * P)]);
    }

    #[test]
    fn a_page_moves_with_its_mapping_and_keeps_its_origin() {
        let mut missing = of(&[(0, 8)], &[(2, 4)]);
        missing.moved(2 * P, 100 * P, 4 * P);
        assert_eq!(missing.origin_at(2 * P), None);
        assert_eq!(missing.origin_at(101 * P), Some(3 * P));
        missing.moved(101 * P, 0, P);
        assert_eq!(missing.belongs(0, 8 * P), [(0, 3 * P, P), (100 * P, 2 * P, P)]);
    }

    #[test]
    fn what_is_told_late_is_told_of_what_was_there_before() {
        // In truth: 0..4 moves to 100, then 50..54 moves to 0; or 0..4 is unmapped, then 50..54 moves there.
        for unmapped in [true, false] {
            let mut missing = of(&[(0, 4), (50, 54)], &[(0, 4), (50, 54)]);
            missing.moved(50 * P, 0, 4 * P);
            if unmapped {
                missing.unmapped(0, 4 * P);
            } else {
                missing.moved(0, 100 * P, 4 * P);
            }
            assert!(missing.settle(|_| true));
            assert_eq!(missing.origin_at(0), Some(50 * P));
            assert_eq!(missing.origin_at(100 * P), (!unmapped).then_some(0));
        }
    }

    #[test]
    fn child_does_not_wait_for_what_its_parent_is_told() {
        let mut missing = of(&[(0, 4), (50, 54)], &[(0, 4), (50, 54)]);
        missing.moved(50 * P, 0, 4 * P);
        let mut child = missing.of_child();
        assert!(child.settle(|_| true));
        assert_eq!((child.pages(), missing.pages()), (4, 8));
    }

    #[test]
    fn what_arrived_and_was_unmapped_is_looked_at_once_all_is_told() {
        for ours in [true, false] {
            let mut missing = of(&[(50, 54)], &[(50, 54)]);
            missing.moved(50 * P, 0, 4 * P);
            missing.unmapped(0, 4 * P);
            assert!(missing.is_unsettled());
            assert!(missing.settle(|_| ours));
            assert_eq!(missing.pages(), if ours { 4 } else { 0 });
            assert!(!missing.is_unsettled());
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Placed(u64, u64),
        Dropped(u64, u64),
        Unmapped(u64, u64),
        Moved(u64, u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let (at, len) = (0u64..64, 1u64..12);
        prop_oneof![
            (at.clone(), len.clone()).prop_map(|(at, len)| Step::Placed(at, len)),
            (at.clone(), len.clone()).prop_map(|(at, len)| Step::Dropped(at, len)),
            (at.clone(), len.clone()).prop_map(|(at, len)| Step::Unmapped(at, len)),
            (at.clone(), at, len)
                .prop_filter("overlap", |(a, b, len)| a.abs_diff(*b) >= *len)
                .prop_map(|(from, to, len)| Step::Moved(from, to, len)),
        ]
    }

    proptest! {
        /// Against a map from address to origin, page by page.
        #[test]
        fn every_page_is_where_a_naive_map_has_it(steps in proptest::collection::vec(step(), 0..40)) {
            let mut missing = of(&[(0, 20), (24, 40)], &[(0, 3), (5, 20), (24, 33)]);
            let mut naive: BTreeMap<u64, u64> =
                (0..3).chain(5..20).chain(24..33).map(|page| (page, page)).collect();
            for step in steps {
                match step {
                    Step::Placed(at, len) => {
                        missing.placed(at * P, (at + len) * P);
                        naive.retain(|_, origin| !(at..at + len).contains(origin));
                    }
                    Step::Dropped(at, len) => {
                        missing.dropped(at * P, (at + len) * P);
                        naive.retain(|page, _| !(at..at + len).contains(page));
                    }
                    Step::Unmapped(at, len) => {
                        missing.unmapped(at * P, (at + len) * P);
                        naive.retain(|page, _| !(at..at + len).contains(page));
                    }
                    Step::Moved(from, to, len) => {
                        missing.moved(from * P, to * P, len * P);
                        naive.retain(|page, _| !(to..to + len).contains(page));
                        let moving: Vec<_> = naive.range(from..from + len).map(|(a, b)| (*a, *b)).collect();
                        naive.retain(|page, _| !(from..from + len).contains(page));
                        naive.extend(moving.into_iter().map(|(page, origin)| (page - from + to, origin)));
                    }
                }
                // The kernel tells what a move unmaps; the naive map has it unmapped.
                missing.departing.iter().for_each(|place| missing.left.remove(place.origin, place.origin_end()));
                missing.departing.clear();
                prop_assert!(missing.settle(|page| naive.contains_key(&(page / P))));
                prop_assert_eq!(missing.pages(), naive.len() as u64);
                for page in 0..90 {
                    let expected = naive.get(&page).map(|origin| origin * P);
                    prop_assert_eq!(missing.origin_at(page * P), expected);
                }
                for (page, origin) in &naive {
                    prop_assert_eq!(missing.belongs(origin * P, (origin + 1) * P), [(page * P, origin * P, P)]);
                }
            }
        }
    }
}
