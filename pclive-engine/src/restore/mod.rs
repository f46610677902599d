//! The destination side: a container that the runtime has *created* becomes the copy.
//!
//! Order of calls: [`Destination::adopt`], then per round [`Destination::apply_layout`] and
//! [`Destination::fill`], after the final dump [`Destination::restore`] and, once the source has committed,
//! [`Destination::resume`]. Dropping a destination before that kills the restorers.

mod attributes;
mod channel;
mod creds;
mod error;
pub mod failure;
mod limits;
mod mappings;
mod mm;
pub mod process;
pub mod restart;
mod restorer;
mod scheduling;
mod seccomp;
mod signals;
mod skeleton;
#[cfg(test)]
mod small_state_tests;
pub mod files;
pub mod sockets;
mod spans;
pub mod thread;
mod timers;
mod validate;
mod xstate;

use std::time::Duration;

use crate::model::{Batch, FinalState, Layout, Pid};

pub use error::RestoreError;
use mappings::Mappings;
use skeleton::Skeleton;

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
    skeleton: Skeleton,
    mappings: Mappings,
    layout: Layout,
}

impl Destination {
    /// Takes over the created container whose init is `init`: it is seized and will never run the runtime's code
    /// again.
    pub fn adopt(init: Pid, options: DestinationOptions) -> Result<Self, RestoreError> {
        let skeleton = Skeleton::adopt(init, options.stop_timeout)?;
        let mappings = Mappings::below(init)?;
        Ok(Self { skeleton, mappings, layout: Layout::default() })
    }

    /// Makes the skeleton match `layout`: tasks born and gone, mappings made, moved and dropped.
    pub fn apply_layout(&mut self, layout: &Layout) -> Result<(), RestoreError> {
        self.skeleton.follow(layout, &mut self.mappings)?;
        self.layout = layout.clone();
        Ok(())
    }

    /// Writes pages into the skeleton.
    pub fn fill(&mut self, batch: &Batch) -> Result<(), RestoreError> {
        self.mappings.fill(batch, &mut self.skeleton)
    }

    /// Puts the small state in place. On Ok everything is ready to run and nothing runs; TCP sockets are still in
    /// repair mode and send nothing.
    pub fn restore(&mut self, state: &FinalState) -> Result<RestoreLedger, RestoreError> {
        self.skeleton.bear_zombies(&self.layout)?;
        self.skeleton.dismiss_chooser(state.last_vpid)?;
        Ok(RestoreLedger::default())
    }

    /// Takes the sockets out of repair mode and lets every task go. The network must be open by now.
    pub fn resume(self) -> Result<(), RestoreError> {
        for mut restorer in self.skeleton.release() {
            for captive in restorer.captives() {
                captive.restore_context()?;
            }
        }
        Ok(())
    }
}
