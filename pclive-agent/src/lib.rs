//! The PCLive daemon as a library: everything but the command line, so that tests can drive it.

#![forbid(unsafe_code)]

pub mod agent;
pub mod audit;
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
