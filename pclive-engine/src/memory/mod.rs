//! Memory contents: track what is written, read it in rounds, fill it into restorers.
//!
//! Source: an [`AddressSpace`] per process sends its private memory, [`Objects`] the shared memory of all.
//! Destination: a [`layout_diff::plan`] makes the mappings match, a [`Filler`] per restorer and the [`ObjectStore`]
//! put the pages in place, [`Staging`] keeps them until then. [`contents`] compares both ends. Units: addresses and
//! lengths in bytes, page-aligned, half-open.

pub mod contents;
pub mod fill;
pub mod layout_diff;
pub mod object;
pub mod object_store;
pub mod ranges;
pub mod space;
pub mod staging;

mod digest;
mod error;
mod fill_error;
pub(crate) mod huge;
mod last_round;
mod payload;
mod pending;
mod pieces;
mod reader;
mod shared;
mod tracker;
mod witness;

pub use error::MemoryError;
pub(crate) use error::errno;
pub use fill::{Discards, Filler};
pub use fill_error::FillError;
pub use object::Objects;
pub use object_store::ObjectStore;
pub use pending::SharedWrites;
pub use space::{AddressSpace, SpaceStats, Task};
pub use staging::{Staging, StagingError};
