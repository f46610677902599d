//! A copy that is ended for good because its source wants the original back. At its destination.
//!
//! `Withdrawn` is durable before the first process is killed, and the source is told so only when the last one has ended:
//! then nothing of the copy ever runs again. A copy that has been moved on from here cannot be ended.

use std::sync::{Arc, Mutex};

use pclive_proto::peer::inquire_response::Answer;

use super::doubt::{self, Outcome};
use super::remains;
use crate::agent::{Agent, container_id};
use crate::error::{ErrorCode, MigrationError, chain};
use crate::fault::{self, Point};
use crate::journal::{self, Ending, Log, Phase, Record};
use crate::registry::Entry;

/// Ends the copy. What is answered is final unless it is [`Answer::Pending`].
pub(super) async fn withdraw(agent: &Agent, log: Arc<Mutex<Log>>) -> (Answer, String) {
    let record = journal::guard(&log).record().clone();
    // One that is not remembered is not known to be what runs here.
    let Ok(entry) = agent.registry.get(&record.id) else { return (Answer::Unknown, String::new()) };
    let _deciding = entry.deciding.lock().await;
    let record = journal::guard(&log).record().clone();
    match record.phase {
        Phase::Ended(Ending::Failed(_)) | Phase::Discarded => return (Answer::Discarded, String::new()),
        Phase::Withdrawn => {}
        Phase::Ended(Ending::Done) => {
            if let Err(refused) = begin(agent, &entry, &log, &record).await {
                return refused;
            }
        }
        Phase::Begun | Phase::Committing | Phase::Tail | Phase::Torn | Phase::Kept(_) | Phase::Undoing(_) => {
            return (Answer::Pending, "the copy is not whole yet".into());
        }
    }
    match end_copy(agent, &record).await {
        Ok(()) => {
            fault::reached(Point::DestinationWithdrawn);
            doubt::conclude(agent, &entry, log, Outcome::Failed(undone(&record))).await;
            (Answer::Discarded, String::new())
        }
        Err(error) => {
            tracing::error!(id = record.id, "a copy that was withdrawn has not ended: {error}");
            (Answer::Pending, error.message)
        }
    }
}

/// Makes sure that the copy is here and stays here, and writes down that it ends.
async fn begin(
    agent: &Agent,
    entry: &Entry,
    log: &Arc<Mutex<Log>>,
    record: &Record,
) -> Result<(), (Answer, String)> {
    // From here on nobody moves it away.
    if let Err(error) = agent.registry.reserve(entry) {
        return Err((Answer::Pending, error.message));
    }
    let put = match stays(agent, record).await {
        Ok(()) => {
            let (writer, withdrawn) = (Arc::clone(log), Record { phase: Phase::Withdrawn, ..record.clone() });
            let put = tokio::task::spawn_blocking(move || journal::guard(&writer).put(withdrawn)).await;
            let put = put.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
            put.map_err(|error| (Answer::Pending, chain(&error)))
        }
        Err(why) => Err((Answer::Runs, why)),
    };
    put.inspect_err(|_| entry.reserve(false))
}

/// Whether what runs here under this name, if anything does, is the copy. `Err` says what else it is.
async fn stays(agent: &Agent, record: &Record) -> Result<(), String> {
    if agent.journal.has_moved_on(record) {
        return Err("it has been moved on from there".into());
    }
    let (Ok(id), Ok(runtime)) = (container_id(&record.container), agent.runtime(&record.runtime)) else {
        return Ok(());
    };
    if !runtime.knows(&id) {
        return Ok(());
    }
    match runtime.state(&id).await {
        Ok(there) if there.status == "stopped" || record.init.is_some_and(|init| init.pid == there.pid) => {
            Ok(())
        }
        Ok(_) => Err("another container of this name runs there".into()),
        Err(error) => Err(format!("what runs there is not known: {}", chain(&error))),
    }
}

/// Kills the copy, whose peers hear of it, and takes its network and its name away.
pub(super) async fn end_copy(agent: &Agent, record: &Record) -> Result<(), MigrationError> {
    let timeout = agent.config.migration.stop_timeout();
    doubt::blocking(record, move |record| remains::destroy(record, timeout)).await?;
    doubt::forget(agent, record).await
}

/// How a migration ended whose copy was withdrawn.
pub(super) fn undone(record: &Record) -> MigrationError {
    let message = format!(
        "the migration of container {} was undone: it goes on at its source as it was at the stop",
        record.container
    );
    MigrationError::new(ErrorCode::Undone, message)
}
