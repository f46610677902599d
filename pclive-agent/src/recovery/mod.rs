//! Ends what an agent that is gone has begun.
//!
//! At the start, before anything is served, every record of the journal is brought to its end: what was not decided
//! runs on at its source and is removed at its destination; a copy that was let go is kept. Only a source that may
//! have sent COMMIT has to ask, and is in doubt until it is answered (`doubt`). What is decided is decided by the
//! pure functions of [`decision`].

pub mod decision;
pub(crate) mod doubt;
pub(crate) mod inquiry;
pub(crate) mod keep;
pub(crate) mod process;
mod remains;
pub(crate) mod tail;
mod withdrawal;

use std::sync::Arc;

use pclive_proto::control;

pub use doubt::resolve;
pub use inquiry::answer;
pub use keep::undo;

use self::decision::{Answer, DestinationStep};
use self::doubt::{Outcome, Verdict};
use crate::agent::{Agent, container_id};
use crate::config::Strategy;
use crate::error::{ErrorCode, MigrationError, chain};
use crate::hooks;
use crate::journal::{self, Ending, JournalError, Phase, Record, Role};
use crate::migration::throttle;
use crate::network;
use crate::registry::{Description, Entry, Past};

/// Brings every open migration of the journal to its end, or into pursuit. To be called once, before anything is
/// served.
pub async fn recover(agent: &Arc<Agent>) -> Result<(), JournalError> {
    let (records, unreadable) = agent.journal.take_over()?;
    for file in unreadable {
        tracing::error!("{file}; if a container of this host stands still, see docs/RECOVERY.md");
    }
    for record in records {
        match (&record.phase, record.role) {
            (Phase::Ended(ending), _) => {
                restore(agent, &record, record.ended_ms, past(record.role, ending));
            }
            (Phase::Kept(kept), Role::Source) => {
                let entry = restore(agent, &record, kept.stopped_ms, Past::Done);
                keep::take_over(agent, &entry, &record, *kept);
            }
            (
                Phase::Begun
                | Phase::Committing
                | Phase::Discarded
                | Phase::Tail
                | Phase::Torn
                | Phase::Undoing(_)
                | Phase::Withdrawn,
                Role::Source,
            ) => {
                source(agent, &record).await;
            }
            (
                Phase::Begun
                | Phase::Committing
                | Phase::Discarded
                | Phase::Tail
                | Phase::Torn
                | Phase::Kept(_)
                | Phase::Undoing(_)
                | Phase::Withdrawn,
                Role::Destination,
            ) => {
                destination(agent, &record).await;
            }
        }
    }
    agent.journal.prune();
    Ok(())
}

async fn source(agent: &Arc<Agent>, record: &Record) {
    speed_up(agent, record).await;
    match doubt::attempt(agent, record, Answer::Silent).await {
        Ok(Verdict::Over(outcome)) => end(agent, record, outcome).await,
        Ok(Verdict::Kept | Verdict::Open) => {
            let name = &record.container;
            let message = match record.phase {
                Phase::Undoing(_) => format!(
                    "this agent ended while the original of container {name} was wanted back, and it is not known \
                     whether its copy has ended"
                ),
                _ => format!(
                    "this agent ended while the destination took container {name} over, and it is not known whether it did"
                ),
            };
            in_doubt(agent, record, MigrationError::new(ErrorCode::CommitUnknown, message));
        }
        Err(error) => {
            tracing::error!(id = record.id, "cannot recover: {error}");
            in_doubt(agent, record, error);
        }
    }
}

/// Gives the container its CPU time back, wherever its migration was.
async fn speed_up(agent: &Arc<Agent>, record: &Record) {
    let Some(log) = agent.journal.log(&record.id) else { return };
    let undone = tokio::task::spawn_blocking(move || match journal::guard(&log).slowed() {
        Some(slowed) => throttle::undo(&slowed),
        None => Ok(()),
    });
    if let Ok(Err(error)) = undone.await {
        let (id, container) = (&record.id, &record.container);
        tracing::error!(id, "container {container} may stay slowed down: {}", chain(&error));
    }
}

fn in_doubt(agent: &Arc<Agent>, record: &Record, error: MigrationError) {
    let error = error.at(control::Role::Source, control::Phase::Unknown);
    let entry = restore(agent, record, 0, Past::InDoubt(control::Error::from(&error)));
    doubt::pursue(agent, &entry);
}

async fn destination(agent: &Arc<Agent>, record: &Record) {
    let lives = doubt::blocking(record, |record| Ok(remains::copy_lives(record))).await.unwrap_or(false);
    let fetching = tail::fetching(agent, record);
    let step = decision::destination(&record.phase, lives, fetching);
    tracing::info!(
        id = record.id, container = record.container, phase = ?record.phase, lives, ?fetching, ?step, "recovering"
    );
    if matches!(step, DestinationStep::Finish | DestinationStep::Follow) {
        open_network(record).await;
    }
    let outcome = match step {
        DestinationStep::Nothing => return,
        DestinationStep::Follow => return tail::follow(agent, record).await,
        DestinationStep::Tear => return tail::tear_anew(agent, record).await,
        DestinationStep::Withdraw => match withdrawal::end_copy(agent, record).await {
            Ok(()) => Outcome::Failed(withdrawal::undone(record)),
            Err(error) => return still_there(agent, record, error),
        },
        DestinationStep::Finish => finish(agent, record).await,
        DestinationStep::Discard => discard(agent, record).await,
    };
    end(agent, record, outcome).await;
}

/// A copy that was to end lives on: that is tried again.
fn still_there(agent: &Arc<Agent>, record: &Record, error: MigrationError) {
    let told = error.clone().at(control::Role::Destination, control::Phase::Unknown);
    let entry = restore(agent, record, 0, Past::InDoubt(control::Error::from(&told)));
    if let Some(log) = agent.journal.log(&record.id) {
        withdrawal::pursue(agent, &entry, log, error);
    }
}

/// The copy runs: its agent may have died before it could open its network.
async fn open_network(record: &Record) {
    let opened = doubt::blocking(record, |record| {
        remains::open_network(record)
            .map_err(|error| MigrationError::caused(ErrorCode::NetworkFailed, &error))
    });
    if let Err(error) = opened.await {
        tracing::error!(id = record.id, "the container runs, and its network may be locked: {error}");
    }
}

/// The copy runs: the runtime is told, and the neighbours.
async fn finish(agent: &Agent, record: &Record) -> Outcome {
    let told = async {
        let (id, runtime) = (container_id(&record.container)?, agent.runtime(&record.runtime)?);
        let failed = |error| MigrationError::caused(ErrorCode::RuntimeFailed, &error);
        let container = runtime.state(&id).await.map_err(failed)?;
        if container.status == "created" { runtime.start(&id).await.map_err(failed) } else { Ok(()) }
    };
    if let Err(error) = told.await {
        tracing::error!(id = record.id, "the container runs, but the runtime was not told: {error}");
    }
    doubt::announce(record).await;
    Outcome::Done
}

/// Removes what is left of the copy. First the promise that it never runs, then the rest.
async fn discard(agent: &Agent, record: &Record) -> Outcome {
    if let Some(log) = agent.journal.log(&record.id) {
        let promised = tokio::task::spawn_blocking(move || crate::journal::guard(&log).answer()).await;
        if let Ok(Err(error)) = promised {
            tracing::warn!(id = record.id, "{}", chain(&error));
        }
    }
    if let Err(error) = remove_copy(agent, record).await {
        tracing::error!(id = record.id, "something of the copy is left: {error}");
    }
    // Last: as long as it is there no task of the copy reads zeros.
    tail::end_fetcher(record);
    let name = &record.container;
    let message =
        format!("the agent ended before container {name} was taken over; nothing of it is left here");
    Outcome::Failed(MigrationError::new(ErrorCode::AgentRestarted, message))
}

async fn remove_copy(agent: &Agent, record: &Record) -> Result<(), MigrationError> {
    let removed = remove_container(agent, record).await;
    let network = match &removed {
        Ok(()) => network::remove_host_ends(&record.container).map(drop),
        // What is there may be another container, and its host ends may have the names of ours, which are locked.
        Err(_) => network::unlock_host_ends(&record.container),
    };
    removed.and(network.map_err(|error| MigrationError::caused(ErrorCode::NetworkFailed, &error)))
}

async fn remove_container(agent: &Agent, record: &Record) -> Result<(), MigrationError> {
    let (id, runtime) = (container_id(&record.container)?, agent.runtime(&record.runtime)?);
    let failed = |error| MigrationError::caused(ErrorCode::RuntimeFailed, &error);
    if runtime.knows(&id) {
        // One that runs is not ours: ours was never started. One whose state cannot be read was not finished.
        match runtime.state(&id).await {
            Ok(container) if container.status == "running" || container.status == "paused" => {
                let message = format!("container {id} is {} and was not removed", container.status);
                return Err(MigrationError::new(ErrorCode::NameTaken, message));
            }
            Ok(_) | Err(_) => runtime.delete(&id).await.map_err(failed)?,
        }
    }
    Ok(())
}

/// Writes the end down and lists it.
async fn end(agent: &Arc<Agent>, record: &Record, outcome: Outcome) {
    let ending = doubt::ending(&outcome);
    let past = past(record.role, &ending);
    if let Some(log) = agent.journal.log(&record.id) {
        doubt::write_end(agent, log, ending.clone()).await;
    }
    let entry = restore(agent, record, doubt::now_ms(), past);
    hooks::after_recovery(agent, entry, record, ending);
}

fn restore(agent: &Agent, record: &Record, ended_ms: u64, past: Past) -> Arc<Entry> {
    agent.registry.restore(description(record), record.started_ms, ended_ms, past)
}

fn past(role: Role, ending: &Ending) -> Past {
    match ending {
        Ending::Done => Past::Done,
        Ending::Failed(reason) => {
            let code = ErrorCode::from_peer(&reason.code);
            let error = MigrationError::new(code, reason.message.clone()).hint(reason.hint.clone());
            Past::Failed(control::Error::from(&error.at(control_role(role), control::Phase::Unspecified)))
        }
    }
}

fn control_role(role: Role) -> control::Role {
    match role {
        Role::Source => control::Role::Source,
        Role::Destination => control::Role::Destination,
    }
}

fn description(record: &Record) -> Description {
    Description {
        id: record.id.clone(),
        container: record.container.clone(),
        runtime: record.runtime.clone(),
        role: control_role(record.role),
        peer: record.peer.name.clone(),
        strategy: match record.strategy {
            Strategy::Global => control::Strategy::Global,
            Strategy::Pipelined => control::Strategy::Pipelined,
            Strategy::OneShot => control::Strategy::OneShot,
        },
        request_id: record.request_id.clone(),
    }
}

/// Whether a copy that could not be let go in the ordinary way runs all the same. Blocks.
pub(crate) fn copy_runs(record: &Record) -> bool {
    remains::copy_lives(record)
}
