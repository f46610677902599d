//! A copy that was let go without its last pages, and the agent or the fetcher that is gone meanwhile.
//!
//! The fetcher goes on without its agent; a successor waits for it. A fetcher that is lost leaves a copy that can never
//! be whole: it is ended, so that nobody reads what is not there, and the source is told to wait for an operator.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pclive_proto::control;

use super::decision::{Fetching, Wish};
use super::doubt::Outcome;
use super::{doubt, finish, process, restore};
use crate::agent::{Agent, container_id};
use crate::error::{ErrorCode, MigrationError, chain};
use crate::hooks;
use crate::journal::{self, Ending, Log, Phase, Process, Record};
use crate::network;
use crate::registry::{Entry, Past};
use crate::tail::marker;

/// How often a fetcher that is no child is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How often a phase is tried to be written before the rest goes on,
const ATTEMPTS: u32 = 5;
/// and the pauses in between.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What became of the fetcher.
pub(super) fn fetching(agent: &Agent, record: &Record) -> Fetching {
    let Some(fetcher) = record.tail else { return Fetching::Never };
    if marker(&agent.config.agent.state_dir, &record.id).exists() {
        return Fetching::Complete;
    }
    let runs = record.boot_id == process::boot_id() && process::is_there(fetcher);
    // It may have written it down just before it ended.
    match runs {
        true => Fetching::Running,
        false if marker(&agent.config.agent.state_dir, &record.id).exists() => Fetching::Complete,
        false => Fetching::Lost,
    }
}

fn in_doubt(agent: &Agent, record: &Record, error: MigrationError) -> Arc<Entry> {
    let error = error.at(control::Role::Destination, control::Phase::Unknown);
    restore(agent, record, 0, Past::InDoubt(control::Error::from(&error)))
}

/// Waits beside everything else until the fetcher has ended. The source that asks is told to wait.
pub(super) async fn follow(agent: &Arc<Agent>, record: &Record) {
    if let Some(log) = agent.journal.log(&record.id) {
        // The copy was let go: from here on nothing is decided against it.
        let _ = journal::guard(&log).take_commit();
    }
    write(agent, record, Phase::Tail).await;
    let message = format!(
        "this agent was restarted while container {} runs here and its last pages are fetched, which goes on",
        record.container
    );
    // It was not left as it was, and is not to be migrated again before it is whole.
    let error = MigrationError {
        retryable: false,
        ..MigrationError::new(ErrorCode::AgentRestarted, message)
            .hint("wait: the migration ends by itself once every page is there (docs/RECOVERY.md)")
    };
    let entry = in_doubt(agent, record, error);
    hooks::after_recovery(agent, Arc::clone(&entry), record, Ending::Done);
    let (agent, record) = (Arc::clone(agent), record.clone());
    tokio::spawn(async move {
        while fetching(&agent, &record) == Fetching::Running {
            tokio::time::sleep(LOOK).await;
        }
        if fetching(&agent, &record) != Fetching::Complete {
            let error = tear(&agent, &record).await;
            return entry.unknown(error);
        }
        finish(&agent, &record).await;
        if let Some(log) = agent.journal.log(&record.id) {
            doubt::write_end(&agent, log, Ending::Done).await;
        }
        tracing::info!(id = record.id, "every page is in place");
        entry.finish(None);
        agent.registry.ended();
    });
}

/// An earlier agent found, or left, a copy that lost its pages.
pub(super) async fn tear_anew(agent: &Arc<Agent>, record: &Record) {
    let error = tear(agent, record).await;
    in_doubt(agent, record, error);
}

/// What an operator may decide at the destination: that a copy which lost pages is given up for good. The source is told
/// so when it asks, and lets the original go on.
pub(super) fn give_up(record: &Record, wish: Wish, overridden: bool) -> Result<Outcome, MigrationError> {
    let name = &record.container;
    let message = match (&record.phase, wish) {
        (Phase::Torn, Wish::DiscardHere) if overridden => {
            let message = format!("container {name} lost pages here and was given up by an operator");
            return Ok(Outcome::Failed(MigrationError::new(ErrorCode::PagesLost, message)));
        }
        (Phase::Torn, Wish::DiscardHere) => {
            let message = format!("cannot give up container {name} without --override: it ran here");
            return Err(MigrationError::new(ErrorCode::PeerDisagrees, message).hint(
                "with --override its original at the source goes on from the moment of the stop, and what it did here \
                 since is lost",
            ));
        }
        (Phase::Torn, Wish::RunHere) => format!("cannot run container {name} here: it lost its last pages"),
        (
            Phase::Begun
            | Phase::Committing
            | Phase::Discarded
            | Phase::Tail
            | Phase::Kept(_)
            | Phase::Undoing(_)
            | Phase::Ended(_),
            Wish::RunHere | Wish::DiscardHere,
        ) => {
            format!("cannot resolve the migration of container {name} here: its last pages are being fetched")
        }
        (Phase::Withdrawn, Wish::RunHere | Wish::DiscardHere) => {
            format!("cannot resolve the migration of container {name} here: its copy is being ended")
        }
    };
    Err(MigrationError::new(ErrorCode::NotInDoubt, message))
}

/// Ends the fetcher of a copy that never runs.
pub(super) fn end_fetcher(record: &Record) {
    end_process(record, record.tail);
}

fn end_process(record: &Record, process: Option<Process>) {
    let is_there = |process: &Process| record.boot_id == process::boot_id() && process::is_there(*process);
    if let Some(process) = process.filter(is_there) {
        // One that is gone by itself needs no end.
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
}

/// Writes down how far a copy is that was let go. What cannot be written soon is tried again beside everything else:
/// until then the source is told to wait, and a successor comes to the same step.
async fn write(agent: &Agent, record: &Record, phase: Phase) {
    let Some(log) = agent.journal.log(&record.id) else { return };
    for _ in 0..ATTEMPTS {
        if wrote(&log, &phase).await {
            return;
        }
        tokio::time::sleep(FIRST_PAUSE).await;
    }
    tokio::spawn(async move {
        let mut pause = FIRST_PAUSE;
        while !wrote(&log, &phase).await {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    });
}

/// False: it is to be tried again.
async fn wrote(log: &Arc<Mutex<Log>>, phase: &Phase) -> bool {
    let (log, phase) = (Arc::clone(log), phase.clone());
    let put = tokio::task::spawn_blocking(move || {
        let mut log = journal::guard(&log);
        let is_next = match log.record().phase {
            Phase::Committing => true,
            Phase::Tail => phase == Phase::Torn,
            Phase::Begun
            | Phase::Discarded
            | Phase::Torn
            | Phase::Kept(_)
            | Phase::Undoing(_)
            | Phase::Withdrawn
            | Phase::Ended(_) => false,
        };
        let record = Record { phase, ..log.record().clone() };
        let put = if is_next { log.put(record) } else { Ok(()) };
        put.inspect_err(|error| tracing::error!(id = log.record().id, "{}", chain(error)))
    });
    matches!(put.await, Ok(Ok(())))
}

/// Ends a copy that lost pages, and writes that down first: the source must not take it for one that never ran.
pub(crate) async fn tear(agent: &Agent, record: &Record) -> MigrationError {
    let message = format!(
        "container {} went on here without its last pages, and the process that fetched them was lost: it was ended, \
         because nobody can make its memory whole",
        record.container
    );
    tracing::error!(id = record.id, "{message}");
    write(agent, record, Phase::Torn).await;
    end_process(record, record.init);
    if let (Ok(id), Ok(runtime)) = (container_id(&record.container), agent.runtime(&record.runtime))
        && runtime.knows(&id)
        && let Err(error) = runtime.delete(&id).await
    {
        tracing::error!(id = record.id, "the container could not be removed: {}", chain(&error));
    }
    if let Err(error) = network::remove_host_ends(&record.container) {
        tracing::error!(id = record.id, "its network could not be removed: {}", chain(&error));
    }
    MigrationError::new(ErrorCode::PagesLost, message).hint(
        "at the source the container stands still as it was at the stop: `pclivectl resolve ID --discard-here --override` \
         here lets it go on there from that moment; what it did since is lost (docs/RECOVERY.md)",
    )
}
