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

use super::decision::{Answer, Held, SourceStep, Wish};
use super::doubt::{self, Verdict};
use super::inquiry::{self, Heard, Question};
use super::{process, remains};
use crate::agent::Agent;
use crate::error::{ErrorCode, MigrationError, chain};
use crate::journal::{self, Asker, Ending, JournalError, Kept, Log, Phase, Record};
use crate::registry::Entry;

/// How soon it is tried again to remove an original whose time is over.
const PAUSE: Duration = Duration::from_secs(5);
/// How long the time that is left is not looked at: a host that sleeps sleeps through a longer wait.
const LOOK: Duration = Duration::from_secs(60);

/// Writes down that the original, stopped at `stopped_ms` (Unix time), is kept from now on, for as long as was asked for.
pub(crate) fn write(log: &Mutex<Log>, stopped_ms: u64) -> Result<Kept, JournalError> {
    let kept = from_now_on(journal::guard(log).record(), stopped_ms);
    put(log, Phase::Kept(kept))?;
    Ok(kept)
}

fn from_now_on(record: &Record, stopped_ms: u64) -> Kept {
    Kept { until_boottime_ms: boottime_ms().saturating_add(record.keep_source_for_ms), stopped_ms }
}

fn put(log: &Mutex<Log>, phase: Phase) -> Result<(), JournalError> {
    let mut log = journal::guard(log);
    let record = Record { phase, ..log.record().clone() };
    log.put(record)
}

/// The same beside the asynchronous runtime.
async fn written(log: &Arc<Mutex<Log>>, phase: Phase) -> Result<(), MigrationError> {
    let log = Arc::clone(log);
    let done = tokio::task::spawn_blocking(move || put(&log, phase)).await;
    let done = done.map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?;
    done.map_err(|error| MigrationError::caused(ErrorCode::JournalFailed, &error))
}

/// What users are told of it.
pub(crate) fn told(kept: Kept) -> control::Kept {
    let left = kept.until_boottime_ms.saturating_sub(boottime_ms());
    control::Kept { until_ms: doubt::now_ms().saturating_add(left), stopped_ms: kept.stopped_ms }
}

/// What the journal says is kept.
pub(crate) fn of(log: &Mutex<Log>) -> Option<Kept> {
    let Phase::Kept(kept) = journal::guard(log).record().phase else { return None };
    Some(kept)
}

/// Removes the original of a migration that has ended when its time is over, unless it is wanted back before.
pub(crate) fn watch(agent: &Arc<Agent>, entry: &Arc<Entry>, until: Kept) {
    let (agent, entry) = (Arc::clone(agent), Arc::clone(entry));
    tokio::spawn(async move {
        while let left @ 1.. = until.until_boottime_ms.saturating_sub(boottime_ms()) {
            tokio::time::sleep(Duration::from_millis(left).min(LOOK)).await;
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
    let removed = remove(agent, entry, log, &record, None).await;
    let failed = |error: &MigrationError| {
        tracing::error!(id = entry.id(), "cannot remove the original that was kept: {error}");
    };
    removed.inspect_err(failed).is_ok()
}

/// Removes the original now. Whoever calls it holds the entry's `deciding`.
async fn remove(
    agent: &Agent,
    entry: &Entry,
    log: Arc<Mutex<Log>>,
    record: &Record,
    operator: Option<Asker>,
) -> Result<(), MigrationError> {
    doubt::take(agent, record, SourceStep::Destroy).await?;
    entry.resolved_by(operator);
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
    (wish, operator): (Wish, Asker),
) -> Result<(), MigrationError> {
    match wish {
        Wish::DiscardHere => remove(agent, entry, log, record, Some(operator)).await,
        Wish::RunHere => {
            let (id, name) = (entry.id(), &record.container);
            let message = format!("cannot run container {name} here: its copy runs at the destination");
            Err(MigrationError::new(ErrorCode::NotInDoubt, message)
                .hint(format!("`pclivectl undo {id}` goes back to the original that is kept here")))
        }
    }
}

/// What is kept of a migration that has ended, if its original is.
pub(super) fn kept(agent: &Agent, entry: &Entry) -> Option<(Arc<Mutex<Log>>, Record, Kept)> {
    // As long as its driver is at work, nobody else decides.
    entry.kept().filter(|_| !entry.is_running())?;
    let log = agent.journal.log(entry.id())?;
    let kept = of(&log)?;
    let record = journal::guard(&log).record().clone();
    Some((log, record, kept))
}

/// Lets the original go on, once the destination has ended the copy, as `operator` wishes. Not `confirmed`: nothing is done.
/// The phase afterwards, and what is kept, or was. To be run to its end: what is begun is not left in the middle.
pub async fn undo(
    agent: Arc<Agent>,
    id: String,
    confirmed: bool,
    operator: Asker,
) -> Result<control::UndoMigrationResponse, MigrationError> {
    let entry = agent.registry.get(&id)?;
    let _deciding = entry.deciding.lock().await;
    let response = |kept: Option<Kept>| control::UndoMigrationResponse {
        phase: entry.current_phase().into(),
        kept: kept.map(told),
    };
    let Some((log, record, kept)) = kept(&agent, &entry) else {
        let undone = entry.role() == control::Role::Source
            && entry.snapshot().error.is_some_and(|error| error.code == ErrorCode::Undone.as_str());
        return if undone { Ok(response(None)) } else { Err(nothing_kept(&agent, &entry)) };
    };
    if doubt::blocking(&record, remains::held).await? != Held::Frozen {
        let message =
            format!("cannot undo migration {id}: its original is not there any more, or is not frozen");
        return Err(MigrationError::new(ErrorCode::NotKept, message)
            .hint("nothing was done: the container runs at the destination"));
    }
    if !confirmed {
        return Ok(response(Some(kept)));
    }
    // A destination that does not know of it could never give the copy up.
    let there = inquiry::ask(&agent, &record, Question::Inquire).await;
    if !matches!(there.answer, Answer::Runs | Answer::Discarded) {
        return Err(refused(&id, &there));
    }
    let undoing = Record { phase: Phase::Undoing(kept), ..record };
    written(&log, undoing.phase.clone()).await?;
    tracing::warn!(id, container = undoing.container, "an operator wants the original back");
    // ==> From here on the original goes on, or stands still, as the destination says.
    entry.resolved_by(Some(operator));
    let heard = inquiry::ask(&agent, &undoing, Question::Withdraw).await;
    match doubt::attempt(&agent, &undoing, heard.answer).await {
        Ok(Verdict::Over(outcome)) => {
            doubt::conclude(&agent, &entry, log, outcome).await;
            Ok(response(Some(kept)))
        }
        Ok(Verdict::Kept) if keep_on(&agent, &entry, log).await => Err(refused(&id, &heard)),
        Ok(Verdict::Kept | Verdict::Open) => Err(in_doubt(&agent, &entry, &undoing, &heard.words)),
        Err(error) => Err(in_doubt(&agent, &entry, &undoing, &error.message)),
    }
}

fn refused(id: &str, heard: &Heard) -> MigrationError {
    let message = format!("cannot undo migration {id}: {}", heard.words);
    MigrationError::new(ErrorCode::PeerDisagrees, message)
        .hint("nothing was done; the original is kept until its time is over")
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

fn nothing_kept(agent: &Agent, entry: &Entry) -> MigrationError {
    let id = entry.id();
    let phase = agent.journal.log(id).map(|log| journal::guard(&log).record().phase.clone());
    match phase {
        Some(Phase::Undoing(_)) => {
            let message =
                format!("migration {id} is being undone, and the destination is asked until it answers");
            return MigrationError::new(ErrorCode::CommitUnknown, message);
        }
        Some(Phase::Kept(_)) => {
            let message = format!("cannot undo migration {id}: it has not ended yet");
            return MigrationError::new(ErrorCode::Busy, message).hint("try again in a moment");
        }
        _ => {}
    }
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

/// The copy runs and the original is kept: as before, because the destination will not end the copy; or from now on, if an
/// agent that was to keep it has not come to that. False: it cannot be written down, and is to be tried again.
pub(super) async fn keep_on(agent: &Arc<Agent>, entry: &Arc<Entry>, log: Arc<Mutex<Log>>) -> bool {
    let record = journal::guard(&log).record().clone();
    let kept = match record.phase {
        Phase::Undoing(kept) => kept,
        // When it was stopped, the agent that stopped it knew.
        _ => from_now_on(&record, 0),
    };
    if let Err(error) = written(&log, Phase::Kept(kept)).await {
        tracing::error!(id = entry.id(), "cannot keep the original: {}", chain(&error));
        return false;
    }
    entry.resolved_by(None);
    entry.keep(Some(told(kept)));
    entry.done_after_all();
    watch(agent, entry, kept);
    true
}

/// Milliseconds since this host was started, sleep included.
fn boottime_ms() -> u64 {
    // The clock is there since Linux 2.6.39.
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
