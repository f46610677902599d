//! A copy that is ended for good because its source wants the original back. At its destination.
//!
//! `Withdrawn` is durable before the first process is killed, and the source is told so only when the last one has ended:
//! then nothing of the copy ever runs again. A copy that has been moved on from here cannot be ended, nor one whose original
//! was not to be kept.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use pclive_proto::peer::inquire_response::Answer;

use super::doubt::{self, Outcome};
use super::{process, remains};
use crate::agent::{Agent, container_id};
use crate::error::{ErrorCode, MigrationError, chain};
use crate::fault::{self, Point};
use crate::journal::{self, Ending, Log, Phase, Record};
use crate::registry::Entry;

/// How soon it is tried again to end a copy.
const PAUSE: Duration = Duration::from_secs(5);

/// Ends the copy. What is answered is final unless it is [`Answer::Pending`]. To be run to its end, whoever asks.
pub(super) async fn withdraw(agent: Arc<Agent>, log: Arc<Mutex<Log>>) -> (Answer, String) {
    let id = journal::guard(&log).record().id.clone();
    // One that is not remembered is not known to be what runs here.
    let Ok(entry) = agent.registry.get(&id) else {
        let forgotten = || (Answer::Runs, "it is not remembered there any more".into());
        return said(&journal::guard(&log).record().phase).unwrap_or_else(forgotten);
    };
    let _deciding = entry.deciding.lock().await;
    let record = journal::guard(&log).record().clone();
    if let Some(answer) = said(&record.phase) {
        return answer;
    }
    if let Err(refused) = begin(&agent, &entry, &log, &record).await {
        return refused;
    }
    match end_copy(&agent, &record).await {
        Ok(()) => {
            doubt::conclude(&agent, &entry, log, Outcome::Failed(undone(&record))).await;
            (Answer::Discarded, String::new())
        }
        Err(error) => {
            let message = error.message.clone();
            entry.unknown(error.clone());
            pursue(&agent, &entry, log, error);
            (Answer::Pending, message)
        }
    }
}

/// What is to be said of a migration without doing anything; `None`: its copy runs, or ran.
fn said(phase: &Phase) -> Option<(Answer, String)> {
    match phase {
        Phase::Ended(Ending::Done) => None,
        Phase::Ended(Ending::Failed(_)) | Phase::Discarded => Some((Answer::Discarded, String::new())),
        Phase::Withdrawn => Some((Answer::Pending, "its copy is being ended there".into())),
        Phase::Begun | Phase::Committing | Phase::Tail | Phase::Torn | Phase::Kept(_) | Phase::Undoing(_) => {
            Some((Answer::Pending, "the copy is not whole yet".into()))
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
    if agent.journal.has_moved_on(record) {
        return Err((Answer::Runs, "it has been moved on from there".into()));
    }
    // From here on nobody moves it away. Somebody may have begun to meanwhile.
    agent.registry.reserve(entry).map_err(|error| (Answer::Pending, error.message))?;
    let put = match stays(agent, record).await {
        Ok(()) => {
            let (writer, withdrawn) = (Arc::clone(log), Record { phase: Phase::Withdrawn, ..record.clone() });
            let put = tokio::task::spawn_blocking(move || journal::guard(&writer).put(withdrawn)).await;
            put.map_err(|error| chain(&error))
                .and_then(|put| put.map_err(|error| chain(&error)))
                .map_err(|why| (Answer::Pending, why))
        }
        Err(why) => Err((Answer::Runs, why)),
    };
    put.inspect_err(|_| entry.reserve(false))
}

/// Whether what runs here under this name, if anything does, is a copy that may be ended. `Err` says why not.
async fn stays(agent: &Agent, record: &Record) -> Result<(), String> {
    if record.keep_source_for_ms == 0 {
        return Err("no original of it was to be kept".into());
    }
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
        Ok(there) if there.status == "stopped" => Ok(()),
        Ok(there) if record.init.is_some() && process::identify(there.pid) == record.init => Ok(()),
        Ok(_) => Err("another container of this name runs there".into()),
        Err(error) => Err(format!("what runs there is not known: {}", chain(&error))),
    }
}

/// Kills the copy, whose peers hear of it, and takes its network and its name away.
pub(super) async fn end_copy(agent: &Agent, record: &Record) -> Result<(), MigrationError> {
    let timeout = agent.config.migration.stop_timeout();
    doubt::blocking(record, move |record| remains::destroy(record, timeout)).await?;
    fault::reached(Point::DestinationWithdrawn);
    doubt::forget(agent, record).await
}

/// Tries again and again to end a copy that was withdrawn: its source may never ask again.
pub(super) fn pursue(agent: &Arc<Agent>, entry: &Arc<Entry>, log: Arc<Mutex<Log>>, why: MigrationError) {
    let (agent, entry) = (Arc::clone(agent), Arc::clone(entry));
    let id = entry.id().to_owned();
    tokio::spawn(async move {
        let mut why = why;
        loop {
            tracing::error!(id, "a copy that was withdrawn has not ended: {why}");
            tokio::time::sleep(PAUSE).await;
            let _deciding = entry.deciding.lock().await;
            let record = journal::guard(&log).record().clone();
            if record.phase != Phase::Withdrawn {
                return;
            }
            match end_copy(&agent, &record).await {
                Ok(()) => {
                    let outcome = Outcome::Failed(undone(&record));
                    return doubt::conclude(&agent, &entry, log, outcome).await;
                }
                Err(error) => why = error,
            }
        }
    });
}

/// How a migration ended whose copy was withdrawn.
pub(super) fn undone(record: &Record) -> MigrationError {
    let name = &record.container;
    let message = format!(
        "the migration of container {name} was undone: it goes on at its source as it was at the stop"
    );
    MigrationError::new(ErrorCode::Undone, message)
}
