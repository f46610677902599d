//! A migration in doubt: COMMIT may have been sent, and the destination has not said what became of it.
//!
//! The container stands still at its source. The destination is asked until it answers, with growing pauses; an
//! operator may decide earlier. Whoever decides holds the entry's `deciding`, so that only one does.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use pclive_proto::control::{Doubt, Phase, Role};

use super::decision::{self, Answer, Held, SourceStep, Wish, confirms};
use super::inquiry::{self, Heard, Question};
use super::{keep, remains, tail, withdrawal};
use crate::agent::{Agent, container_id};
use crate::audit::{End, Line, Moved};
use crate::error::{ErrorCode, MigrationError, chain};
use crate::fault::{self, Point};
use crate::hooks;
use crate::journal::{self, Asker, Ending, Log, Reason, Record};
use crate::registry::Entry;

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// How a migration that was open has ended.
#[derive(Debug)]
pub(super) enum Outcome {
    Done,
    Failed(MigrationError),
}

/// What an answer of the destination came to.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is over.
    Over(Outcome),
    /// The original is kept: as before it was wanted back, or because that was asked for.
    Kept,
    /// It must be asked again.
    Open,
}

/// Does at the source what this answer allows. On `Err` it can be tried again.
pub(super) async fn attempt(
    agent: &Agent,
    record: &Record,
    answer: Answer,
) -> Result<Verdict, MigrationError> {
    let held = blocking(record, remains::held).await?;
    let step = decision::source(&record.phase, held, answer);
    tracing::info!(id = record.id, phase = ?record.phase, ?held, ?answer, ?step, "recovering");
    // It was asked for, and the agent that was asked has not come to it.
    let is_to_be_kept = record.keep_source_for_ms > 0 && held == Held::Frozen;
    if step == SourceStep::Destroy && is_to_be_kept {
        Ok(Verdict::Kept)
    } else {
        take(agent, record, step).await
    }
}

pub(super) async fn take(
    agent: &Agent,
    record: &Record,
    step: SourceStep,
) -> Result<Verdict, MigrationError> {
    let name = &record.container;
    match step {
        SourceStep::Nothing | SourceStep::Ask => Ok(Verdict::Open),
        SourceStep::Keep => Ok(Verdict::Kept),
        SourceStep::LetGo => {
            agent.tails.close(&record.id);
            blocking(record, remains::let_go).await?;
            if matches!(record.phase, journal::Phase::Undoing(_)) {
                announce(record).await;
                fault::reached(Point::SourceUndone);
                return Ok(Verdict::Over(Outcome::Failed(withdrawal::undone(record))));
            }
            let message = format!("the migration of container {name} ended early; it runs on here");
            Ok(Verdict::Over(Outcome::Failed(MigrationError::new(ErrorCode::AgentRestarted, message))))
        }
        SourceStep::Lost => {
            let message =
                format!("the migration of container {name} ended early, and it has ended here, too");
            let error = MigrationError::new(ErrorCode::AgentRestarted, message).hint("start it again");
            Ok(Verdict::Over(Outcome::Failed(error)))
        }
        SourceStep::Destroy => {
            let timeout = agent.config.migration.stop_timeout();
            blocking(record, move |record| remains::destroy(record, timeout)).await?;
            forget(agent, record).await?;
            Ok(Verdict::Over(Outcome::Done))
        }
    }
}

/// Tells the neighbours once more where the container is.
pub(super) async fn announce(record: &Record) {
    let announced = blocking(record, |record| {
        remains::announce(record).map_err(|error| MigrationError::caused(ErrorCode::NetworkFailed, &error))
    });
    if let Err(error) = announced.await {
        tracing::warn!(id = record.id, "cannot announce the container again: {error}");
    }
}

/// Makes the runtime forget the container that the migration was about, and no other of its name.
pub(super) async fn forget(agent: &Agent, record: &Record) -> Result<(), MigrationError> {
    let id = container_id(&record.container)?;
    let Ok(runtime) = agent.runtime(&record.runtime) else {
        tracing::warn!(id = record.id, "runtime {} is not configured any more, and not told", record.runtime);
        return Ok(());
    };
    if !runtime.knows(&id) {
        return Ok(());
    }
    let failed = |error| MigrationError::caused(ErrorCode::RuntimeFailed, &error);
    let container = runtime.state(&id).await.map_err(failed)?;
    let ours = container.status == "stopped" || record.init.is_some_and(|init| init.pid == container.pid);
    if ours { runtime.delete(&id).await.map_err(failed) } else { Ok(()) }
}

pub(super) async fn blocking<T: Send + 'static>(
    record: &Record,
    work: impl FnOnce(&Record) -> Result<T, MigrationError> + Send + 'static,
) -> Result<T, MigrationError> {
    let record = record.clone();
    let done = tokio::task::spawn_blocking(move || work(&record)).await;
    done.map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?
}

/// Writes an end down. It holds whether or not that succeeds.
pub(crate) async fn write_end(agent: &Agent, log: Arc<Mutex<Log>>, ending: Ending) {
    let ended_ms = now_ms();
    audit(agent, &log, &ending, ended_ms).await;
    let phase = journal::Phase::Ended(ending);
    let written = tokio::task::spawn_blocking(move || journal::guard(&log).end(phase, ended_ms)).await;
    match written {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!("{}", chain(&error)),
        Err(error) => tracing::warn!("{}", chain(&error)),
    }
    agent.journal.prune();
}

/// Adds the migration to the audit record: before the journal's end, so that a successor writes a line that is missing.
/// The migration does not depend on it.
async fn audit(agent: &Agent, log: &Arc<Mutex<Log>>, ending: &Ending, ended_ms: u64) {
    let (record, once) = {
        let log = journal::guard(log);
        (log.record().clone(), log.is_inherited())
    };
    let entry = agent.registry.get(&record.id).ok();
    let moved = entry.as_ref().filter(|_| !once);
    let moved = moved.map(|entry| Moved { bytes: entry.sent_bytes(), state_digest: entry.moved_state() });
    let decided_by = entry.as_ref().and_then(|entry| entry.decided_by());
    let (keeper, name, ending) = (Arc::clone(&agent.audit), agent.name.clone(), ending.clone());
    let appended = tokio::task::spawn_blocking(move || {
        let end = End { ending: &ending, at_ms: ended_ms, decided_by: decided_by.as_ref() };
        keeper.append(&Line::new(&name, &record, end, moved), once)
    });
    let failure = match appended.await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => chain(&error),
        Err(error) => chain(&error),
    };
    let message = format!("the audit record lacks this migration: {failure}");
    match entry {
        Some(entry) => entry.warn(message),
        None => tracing::warn!("{message}"),
    }
}

/// Why it failed, as the journal keeps it.
pub(crate) fn failed(error: &MigrationError) -> Ending {
    Ending::Failed(Reason::new(error.code, &error.message, &error.hint))
}

pub(super) fn ending(outcome: &Outcome) -> Ending {
    match outcome {
        Outcome::Done => Ending::Done,
        Outcome::Failed(error) => failed(error),
    }
}

/// Asks until the migration is not in doubt any more.
pub(crate) fn pursue(agent: &Arc<Agent>, entry: &Arc<Entry>) {
    let (agent, entry) = (Arc::clone(agent), Arc::clone(entry));
    tokio::spawn(async move {
        let mut pause = FIRST_PAUSE;
        while !round(&agent, &entry).await {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    });
}

/// True once there is no doubt.
async fn round(agent: &Arc<Agent>, entry: &Arc<Entry>) -> bool {
    let _deciding = entry.deciding.lock().await;
    let Some((log, record)) = open(agent, entry) else { return true };
    let heard = inquiry::ask(agent, &record, wanted(&record).await).await;
    note(entry, &record, &heard, None);
    match attempt(agent, &record, heard.answer).await {
        Ok(Verdict::Over(outcome)) => {
            conclude(agent, entry, log, outcome).await;
            true
        }
        Ok(Verdict::Kept) => keep::keep_on(agent, entry, log).await,
        Ok(Verdict::Open) => false,
        Err(error) => {
            tracing::error!(id = record.id, "cannot end a migration in doubt: {error}");
            note(entry, &record, &heard, Some(&error));
            false
        }
    }
}

/// What the destination is asked for: to end its copy only for an original that is still there.
async fn wanted(record: &Record) -> Question {
    let undoing = matches!(record.phase, journal::Phase::Undoing(_));
    let gone = || async { blocking(record, remains::held).await.is_ok_and(|held| held == Held::Gone) };
    if undoing && !gone().await { Question::Withdraw } else { Question::Inquire }
}

fn open(agent: &Agent, entry: &Entry) -> Option<(Arc<Mutex<Log>>, Record)> {
    if entry.current_phase() != Phase::Unknown {
        return None;
    }
    let log = agent.journal.log(entry.id())?;
    let record = journal::guard(&log).record().clone();
    Some((log, record))
}

/// Tells users what is known.
fn note(entry: &Entry, record: &Record, heard: &Heard, trouble: Option<&MigrationError>) {
    let here = match trouble {
        Some(error) => error.message.clone(),
        None if matches!(record.phase, journal::Phase::Undoing(_)) => {
            format!("the original of container {} is wanted back here", record.container)
        }
        None => format!("container {} stands still here, frozen", record.container),
    };
    let questions = entry.snapshot().doubt.map_or(0, |doubt| doubt.questions).saturating_add(1);
    entry.doubt(Doubt { here, there: heard.words.clone(), questions, asked_ms: now_ms() });
}

/// Brings a migration to its end that was not known, or has become another.
pub(super) async fn conclude(agent: &Arc<Agent>, entry: &Arc<Entry>, log: Arc<Mutex<Log>>, outcome: Outcome) {
    let (ending, record) = (ending(&outcome), journal::guard(&log).record().clone());
    // Of one that was undone the end is written first: a successor would have to ask the destination again.
    let undone = matches!(record.phase, journal::Phase::Undoing(_) | journal::Phase::Withdrawn);
    if undone {
        write_end(agent, log, ending.clone()).await;
    } else {
        end(agent, entry, log, ending.clone()).await;
    }
    match outcome {
        Outcome::Done => {
            tracing::info!(id = entry.id(), "no doubt any more: the container runs at the destination");
            entry.finish(None);
        }
        Outcome::Failed(error) => {
            tracing::warn!(id = entry.id(), "no doubt any more: {error}");
            entry.fail(error);
        }
    }
    agent.registry.ended();
    if undone {
        hooks::after_recovery(agent, Arc::clone(entry), &record, ending);
    }
}

/// What follows an end: the site's hook, then the journal.
pub(super) async fn end(agent: &Agent, entry: &Entry, log: Arc<Mutex<Log>>, ending: Ending) {
    let record = journal::guard(&log).record().clone();
    hooks::after(agent, entry, &record, &ending).await;
    write_end(agent, log, ending).await;
}

/// Decides as `operator` wishes, if the destination confirms it or `overridden`. The phase afterwards, and what the
/// destination said.
pub async fn resolve(
    agent: &Arc<Agent>,
    id: &str,
    wish: Wish,
    overridden: bool,
    operator: Asker,
) -> Result<(Phase, String), MigrationError> {
    let entry = agent.registry.get(id)?;
    let _deciding = entry.deciding.lock().await;
    if let Some((log, record, _)) = keep::kept(agent, &entry) {
        keep::resolve(agent, &entry, log, &record, (wish, operator)).await?;
        return Ok((entry.current_phase(), String::new()));
    }
    let Some((log, record)) = open(agent, &entry) else {
        let message = format!("cannot resolve migration {id}: it is not in doubt");
        return Err(MigrationError::new(ErrorCode::NotInDoubt, message));
    };
    if record.role == journal::Role::Destination {
        let outcome = tail::give_up(&record, wish, overridden)?;
        entry.resolved_by(Some(operator));
        conclude(agent, &entry, log, outcome).await;
        return Ok((entry.current_phase(), String::new()));
    }
    // Who wants the original removed does not want its copy ended.
    let question = match wish {
        Wish::RunHere => wanted(&record).await,
        Wish::DiscardHere => Question::Renounce,
    };
    let heard = inquiry::ask(agent, &record, question).await;
    note(&entry, &record, &heard, None);
    if !confirms(heard.answer, wish) && !overridden {
        return Err(refusal(&record, wish, &heard));
    }
    let held = blocking(&record, remains::held).await?;
    let step = match wish {
        Wish::RunHere if held == Held::Gone => SourceStep::Lost,
        Wish::RunHere => SourceStep::LetGo,
        Wish::DiscardHere => SourceStep::Destroy,
    };
    tracing::warn!(id, ?wish, overridden, peer = heard.words, "an operator decides");
    let outcome = take(agent, &record, step).await.map_err(|error| error.at(Role::Source, Phase::Unknown))?;
    let Verdict::Over(outcome) = outcome else {
        return Err(MigrationError::new(ErrorCode::Internal, "a decision without an outcome"));
    };
    entry.resolved_by(Some(operator));
    conclude(agent, &entry, log, outcome).await;
    Ok((entry.current_phase(), heard.words))
}

fn refusal(record: &Record, wish: Wish, heard: &Heard) -> MigrationError {
    let (what, risk) = match wish {
        Wish::RunHere => (
            "run",
            "with --override it runs here all the same: if it runs there as well, two copies answer for one \
             address and write the same files",
        ),
        Wish::DiscardHere => (
            "discard",
            "with --override it is removed here all the same: if it does not run there, it is lost with \
             everything in its memory",
        ),
    };
    let message = format!(
        "cannot {what} container {} here: the destination does not confirm it: {}",
        record.container, heard.words
    );
    MigrationError::new(ErrorCode::PeerDisagrees, message).hint(risk).at(Role::Source, Phase::Unknown)
}

/// Unix time, milliseconds.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
