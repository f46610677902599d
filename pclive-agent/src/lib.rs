//! The PCLive daemon as a library: everything but the command line, so that tests can drive it.

#![forbid(unsafe_code)]

pub mod config;
pub mod error;
pub mod host;
pub mod logging;
pub mod network;
pub mod registry;
pub mod runtime;
