//! When to stop copying and stop the container, and what to do when that moment does not come. Pure.
//!
//! After each round [`estimate()`] says how long the container would stand still if it were stopped now, and
//! [`decide`] compares that with the limits: another round, stop, or let the [`Policy`] answer the [`Obstacle`] in
//! the way. [`simulate`] runs the same two over a container that was only watched. What earlier migrations to the
//! same peer have cost is [`Experience`].
//!
//! Invariants: every sequence of rounds ends ([`Limits::max_rounds`]); no figure overflows, whatever was measured.

mod decision;
mod estimate;
mod experience;
mod policy;
mod simulation;

pub use decision::{Limits, Obstacle, Reason, Verdict, decide};
pub use estimate::{Estimate, History, Pending, Sample, Tasks, estimate};
pub use experience::{Experience, Measured};
pub use policy::{Action, Policy, Step};
pub use simulation::{Course, Scenario, Staged, interpolate, simulate};

/// Bytes in a page.
const PAGE: u64 = 4096;
