//! The PCLive daemon as a library: its two programs differ in their features, and tests drive it.

#![forbid(unsafe_code)]

pub mod agent;
pub mod audit;
pub mod command_line;
pub mod config;
mod conversation;
pub mod daemon;
pub mod error;
#[cfg(feature = "fault-injection")]
pub mod fault;
#[cfg(not(feature = "fault-injection"))]
mod fault;
pub mod hooks;
pub mod host;
pub mod journal;
pub mod link;
pub mod logging;
pub mod migration;
pub mod network;
pub mod notify;
pub mod recovery;
pub mod registry;
pub mod runtime;
pub mod service;
pub mod tail;
pub mod tls;
pub mod untrusted;
