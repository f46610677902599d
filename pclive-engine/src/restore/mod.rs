//! The destination side: a container that the runtime has *created* becomes the copy.
//!
//! Order of calls: [`Destination::adopt`], then per round [`Destination::apply_layout`] and
//! [`Destination::fill`], after the final dump [`Destination::restore`] and, once the source has committed,
//! [`Destination::resume`]. Dropping a destination before that kills the restorers.

pub mod sockets;

use std::time::Duration;

use crate::model::{Batch, FinalState, Layout, Pid};

/// Limits and choices of a destination.
#[derive(Debug, Clone)]
pub struct DestinationOptions {
    /// How long one wait for a task may take before the operation fails.
    pub stop_timeout: Duration,
}

impl Default for DestinationOptions {
    fn default() -> Self {
        Self { stop_timeout: Duration::from_secs(5) }
    }
}

/// Failure of the destination engine. Nothing of the copy has run.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Remote calls.
    #[error("cannot run remote calls")]
    Remote(#[from] crate::remote::RemoteError),
}

/// How long the parts of [`Destination::restore`] took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RestoreLedger {
    /// Files and sockets.
    pub files: Duration,
    /// Tasks, credentials, signals, timers.
    pub tasks: Duration,
}

/// A copy that is being built.
#[derive(Debug)]
pub struct Destination {
    init: Pid,
}

impl Destination {
    /// Takes over the created container whose init is `init`: it is seized and will never run the runtime's code
    /// again.
    pub fn adopt(init: Pid, _options: DestinationOptions) -> Result<Self, RestoreError> {
        Ok(Self { init })
    }

    /// Makes the skeleton match `layout`: tasks born and gone, mappings made, moved and dropped.
    pub fn apply_layout(&mut self, _layout: &Layout) -> Result<(), RestoreError> {
        let _ = self.init;
        Ok(())
    }

    /// Writes pages into the skeleton.
    pub fn fill(&mut self, _batch: &Batch) -> Result<(), RestoreError> {
        Ok(())
    }

    /// Puts the small state in place. On Ok everything is ready to run and nothing runs; TCP sockets are still in
    /// repair mode and send nothing.
    pub fn restore(&mut self, _state: &FinalState) -> Result<RestoreLedger, RestoreError> {
        Ok(RestoreLedger::default())
    }

    /// Takes the sockets out of repair mode and lets every task go. The network must be open by now.
    pub fn resume(self) -> Result<(), RestoreError> {
        Ok(())
    }
}
