//! Runs of pages that wait, and what became of each: pure intervals.
//!
//! Invariant: the runs of a target do not overlap, so that whoever cuts a range before it puts a newer word there
//! keeps the newest word on every page. Contents are named by their place ("slot") in the store, in bytes.

use std::collections::BTreeMap;

use crate::model::{Extent, ExtentKind, PAGE_SIZE, Target};

/// A run of pages and what became of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// One past its last byte.
    pub(super) end: u64,
    pub(super) what: What,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    /// Contents, from this slot on.
    Data(u64),
    /// No contents.
    Plain(ExtentKind),
}

/// The runs of all targets.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    /// By start.
    targets: BTreeMap<Target, BTreeMap<u64, Piece>>,
}

/// Pieces that make one batch: their contents follow each other in the store.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) target: Target,
    pub(super) start: u64,
    pub(super) end: u64,
    /// Where the contents are; empty when there are none.
    pub(super) slots: (u64, u64),
    pub(super) extents: Vec<Extent>,
}

impl Piece {
    /// The part of a piece that starts at `start` between `from` and `to`.
    fn part(self, start: u64, from: u64, to: u64) -> Self {
        let what = match self.what {
            What::Data(slot) => What::Data(slot + (from - start)),
            plain @ What::Plain(_) => plain,
        };
        Self { end: to, what }
    }
}

impl Pieces {
    /// True without a single page.
    pub(super) fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// How many runs there are.
    pub(super) fn len(&self) -> usize {
        self.targets.values().map(BTreeMap::len).sum()
    }

    /// What there are pages of.
    pub(super) fn targets(&self) -> impl Iterator<Item = Target> + '_ {
        self.targets.keys().copied()
    }

    /// Adds a run; nothing may be known of its pages.
    pub(super) fn put(&mut self, target: Target, start: u64, piece: Piece) {
        self.targets.entry(target).or_default().insert(start, piece);
    }

    /// Takes over the runs of `other`, which are of other pages.
    pub(super) fn absorb(&mut self, other: &mut Self) {
        for (target, mut pieces) in std::mem::take(&mut other.targets) {
            self.targets.entry(target).or_default().append(&mut pieces);
        }
    }

    /// Forgets what is known of a range; `freed` is told the slots (from, to) that nobody uses any more.
    pub(super) fn cut(&mut self, target: Target, start: u64, end: u64, freed: &mut dyn FnMut(u64, u64)) {
        let Some(pieces) = self.targets.get_mut(&target) else { return };
        let before = pieces.range(..start).next_back().filter(|(_, piece)| piece.end > start);
        let first = before.map_or(start, |(at, _)| *at);
        let hit: Vec<(u64, Piece)> = pieces.range(first..end).map(|(at, piece)| (*at, *piece)).collect();
        for (at, piece) in hit {
            pieces.remove(&at);
            let (from, to) = (at.max(start), piece.end.min(end));
            if at < from {
                pieces.insert(at, piece.part(at, at, from));
            }
            if to < piece.end {
                pieces.insert(to, piece.part(at, to, piece.end));
            }
            if let What::Data(slot) = piece.part(at, from, to).what {
                freed(slot, slot + (to - from));
            }
        }
        if pieces.is_empty() {
            self.targets.remove(&target);
        }
    }

    /// The first run, of at most so many extents and bytes of contents.
    pub(super) fn first_run(&self, max_extents: usize, max_bytes: u64) -> Option<Run> {
        let (target, pieces) = self.targets.first_key_value()?;
        let start = pieces.keys().next().copied()?;
        let mut run = Run { target: *target, start, end: start, slots: (0, 0), extents: Vec::new() };
        for (at, piece) in pieces {
            if run.extents.len() == max_extents || !run.take(*at, *piece, max_bytes) {
                break;
            }
        }
        Some(run)
    }
}

impl Run {
    /// Adds a piece, or the part of it that fits; false when the run is at its end.
    fn take(&mut self, at: u64, piece: Piece, max_bytes: u64) -> bool {
        let room = max_bytes - (self.slots.1 - self.slots.0);
        let (kind, end) = match piece.what {
            What::Plain(kind) => (kind, piece.end),
            What::Data(slot) => {
                if self.slots == (0, 0) {
                    self.slots = (slot, slot);
                }
                if slot != self.slots.1 || room == 0 {
                    return false;
                }
                let end = piece.end.min(at + room);
                self.slots.1 += end - at;
                (ExtentKind::Data, end)
            }
        };
        self.extents.push(Extent { start: at, pages: (end - at) / PAGE_SIZE, kind });
        self.end = end;
        end == piece.end
    }
}
