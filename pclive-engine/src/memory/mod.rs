//! Memory contents: track what is written, read it in rounds, fill it into restorers.
//!
//! Source: an [`space::AddressSpace`] per process sends its private memory. Destination: a [`layout_diff::plan`]
//! makes the mappings match. Units: addresses and lengths in bytes, page-aligned, half-open.

pub mod layout_diff;
pub mod object;
pub mod ranges;
pub mod space;

mod digest;
mod error;
mod payload;
mod reader;
mod tracker;

pub use error::MemoryError;
pub(crate) use error::errno;
pub use object::Objects;
pub use space::{AddressSpace, SpaceStats};
