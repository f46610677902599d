//! What a migration leaves when its agent is gone, and how it is ended. Blocks.
//!
//! At the source: the cgroup freezer, connections in repair mode, the firewall's lock. At the destination: the
//! created container, host ends of veth pairs and their lock; that of the container goes with its namespace.

use std::time::Duration;

use pclive_engine::capture::{Connections, Leftover};
use pclive_engine::model::Pid;

use super::decision::Held;
use super::process;
use crate::error::{ErrorCode, MigrationError};
use crate::journal::{Phase, Process, Record};
use crate::network::{self, Namespace};

fn capture_error(error: &pclive_engine::capture::CaptureError) -> MigrationError {
    MigrationError::caused(ErrorCode::CaptureFailed, error)
}

fn network_error(error: &network::Error) -> MigrationError {
    MigrationError::caused(ErrorCode::NetworkFailed, error)
}

/// The init, if it is still there.
fn init(record: &Record) -> Option<Process> {
    record.init.filter(|init| record.boot_id == process::boot_id() && process::is_there(*init))
}

/// What is left of the container at its source.
pub(super) fn held(record: &Record) -> Result<Held, MigrationError> {
    let Some(init) = init(record) else { return Ok(Held::Gone) };
    let looked = Leftover::find(Pid(init.pid)).and_then(|leftover| leftover.is_frozen());
    match looked {
        Ok(true) => Ok(Held::Frozen),
        Ok(false) => Ok(Held::Free),
        Err(_) if !process::is_there(init) => Ok(Held::Gone),
        Err(error) => Err(capture_error(&error)),
    }
}

/// Whether the copy at the destination outlived its agent.
pub(super) fn copy_lives(record: &Record) -> bool {
    init(record).is_some_and(process::outlived_tracer)
}

/// Lets the container run on at its source: first the network, then the tasks. On `Err` it can be tried again.
pub(super) fn let_go(record: &Record) -> Result<(), MigrationError> {
    let Some(init) = init(record) else { return Ok(()) };
    let namespace = Namespace::of(init.pid).map_err(|error| network_error(&error))?;
    network::remove_stale_lock(&namespace, &record.container).map_err(|error| network_error(&error))?;
    let leftover = Leftover::find(Pid(init.pid)).map_err(|error| capture_error(&error))?;
    // Of one that runs already the connections are its own.
    let wanted_back = matches!(record.phase, Phase::Undoing(_));
    let frozen = leftover.is_frozen().map_err(|error| capture_error(&error))?;
    let connections = if wanted_back && frozen { Connections::Close } else { Connections::Carry };
    leftover.let_go(connections).map_err(|error| capture_error(&error))
}

/// Ends the container without letting it run. One that its source has frozen does not speak any more, unless its addresses
/// are its own: then its peers hear of the end.
pub(super) fn destroy(record: &Record, timeout: Duration) -> Result<(), MigrationError> {
    let Some(init) = init(record) else {
        return network::remove_host_ends(&record.container).map(drop).map_err(|error| network_error(&error));
    };
    let namespace = Namespace::of(init.pid).map_err(|error| network_error(&error))?;
    // A network that cannot be told keeps nothing from its end.
    let interfaces = network::capture(&namespace).unwrap_or_else(|error| {
        tracing::warn!(id = record.id, "addresses may stay: {}", crate::error::chain(&error));
        Vec::new()
    });
    let leftover = Leftover::find(Pid(init.pid)).map_err(|error| capture_error(&error))?;
    if record.network_stays {
        leftover.unmute().map_err(|error| capture_error(&error))?;
        network::remove_stale_lock(&namespace, &record.container).map_err(|error| network_error(&error))?;
    }
    leftover.destroy(timeout).map_err(|error| capture_error(&error))?;
    // A network that stays is its site's.
    let moved = if record.network_stays { &[] } else { interfaces.as_slice() };
    network::retire(&namespace, &record.container, moved).map_err(|error| network_error(&error))
}

/// Opens the network of a copy that runs: its agent may have died before it could.
pub(super) fn open_network(record: &Record) -> Result<(), network::Error> {
    let outside = network::unlock_host_ends(&record.container);
    let Some(init) = init(record) else { return outside };
    network::remove_stale_lock(&Namespace::of(init.pid)?, &record.container).and(outside)
}

/// Tells the neighbours once more where the container is: its agent may have died before it could.
pub(super) fn announce(record: &Record) -> Result<(), network::Error> {
    let Some(init) = init(record) else { return Ok(()) };
    let namespace = Namespace::of(init.pid)?;
    let interfaces = network::capture(&namespace)?;
    network::Announcer::prepare(&namespace, &interfaces)?.announce()
}
