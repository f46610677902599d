//! This host: what must fit between two of them, and what its kernel offers.

pub mod compatibility;
mod facts;
mod features;
mod usage;

pub use facts::{FactsError, facts, memory_available};
pub use features::features;
pub use usage::UsageMeter;
