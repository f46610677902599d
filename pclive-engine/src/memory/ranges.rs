//! Sets of pages as sorted runs.
//!
//! Invariants: runs are half-open, page-aligned, ascending, not empty, and neither overlap nor touch. A vector and
//! not a tree (`rangemap`, a BTreeMap a range): a scan reports its runs in order, so the sets of a round are built by
//! appending and combined by linear merges, which a tree of a hundred thousand runs does ten times slower.

use crate::model::PAGE_SIZE;

/// A set of pages, kept as half-open runs of byte addresses (or offsets).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RangeSet {
    runs: Vec<(u64, u64)>,
}

impl RangeSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// True without a single page.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// How many runs it takes.
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// How many pages are in it.
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|(start, end)| (end - start) / PAGE_SIZE).sum()
    }

    /// The runs, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.runs.iter().copied()
    }

    /// True if the page at `address` is in it.
    pub fn contains(&self, address: u64) -> bool {
        let at = self.runs.partition_point(|(_, end)| *end <= address);
        self.runs.get(at).is_some_and(|(start, _)| *start <= address)
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.runs.clear();
    }

    /// Adds a run; an empty one adds nothing. Cheap at and behind the end, else linear in the runs behind it.
    pub fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        match self.runs.last_mut() {
            Some(last) if start > last.1 => self.runs.push((start, end)),
            Some(last) if start >= last.0 => last.1 = last.1.max(end),
            Some(_) => self.insert_within(start, end),
            None => self.runs.push((start, end)),
        }
    }

    fn insert_within(&mut self, start: u64, end: u64) {
        let first = self.runs.partition_point(|run| run.1 < start);
        let past = self.runs.partition_point(|run| run.0 <= end);
        let joined = self.runs.get(first..past).unwrap_or_default();
        let low = joined.first().map_or(start, |run| run.0.min(start));
        let high = joined.last().map_or(end, |run| run.1.max(end));
        if let [only] = joined
            && *only == (low, high)
        {
            return;
        }
        self.runs.splice(first..past, [(low, high)]);
    }

    /// Takes a run out.
    pub fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let first = self.runs.partition_point(|run| run.1 <= start);
        let past = self.runs.partition_point(|run| run.0 < end);
        let Some(cut) = self.runs.get(first..past).filter(|cut| !cut.is_empty()) else { return };
        let left = cut.first().map(|run| (run.0, start)).filter(|run| run.0 < run.1);
        let right = cut.last().map(|run| (end, run.1)).filter(|run| run.0 < run.1);
        self.runs.splice(first..past, left.into_iter().chain(right));
    }

    /// The parts of the set within `start..end`, ascending.
    pub fn within(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let first = self.runs.partition_point(|run| run.1 <= start);
        let runs = self.runs.get(first..).unwrap_or_default();
        let runs = runs.iter().take_while(move |run| run.0 < end);
        runs.map(move |run| (run.0.max(start), run.1.min(end))).filter(|run| run.0 < run.1)
    }

    /// Pages in either.
    pub fn union(&self, other: &Self) -> Self {
        let (mut ours, mut theirs) = (self.iter().peekable(), other.iter().peekable());
        let mut all = Self { runs: Vec::with_capacity(self.runs.len().max(other.runs.len())) };
        loop {
            let next = match (ours.peek(), theirs.peek()) {
                (Some(a), Some(b)) if a.0 <= b.0 => ours.next(),
                (_, Some(_)) => theirs.next(),
                (_, None) => ours.next(),
            };
            match next {
                Some((start, end)) => all.insert(start, end),
                None => return all,
            }
        }
    }

    /// Pages in both.
    pub fn intersection(&self, other: &Self) -> Self {
        let (mut ours, mut theirs) = (self.iter().peekable(), other.iter().peekable());
        let mut both = Self::new();
        while let (Some(a), Some(b)) = (ours.peek(), theirs.peek()) {
            both.insert(a.0.max(b.0), a.1.min(b.1));
            if a.1 <= b.1 {
                ours.next()
            } else {
                theirs.next()
            };
        }
        both
    }

    /// Pages of this set that are not in `other`.
    pub fn difference(&self, other: &Self) -> Self {
        let mut rest = Self::new();
        let mut cuts = other.iter().peekable();
        for (mut start, end) in self.iter() {
            while let Some(cut) = cuts.peek().copied().filter(|cut| cut.0 < end) {
                rest.insert(start, cut.0.min(end));
                start = start.max(cut.1);
                if cut.1 > end {
                    break;
                }
                cuts.next();
            }
            rest.insert(start, end);
        }
        rest
    }
}

impl FromIterator<(u64, u64)> for RangeSet {
    fn from_iter<I: IntoIterator<Item = (u64, u64)>>(runs: I) -> Self {
        let mut set = Self::new();
        runs.into_iter().for_each(|(start, end)| set.insert(start, end));
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The oracle: every page by itself.
    type Pages = BTreeSet<u64>;

    fn pages_of(set: &RangeSet) -> Pages {
        set.iter().flat_map(|(start, end)| start / PAGE_SIZE..end / PAGE_SIZE).collect()
    }

    fn well_formed(set: &RangeSet) -> bool {
        set.iter().all(|(start, end)| start < end)
            && set.runs.windows(2).all(|pair| pair[0].1 < pair[1].0)
            && set.pages() == pages_of(set).len() as u64
    }

    fn range() -> impl Strategy<Value = (u64, u64)> {
        (0u64..60, 0u64..12).prop_map(|(start, len)| (start * PAGE_SIZE, (start + len) * PAGE_SIZE))
    }

    fn set() -> impl Strategy<Value = RangeSet> {
        prop::collection::vec(range(), 0..12).prop_map(|runs| runs.into_iter().collect())
    }

    proptest! {
        #[test]
        fn inserting_and_removing_agree_with_single_pages(
            steps in prop::collection::vec((any::<bool>(), range()), 0..40)
        ) {
            let (mut set, mut oracle) = (RangeSet::new(), Pages::new());
            for (add, (start, end)) in steps {
                let pages = start / PAGE_SIZE..end / PAGE_SIZE;
                if add {
                    set.insert(start, end);
                    oracle.extend(pages);
                } else {
                    set.remove(start, end);
                    oracle.retain(|page| !pages.contains(page));
                }
                prop_assert!(well_formed(&set), "{:?}", set);
                prop_assert_eq!(pages_of(&set), oracle.clone());
            }
        }

        #[test]
        fn combining_agrees_with_single_pages(a in set(), b in set(), window in range()) {
            let (ours, theirs) = (pages_of(&a), pages_of(&b));
            let (union, both, rest) = (a.union(&b), a.intersection(&b), a.difference(&b));
            for set in [&union, &both, &rest] {
                prop_assert!(well_formed(set), "{:?}", set);
            }
            prop_assert_eq!(pages_of(&union), &ours | &theirs);
            prop_assert_eq!(pages_of(&both), &ours & &theirs);
            prop_assert_eq!(pages_of(&rest), &ours - &theirs);
            let inside: RangeSet = a.within(window.0, window.1).collect();
            let expected: Pages = ours.range(window.0 / PAGE_SIZE..window.1 / PAGE_SIZE).copied().collect();
            prop_assert_eq!(pages_of(&inside), expected);
            for page in 0..80 {
                prop_assert_eq!(a.contains(page * PAGE_SIZE), ours.contains(&page));
            }
        }
    }
}
