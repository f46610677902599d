//! Whether this host takes a container: everything that can be known before anything is created.

use std::path::Path;
use std::sync::Arc;

use pclive_proto::PROTOCOL_VERSION;
use pclive_proto::control::Role;
use pclive_proto::peer::Prepare;
use uuid::Uuid;

use super::placement::StagingPlan;
use crate::agent::{Agent, container_id};
use crate::config::Strategy;
use crate::error::{ErrorCode, MigrationError};
use crate::fault::{self, Point};
use crate::host;
use crate::host::compatibility::{self, Demand};
use crate::journal::{self, Asker, Record};
use crate::migration::check::version_matches;
use crate::migration::{SharedLog, wire, written};
use crate::network::{self, Interface};
use crate::recovery::{doubt, process};
use crate::registry::{Description, Entry};
use crate::runtime::{Bundle, ContainerId, Runtime};
use crate::tls::Caller;

/// Longest name, bytes: a DNS name's.
const MOST_NAME: usize = 253;
/// Longest path, as in `PATH_MAX`.
const MOST_PATH: usize = 4095;

/// A migration that may begin.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) entry: Arc<Entry>,
    pub(super) id: ContainerId,
    pub(super) runtime: Runtime,
    pub(super) prepare: Prepare,
    pub(super) interfaces: Vec<Interface>,
    /// How pages wait here; `None`: they do not.
    pub(super) staging: Option<StagingPlan>,
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
    names_fit(&prepare)?;
    version_matches(PROTOCOL_VERSION, prepare.protocol_version, &prepare.source_agent)?;
    if Uuid::try_parse(&prepare.migration_id).is_err() {
        return Err(wire::bad("a migration id that is none"));
    }
    let id = container_id(&prepare.container_id)?;
    let runtime = agent.runtime(&prepare.runtime)?.clone();
    let strategy = wire::strategy(prepare.strategy())?;
    let interfaces = network::decode(&prepare.interfaces).map_err(|error| {
        wire::bad(format!("network interfaces that cannot be: {}", crate::error::chain(&error)))
    })?;
    host_fits(&prepare)?;
    end_abandoned(agent, &id, &prepare.source_agent).await;
    let staging = staging(agent, &prepare, strategy)?;
    agent.registry.refuse_moving(id.as_str())?;
    if runtime.knows(&id) {
        let message =
            format!("cannot take container {id}: {} on {} has one of this name", runtime.name(), agent.name);
        return Err(MigrationError::new(ErrorCode::NameTaken, message));
    }
    bundle_is_here(agent, &prepare)?;
    super::tail::admit(agent, &prepare)?;
    let entry = agent.registry.begin(Description {
        id: prepare.migration_id.clone(),
        container: id.as_str().into(),
        runtime: runtime.name().into(),
        role: Role::Destination,
        peer: prepare.source_agent.chars().filter(|c| !c.is_control()).take(253).collect(),
        strategy: wire::control_strategy(strategy),
        request_id: String::new(),
    })?;
    let begun = begin_journal(agent, &entry, &prepare, (strategy, Asker::from(caller))).await;
    let log = begun.inspect_err(|error| {
        entry.fail(error.clone());
        agent.registry.ended();
    })?;
    fault::reached(Point::DestinationAdmitted);
    Ok(Admitted { log, entry, id, runtime, prepare, interfaces, staging })
}

/// A source has one migration of a container at a time: when it begins another one, it has given up what it had begun,
/// and a link that broke has not told the destination.
async fn end_abandoned(agent: &Agent, id: &ContainerId, source: &str) {
    let Some(entry) = agent.registry.of_container(id.as_str()).and_then(|id| agent.registry.get(&id).ok())
    else {
        return;
    };
    if entry.role() != Role::Destination || !agent.conversations.is_from(entry.id(), source) {
        return;
    }
    let why = "the source has begun another migration of the container";
    if entry.cancel(MigrationError::new(ErrorCode::PeerLost, why)) {
        let mut watcher = entry.watch();
        let ended = async { while watcher.next().await.is_some() {} };
        // If it does not end in time the container's name is taken, which the source is told.
        let _ = tokio::time::timeout(agent.config.migration.stop_timeout(), ended).await;
    }
}

/// Names that are written down here, and repeated to people.
fn names_fit(prepare: &Prepare) -> Result<(), MigrationError> {
    let names = [
        ("agent", &prepare.source_agent, MOST_NAME),
        ("runtime", &prepare.runtime, MOST_NAME),
        ("bundle", &prepare.bundle, MOST_PATH),
        ("token", &prepare.tail_token, MOST_NAME),
        ("conversation", &prepare.conversation_token, MOST_NAME),
    ];
    match names.iter().find(|(_, name, most)| name.len() > *most || name.chars().any(char::is_control)) {
        None => Ok(()),
        Some((what, name, _)) => {
            let bytes = name.len();
            Err(wire::bad(format!("a name of the {what} of {bytes} bytes, or with control characters")))
        }
    }
}

/// Writes the migration down before anything of it exists.
async fn begin_journal(
    agent: &Arc<Agent>,
    entry: &Entry,
    prepare: &Prepare,
    (strategy, asked_by): (Strategy, Asker),
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
        tail: None,
        tail_token: String::new(),
        network_stays: false,
        keep_source_for_ms: prepare.keep_source_for_ms,
        asked_by,
        phase: journal::Phase::Begun,
    };
    let agent = Arc::clone(agent);
    written(move || agent.journal.begin(record)).await
}

/// How pages wait here by this strategy, refused at once if there is no memory for it. A strategy that stages has all
/// of the container's memory waiting at some time: one-shot at the end, the others before restorers live or while
/// round 0 arrives.
fn staging(
    agent: &Agent,
    prepare: &Prepare,
    strategy: Strategy,
) -> Result<Option<StagingPlan>, MigrationError> {
    let (live_from, direct) = match (strategy, prepare.restore_after) {
        (Strategy::Global, 0) => return Ok(None),
        (Strategy::Global, round) => (Some(round), true),
        (Strategy::Pipelined, round) => (Some(round), false),
        (Strategy::OneShot, _) => (None, false),
    };
    let available =
        host::memory_available().map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?;
    let memory = Memory { configured: agent.config.migration.staging_limit_bytes, available };
    let limit_bytes = memory.limit_for(prepare.memory_bytes).map_err(|why| {
        let (id, strategy, name) = (&prepare.container_id, strategy.name(), &agent.name);
        let message = format!("cannot stage container {id} on {name} by strategy {strategy}: {why}");
        MigrationError::new(ErrorCode::NoMemory, message)
            .hint("migrate with --strategy global --restore-after 0, which stages nothing")
    })?;
    Ok(Some(StagingPlan { limit_bytes, live_from, direct }))
}

/// Memory of this host.
#[derive(Debug, Clone, Copy)]
struct Memory {
    /// Most that may be staged, bytes; 0: half of what is available.
    configured: u64,
    available: u64,
}

impl Memory {
    /// The most that may be staged, bytes, for a container that uses `needed`; or why that cannot be. What is staged is
    /// counted beside the container, though it is given back as the container takes its place: the host's other
    /// programs need memory, too.
    fn limit_for(self, needed: u64) -> Result<u64, String> {
        let mib = |bytes: u64| bytes >> 20;
        let both = needed.saturating_add(needed);
        if both > self.available {
            let (needed, both, available) = (mib(needed), mib(both), mib(self.available));
            return Err(format!(
                "it uses {needed} MiB, with as much waiting that is {both} MiB, and {available} MiB are available"
            ));
        }
        match self.configured {
            0 => Ok(self.available / 2),
            limit if needed > limit => {
                let (needed, limit) = (mib(needed), mib(limit));
                Err(format!("it uses {needed} MiB, and {limit} MiB may wait (migration.staging_limit_bytes)"))
            }
            limit => Ok(limit),
        }
    }
}

fn host_fits(prepare: &Prepare) -> Result<(), MigrationError> {
    let here = host::facts().map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?;
    let there = prepare.host.clone().ok_or_else(|| wire::bad("no facts of its host"))?;
    let there = wire::facts(there);
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

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn half_of_what_is_available_may_wait_unless_configured() {
        let memory = Memory { configured: 0, available: 1000 * MIB };
        assert_eq!(memory.limit_for(500 * MIB), Ok(500 * MIB));
        let memory = Memory { configured: 300 * MIB, ..memory };
        assert_eq!(memory.limit_for(300 * MIB), Ok(300 * MIB));
    }

    #[test]
    fn too_little_memory_is_refused_with_both_figures() {
        let memory = Memory { configured: 0, available: 1000 * MIB };
        let why = memory.limit_for(501 * MIB).unwrap_err();
        assert!(why.contains("1002 MiB") && why.contains("1000 MiB"), "{why}");
        let why = Memory { configured: 300 * MIB, ..memory }.limit_for(301 * MIB).unwrap_err();
        assert!(why.contains("301 MiB") && why.contains("300 MiB"), "{why}");
        assert!(memory.limit_for(u64::MAX).is_err());
    }
}
