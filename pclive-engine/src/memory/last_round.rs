//! The last round of a stopped process whose private anonymous pages are named instead of sent, and what can be said of
//! it while the process runs.
//!
//! Invariant: what is named stays dirty, so that a process which runs on all the same loses nothing.

use super::error::MemoryError;
use super::ranges::RangeSet;
use super::space::{AddressSpace, Areas, BatchSink, SpaceStats, Task};
use super::tracker::Kind;
use crate::model::{Mapping, Vma};
use crate::tail::Later;

impl AddressSpace {
    /// Private anonymous pages of the last round's mappings that were written since, and that this has not told before:
    /// what the destination has of them is of no use. Nothing is protected or forgotten; the process runs.
    pub fn outdated(&mut self) -> Result<Later, MemoryError> {
        let areas = Areas::of(&self.vmas);
        let written = {
            let mut view = self.tracker.view()?;
            view.peek_writes(&areas.anonymous_spans, Kind::Anonymous)?
        };
        self.tracker.check_alive()?;
        let outdated = written.union(&self.retry).intersection(&postponable(&self.vmas));
        let news = outdated.difference(&self.outdated);
        self.outdated = outdated;
        Ok(Later { vpid: self.vpid(), runs: news.iter().collect() })
    }

    /// The round of a stopped process whose private anonymous pages come later: they are named, the rest is sent. If the
    /// process runs on all the same, the next round sends them. Pages of `now` do not come later.
    pub fn last_round(
        &mut self,
        vmas: &[Vma],
        now: &RangeSet,
        batch_bytes: usize,
        out: &mut BatchSink<'_>,
    ) -> Result<(SpaceStats, Later), MemoryError> {
        let areas = Areas::of(vmas);
        let before = std::mem::take(&mut self.written);
        let (begun, mut stats) = self.look(vmas, &areas, Task::IsStopped, out)?;
        let later = self.retry.intersection(&postponable(vmas)).difference(now);
        self.retry = self.retry.difference(&later);
        // A page that comes later may still be told to be dropped, should it not come after all.
        self.sent = self.sent.union(&later);
        let sent = self.send(&areas, batch_bytes, &mut stats, out);
        self.retry = self.retry.union(&later);
        sent?;
        self.tracker.check_alive()?;
        stats.read = begun.elapsed() - stats.scan;
        let (hot, cold) = (later.intersection(&before), later.difference(&before));
        Ok((stats, Later { vpid: self.vpid(), runs: hot.iter().chain(cold.iter()).collect() }))
    }
}

/// The mappings whose pages can come later. A child reads zeros in memory that is wiped at fork, so what a process lacks
/// of that would not be what its children lack.
fn postponable(vmas: &[Vma]) -> RangeSet {
    let mut set = RangeSet::new();
    let can = |vma: &&Vma| vma.mapping == Mapping::PrivateAnonymous && !vma.flags.wipe_on_fork;
    vmas.iter().filter(can).for_each(|vma| set.insert(vma.start, vma.end));
    set
}
