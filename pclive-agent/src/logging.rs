//! Log lines on standard error, for people or for machines.

use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::{Log, LogFormat};

/// Starts logging; once a process.
pub fn start(config: &Log) -> Result<(), TryInitError> {
    let filter: Targets = config.filter.parse().unwrap_or_default();
    let registry = tracing_subscriber::registry().with(filter);
    match config.format {
        LogFormat::Text => {
            registry.with(fmt::layer().with_writer(std::io::stderr).with_ansi(false)).try_init()
        }
        LogFormat::Json => registry.with(fmt::layer().json().with_writer(std::io::stderr)).try_init(),
    }
}
