//! An original that is kept for a while after its copy has begun to run, in case somebody wants it back. At its source.
//!
//! It stands still, frozen and silent, as in a migration in doubt, and nothing of it depends on the agent that moved it: the
//! journal says `Kept`. When its time is over it is removed like any other. To go back, the destination is asked to end the
//! copy for good (`withdrawal`); `Undoing` is durable before that, so that a successor asks on, and the original is let go
//! only on the destination's word that the copy has ended. Its connections are over then: their peers have talked to the
//! copy since.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use pclive_proto::control;

use super::decision::{SourceStep, Wish};
use super::doubt::{self, Verdict};
use super::{inquiry, process};
use crate::agent::Agent;
use crate::error::{ErrorCode, MigrationError, chain};
use crate::journal::{self, Asker, Ending, Kept, Log, Phase, Record};
use crate::registry::Entry;

/// How soon it is tried again to remove an original whose time is over.
const PAUSE: Duration = Duration::from_secs(5);

/// Writes down that the original, stopped at `stopped_ms` (Unix time), is kept for `time` from now on.
pub(crate) fn write(
    log: &Mutex<Log>,
    time: Duration,
    stopped_ms: u64,
) -> Result<Kept, journal::JournalError> {
    let kept = Kept { until_boottime_ms: boottime_ms().saturating_add(milliseconds(time)), stopped_ms };
    let mut log = journal::guard(log);
    let record = Record { phase: Phase::Kept(kept), ..log.record().clone() };
    log.put(record)?;
    Ok(kept)
}

/// What users are told of it.
pub(crate) fn told(kept: Kept) -> control::Kept {
    let left = kept.until_boottime_ms.saturating_sub(boottime_ms());
    control::Kept { until_ms: doubt::now_ms().saturating_add(left), stopped_ms: kept.stopped_ms }
}

/// Removes the original when its time is over, unless it is wanted back before.
pub(crate) fn watch(agent: &Arc<Agent>, entry: &Arc<Entry>, until: Kept) {
    let (agent, entry) = (Arc::clone(agent), Arc::clone(entry));
    tokio::spawn(async move {
        // Asked again, because it may have been woken early.
        while let left @ 1.. = until.until_boottime_ms.saturating_sub(boottime_ms()) {
            tokio::time::sleep(Duration::from_millis(left)).await;
        }
        while !expire(&agent, &entry).await {
            tokio::time::sleep(PAUSE).await;
        }
    });
}

/// Removes an original whose time is over; false: it is to be tried again.
async fn expire(agent: &Agent, entry: &Entry) -> bool {
    let _deciding = entry.deciding.lock().await;
    // Somebody may have decided meanwhile.
    let Some((log, record, _)) = kept(agent, entry) else { return true };
    let removed = remove(agent, entry, log, &record).await;
    removed
        .inspect_err(|error| {
            tracing::error!(id = entry.id(), "cannot remove the original that was kept: {error}")
        })
        .is_ok()
}

/// Removes the original now. Whoever calls it holds the entry's `deciding`.
pub(super) async fn remove(
    agent: &Agent,
    entry: &Entry,
    log: Arc<Mutex<Log>>,
    record: &Record,
) -> Result<(), MigrationError> {
    doubt::take(agent, record, SourceStep::Destroy).await?;
    doubt::end(agent, entry, log, Ending::Done).await;
    entry.keep(None);
    agent.registry.ended();
    tracing::info!(id = entry.id(), "the original is removed");
    Ok(())
}

/// What an operator may decide about an original that is kept: that it is removed before its time is over. Whoever calls it
/// holds the entry's `deciding`.
pub(super) async fn resolve(
    agent: &Agent,
    entry: &Entry,
    log: Arc<Mutex<Log>>,
    record: &Record,
    wish: Wish,
) -> Result<(), MigrationError> {
    match wish {
        Wish::DiscardHere => remove(agent, entry, log, record).await,
        Wish::RunHere => {
            let (id, name) = (entry.id(), &record.container);
            let message = format!("cannot run container {name} here: its copy runs at the destination");
            Err(MigrationError::new(ErrorCode::NotInDoubt, message)
                .hint(format!("`pclivectl undo {id}` goes back to the original that is kept here")))
        }
    }
}

/// What is kept of a migration, if its original is.
pub(super) fn kept(agent: &Agent, entry: &Entry) -> Option<(Arc<Mutex<Log>>, Record, Kept)> {
    let log = agent.journal.log(entry.id())?;
    let record = journal::guard(&log).record().clone();
    match record.phase {
        Phase::Kept(kept) => Some((log, record, kept)),
        Phase::Begun
        | Phase::Committing
        | Phase::Discarded
        | Phase::Tail
        | Phase::Torn
        | Phase::Undoing(_)
        | Phase::Withdrawn
        | Phase::Ended(_) => None,
    }
}

/// Lets the original go on, once the destination has ended the copy, as `operator` wishes. Not `confirmed`: nothing is done.
/// The phase afterwards, and what is kept, or was.
pub async fn undo(
    agent: &Arc<Agent>,
    id: &str,
    confirmed: bool,
    operator: Asker,
) -> Result<control::UndoMigrationResponse, MigrationError> {
    let entry = agent.registry.get(id)?;
    let _deciding = entry.deciding.lock().await;
    let response =
        |kept| control::UndoMigrationResponse { phase: entry.current_phase().into(), kept: Some(told(kept)) };
    let Some((log, record, kept)) = kept(agent, &entry) else {
        let undone = entry.snapshot().error.is_some_and(|error| error.code == ErrorCode::Undone.as_str());
        return if undone {
            Ok(control::UndoMigrationResponse { phase: entry.current_phase().into(), kept: None })
        } else {
            Err(nothing_kept(&entry))
        };
    };
    if !confirmed {
        return Ok(response(kept));
    }
    let undoing = Record { phase: Phase::Undoing(kept), ..record };
    let (writer, written) = (Arc::clone(&log), undoing.clone());
    let put = tokio::task::spawn_blocking(move || journal::guard(&writer).put(written)).await;
    let put = put.map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?;
    put.map_err(|error| MigrationError::caused(ErrorCode::JournalFailed, &error))?;
    tracing::warn!(id, container = undoing.container, "an operator wants the original back");
    entry.resolved_by(operator);
    // ==> From here on the original goes on, or stands still, as the destination says.
    let heard = inquiry::ask(agent, &undoing).await;
    match doubt::attempt(agent, &undoing, heard.answer).await {
        Ok(Verdict::Over(outcome)) => {
            doubt::conclude(agent, &entry, log, outcome).await;
            Ok(response(kept))
        }
        Ok(Verdict::Kept) => {
            keep_on(agent, &entry, log).await;
            let message = format!("cannot undo migration {id}: {}", heard.words);
            Err(MigrationError::new(ErrorCode::PeerDisagrees, message)
                .hint("the original stays as it is until its time is over"))
        }
        Ok(Verdict::Open) => Err(in_doubt(agent, &entry, &undoing, &heard.words)),
        Err(error) => Err(in_doubt(agent, &entry, &undoing, &error.message)),
    }
}

/// The destination has not said that the copy has ended: it is asked on.
fn in_doubt(agent: &Arc<Agent>, entry: &Arc<Entry>, record: &Record, why: &str) -> MigrationError {
    let message = format!(
        "the original of container {} is wanted back, and the destination has not confirmed that its copy has ended: {why}",
        record.container
    );
    let error = MigrationError::new(ErrorCode::CommitUnknown, message)
        .at(control::Role::Source, control::Phase::Unknown);
    entry.unknown(error.clone());
    doubt::pursue(agent, entry);
    error
}

fn nothing_kept(entry: &Entry) -> MigrationError {
    let id = entry.id();
    let message = match entry.role() {
        control::Role::Destination => {
            format!("cannot undo migration {id} here: its original is, or was, at its source")
        }
        control::Role::Source | control::Role::Unspecified => {
            format!("cannot undo migration {id}: its original is not kept here")
        }
    };
    MigrationError::new(ErrorCode::NotKept, message)
}

/// A migration that an earlier agent has left in this phase goes on being kept.
pub(super) fn take_over(agent: &Arc<Agent>, entry: &Arc<Entry>, record: &Record, kept: Kept) {
    // After a restart of the host nothing is kept.
    let kept =
        if record.boot_id == process::boot_id() { kept } else { Kept { until_boottime_ms: 0, ..kept } };
    entry.keep(Some(told(kept)));
    watch(agent, entry, kept);
}

/// The destination will not end the copy: the original is kept as before.
pub(super) async fn keep_on(agent: &Arc<Agent>, entry: &Arc<Entry>, log: Arc<Mutex<Log>>) {
    let record = journal::guard(&log).record().clone();
    let Phase::Undoing(kept) = record.phase else { return };
    let back = Record { phase: Phase::Kept(kept), ..record };
    let put = tokio::task::spawn_blocking(move || journal::guard(&log).put(back)).await;
    match put {
        Ok(Ok(())) => {}
        // A successor asks again, and comes to the same.
        Ok(Err(error)) => tracing::error!(id = entry.id(), "{}", chain(&error)),
        Err(error) => tracing::error!(id = entry.id(), "{}", chain(&error)),
    }
    entry.keep(Some(told(kept)));
    entry.done_after_all();
    watch(agent, entry, kept);
}

/// Milliseconds since this host was started, sleep included.
fn boottime_ms() -> u64 {
    // The clock is there since Linux 2.6.39.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| milliseconds(Duration::from(time)))
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
