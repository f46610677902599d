//! What an agent reads from outside of itself, as functions of the bytes alone: for fuzzers and for tests of what they
//! have found.

use std::collections::BTreeMap;
use std::path::Path;

use crate::config::{self, Config, ConfigError};
use crate::error::MigrationError;
use crate::journal::{self, PageError, Record};
use crate::migration;

/// A message of the source, taken apart by what a destination calls for it: batches are unpacked and compared with their
/// checksum.
pub fn source_message(bytes: &[u8]) -> Result<(), MigrationError> {
    migration::take_apart(bytes)
}

/// A message of the destination, taken apart by what a source calls for it.
pub fn destination_message(bytes: &[u8]) -> Result<(), MigrationError> {
    migration::take_apart_answer(bytes)
}

/// A file of the journal.
pub fn journal(bytes: &[u8]) -> Result<Record, PageError> {
    journal::decode(bytes)
}

/// A configuration file.
pub fn configuration(text: &str) -> Result<Config, ConfigError> {
    config::parse(Some((Path::new("agent.toml"), text)), &BTreeMap::new())
}
