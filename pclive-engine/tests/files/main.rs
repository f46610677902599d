//! Descriptors of real programs: captured, restored into other processes, captured again, compared and used.

mod ahead;
mod program;
mod round_trip;
mod skeleton;
mod terminals;
