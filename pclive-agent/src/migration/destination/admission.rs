//! Whether this host takes a container: everything that can be known before anything is created.

use std::path::Path;
use std::sync::Arc;

use pclive_proto::PROTOCOL_VERSION;
use pclive_proto::control::Role;
use pclive_proto::peer::Prepare;
use uuid::Uuid;

use crate::agent::{Agent, container_id};
use crate::config::Strategy;
use crate::error::{ErrorCode, MigrationError};
use crate::host;
use crate::host::compatibility::{self, Demand};
use crate::journal::{self, Record};
use crate::migration::check::version_matches;
use crate::migration::{SharedLog, wire, written};
use crate::network::{self, Interface};
use crate::recovery::{doubt, process};
use crate::registry::{Description, Entry};
use crate::runtime::{Bundle, ContainerId, Runtime};
use crate::tls::Caller;

/// A migration that may begin.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) entry: Arc<Entry>,
    pub(super) id: ContainerId,
    pub(super) runtime: Runtime,
    pub(super) prepare: Prepare,
    pub(super) interfaces: Vec<Interface>,
    /// One-shot: the most that may wait here, bytes.
    pub(super) staging_limit_bytes: Option<u64>,
    /// Begun.
    pub(super) log: SharedLog,
}

/// Checks what the source asks for and registers the migration. Nothing has been created on return.
pub(super) async fn admit(
    agent: &Arc<Agent>,
    caller: &Caller,
    prepare: Prepare,
) -> Result<Admitted, MigrationError> {
    caller.speaks_for(&prepare.source_agent)?;
    version_matches(PROTOCOL_VERSION, prepare.protocol_version, &prepare.source_agent)?;
    if Uuid::try_parse(&prepare.migration_id).is_err() {
        return Err(wire::bad("a migration id that is none"));
    }
    let id = container_id(&prepare.container_id)?;
    let runtime = agent.runtime(&prepare.runtime)?.clone();
    let strategy = wire::strategy(prepare.strategy())?;
    let staging_limit_bytes = staging_limit(agent, strategy)?;
    let interfaces = network::decode(&prepare.interfaces).map_err(|error| {
        wire::bad(format!("network interfaces that cannot be: {}", crate::error::chain(&error)))
    })?;
    host_fits(&prepare)?;
    if runtime.knows(&id) {
        let message =
            format!("cannot take container {id}: {} on {} has one of this name", runtime.name(), agent.name);
        return Err(MigrationError::new(ErrorCode::NameTaken, message));
    }
    bundle_is_here(agent, &prepare)?;
    let entry = agent.registry.begin(Description {
        id: prepare.migration_id.clone(),
        container: id.as_str().into(),
        runtime: runtime.name().into(),
        role: Role::Destination,
        peer: prepare.source_agent.chars().filter(|c| !c.is_control()).take(253).collect(),
        strategy: wire::control_strategy(strategy),
        request_id: String::new(),
    })?;
    let begun = begin_journal(agent, &entry, &prepare, strategy).await;
    let log = begun.inspect_err(|error| {
        entry.fail(error.clone());
        agent.registry.ended();
    })?;
    Ok(Admitted { log, entry, id, runtime, prepare, interfaces, staging_limit_bytes })
}

/// Writes the migration down before anything of it exists.
async fn begin_journal(
    agent: &Arc<Agent>,
    entry: &Entry,
    prepare: &Prepare,
    strategy: Strategy,
) -> Result<SharedLog, MigrationError> {
    let name = entry.snapshot().peer;
    let record = Record {
        id: entry.id().into(),
        request_id: String::new(),
        role: journal::Role::Destination,
        container: prepare.container_id.clone(),
        runtime: prepare.runtime.clone(),
        bundle: prepare.bundle.clone().into(),
        peer: journal::Peer { name, address: String::new() },
        strategy,
        started_ms: doubt::now_ms(),
        ended_ms: 0,
        boot_id: process::boot_id(),
        init: None,
        phase: journal::Phase::Begun,
    };
    let agent = Arc::clone(agent);
    written(move || agent.journal.begin(record)).await
}

/// One-shot holds the container's memory twice for a moment, so it may only use a part of what is available.
fn staging_limit(agent: &Agent, strategy: Strategy) -> Result<Option<u64>, MigrationError> {
    match (strategy, agent.config.migration.staging_limit_bytes) {
        (Strategy::Global, _) => Ok(None),
        (Strategy::OneShot, 0) => {
            let available = host::memory_available()
                .map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?;
            Ok(Some(available / 2))
        }
        (Strategy::OneShot, limit) => Ok(Some(limit)),
    }
}

fn host_fits(prepare: &Prepare) -> Result<(), MigrationError> {
    let here = host::facts().map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?;
    let there = prepare.host.clone().ok_or_else(|| wire::bad("no facts of its host"))?;
    let demand =
        Demand { memory_bytes: prepare.memory_bytes, allow_clock_step_back: prepare.allow_clock_step_back };
    compatibility::compare(&there, &here, demand).into_result().map(drop)
}

fn bundle_is_here(agent: &Agent, prepare: &Prepare) -> Result<(), MigrationError> {
    let directory = Path::new(&prepare.bundle);
    if !directory.is_absolute() {
        return Err(wire::bad("a bundle's path that is not absolute"));
    }
    let missing = |why: String| {
        let message = format!("cannot use bundle {} on {}: {why}", directory.display(), agent.name);
        MigrationError::new(ErrorCode::BundleMissing, message)
    };
    let bundle = Bundle::load(directory).map_err(|error| missing(crate::error::chain(&error)))?;
    match bundle.blockers(0).first() {
        None => Ok(()),
        Some(blocker) => Err(missing(format!("its config.json has {}", blocker.what))),
    }
}
