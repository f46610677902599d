//! Where a round's products go, and what a round moved.

use std::time::Duration;

use crate::memory::SpaceStats;
use crate::model::{Batch, ExtentKind, Layout};
use crate::tail::Later;

/// Takes what a round produces, in order: one layout, then batches. A sink that fails ends the round; what was
/// written since stays dirty.
pub trait Sink {
    /// The shape of the container; comes before the first batch that needs it.
    fn layout(&mut self, layout: &Layout) -> Result<(), SinkError>;

    /// Contents. May block (bounded channel): this is the back-pressure of the stream.
    fn batch(&mut self, batch: Batch) -> Result<(), SinkError>;

    /// Pages of a process that are not sent now: of the final dump only, and only if it was asked to
    /// ([`LastPages::Later`]).
    fn later(&mut self, later: Later) -> Result<(), SinkError> {
        Err(SinkError { reason: format!("nobody takes the pages of process {} later", later.vpid) })
    }
}

/// What the final dump does with private anonymous pages that were written last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastPages {
    /// Sends them.
    Now,
    /// Names them; they are read from the container that stands still ([`Original`](crate::tail::Original)).
    Later,
}

/// The receiver of a round is gone or refuses more.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}")]
pub struct SinkError {
    /// Why: "the stream to the destination has ended".
    pub reason: String,
}

/// What a round moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RoundStats {
    /// Pages sent with contents.
    pub data_pages: u64,
    /// Pages told to be zero.
    pub zero_pages: u64,
    /// Pages told to be discarded.
    pub hole_pages: u64,
    /// Pages that come later.
    pub later_pages: u64,
    /// Processes in the layout.
    pub processes: u32,
    /// Threads in the layout.
    pub threads: u32,
    /// Open descriptors of all processes; not counted in the final dump, where time is dear.
    pub descriptors: u32,
    /// Time spent scanning for written pages.
    pub scan: Duration,
    /// What a stop scans beside that, by estimate.
    pub stop_scan: Duration,
    /// Time spent reading pages and handing them to the sink.
    pub read: Duration,
}

impl RoundStats {
    /// Adds what one address space, or the shared memory, moved.
    pub(super) fn add(&mut self, stats: &SpaceStats) {
        self.data_pages += stats.data_pages;
        self.zero_pages += stats.zero_pages;
        self.hole_pages += stats.hole_pages;
        self.scan += stats.scan;
        self.stop_scan += stats.stop_scan;
        self.read += stats.read;
    }
}

/// A sink that knows what it has taken.
pub(super) struct CountedSink<'a> {
    sink: &'a mut dyn Sink,
    /// Pages handed over so far.
    pub(super) stats: SpaceStats,
}

impl<'a> CountedSink<'a> {
    pub(super) fn new(sink: &'a mut dyn Sink) -> Self {
        Self { sink, stats: SpaceStats::default() }
    }

    /// Hands a batch over, and counts it once it is taken.
    pub(super) fn take(&mut self, batch: Batch) -> Result<(), SinkError> {
        let mut stats = self.stats;
        for extent in &batch.extents {
            match extent.kind {
                ExtentKind::Data => stats.data_pages += extent.pages,
                ExtentKind::Zero => stats.zero_pages += extent.pages,
                ExtentKind::Hole | ExtentKind::Guard => stats.hole_pages += extent.pages,
            }
        }
        self.sink.batch(batch)?;
        self.stats = stats;
        Ok(())
    }
}
