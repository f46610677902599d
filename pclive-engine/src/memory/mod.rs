//! Memory contents: track what is written, read it in rounds, fill it into restorers.
//!
//! Units: addresses and lengths in bytes, page-aligned, half-open.

pub mod layout_diff;
pub mod ranges;
