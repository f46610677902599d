//! Migrations: one end each.
//!
//! Both ends are state machines whose transitions are pure (`source` and `destination` have a `state` each), a
//! driver that moves messages on the asynchronous runtime, and an OS thread that makes every call of the engine.
//! [`convergence`] decides when the rounds end.
//!
//! Invariants: at most one copy runs, ever; until `Commit` is sent the source can go on unchanged, afterwards it
//! never does by itself; every wait has a deadline; pages in flight are bounded at both ends.

mod check;
mod compression;
pub mod convergence;
mod destination;
mod document;
mod plan;
mod report;
mod source;
pub(crate) mod throttle;
mod wire;

pub(crate) use source::take_apart_answer;
pub(crate) use wire::take_apart;

use std::num::NonZero;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pclive_proto::control::{self, Role, StartMigrationRequest};
use uuid::Uuid;

use self::convergence::{Limits, Policy};
use self::source::Order;
use crate::agent::{Agent, Located};
use crate::config::Strategy;
use crate::error::{ErrorCode, MigrationError};
use crate::hooks;
use crate::journal::{self, Asker, Ending, JournalError, Log, Record};
use crate::link::PeerAddress;
use crate::recovery::{doubt, process};
use crate::registry::{Description, Entry};
use crate::tls::Caller;

pub(crate) use check::version_matches;
pub use check::{Checked, check};
pub(crate) use destination::receive;
pub use plan::{plan, probed};
pub(crate) use wire::{status_error, verify};

/// Longest request id, bytes.
const MAX_REQUEST_ID: usize = 128;

/// What a slow host compares, bytes a second.
const SLOWEST_COMPARISON: u64 = 128 << 20;

/// A migration's file of the journal; others ask and decide with it as well.
type SharedLog = Arc<Mutex<Log>>;

/// How much longer a stop may take in which so much memory is compared.
fn comparison_patience(memory_bytes: u64) -> Duration {
    Duration::from_secs(memory_bytes / SLOWEST_COMPARISON)
}

/// Starts to migrate a container away and returns at once. What can be refused without asking another host is.
/// The same request id again returns the same migration.
pub(crate) async fn start(
    agent: &Arc<Agent>,
    caller: &Caller,
    request: StartMigrationRequest,
) -> Result<Arc<Entry>, MigrationError> {
    if let Some(known) = known(agent, &request)? {
        return Ok(known);
    }
    let destination = agent.peer_address(&request.destination)?;
    agent.registry.refuse_moving(&request.container)?;
    let located = agent.locate_running(&request.container, &request.runtime).await?;
    let strategy = agent.strategy(request.strategy());
    let wishes = Wishes {
        max_downtime_ms: request.max_downtime_ms,
        max_rounds: request.max_rounds,
        max_time_ms: request.max_time_ms,
        policy: request.policy(),
        bandwidth: request.bandwidth_bytes_per_second,
        restore_after: request.restore_after,
    };
    let streams = streams(agent, request.streams)?;
    let keep_source_for_ms = kept_for(request.keep_source_for_ms)?;
    let (limits, bandwidth) = wishes.or_configured(agent, strategy)?;
    let verify = verified(agent, request.verify, limits.policy)?;
    let begun = agent.registry.begin(Description {
        id: Uuid::new_v4().to_string(),
        container: request.container.clone(),
        runtime: located.runtime.name().into(),
        role: Role::Source,
        peer: request.destination.clone(),
        strategy: wire::control_strategy(strategy),
        request_id: request.request_id.clone(),
    });
    let entry = match begun {
        Ok(entry) => entry,
        // The same request may have come twice at once.
        Err(error) => return known(agent, &request)?.ok_or(error),
    };
    warn_of_plain_text(agent, &entry);
    let StartMigrationRequest { allow_clock_step_back, close_connections, .. } = request;
    let tail_token = match limits.policy {
        Policy::PostCopy => Uuid::new_v4().to_string(),
        Policy::StopAnyway | Policy::Throttle | Policy::Cancel => String::new(),
    };
    let begun = Begun {
        request_id: request.request_id,
        strategy,
        tail_token: tail_token.clone(),
        keep_source_for_ms,
        asked_by: Asker::from(caller),
    };
    warn_of_experiment(&limits, &entry);
    let log = match begin_journal(agent, &entry, begun, &located, &destination).await {
        Ok(log) => log,
        Err(error) => {
            entry.fail(error.clone());
            agent.registry.ended();
            return Err(error);
        }
    };
    let order = Order {
        located,
        destination,
        strategy,
        limits,
        bandwidth,
        allow_clock_step_back,
        tail_token,
        streams,
        verify,
        close_connections,
        keep_source_for_ms,
        log,
    };
    tokio::spawn(source::run(Arc::clone(agent), Arc::clone(&entry), order));
    Ok(entry)
}

/// The migration that was asked for under the same id before.
fn known(agent: &Agent, request: &StartMigrationRequest) -> Result<Option<Arc<Entry>>, MigrationError> {
    let id = &request.request_id;
    if id.len() > MAX_REQUEST_ID || id.chars().any(char::is_control) {
        let message = format!("cannot use a request id of {} bytes or with control characters", id.len());
        return Err(MigrationError::new(ErrorCode::InvalidRequest, message)
            .hint(format!("at most {MAX_REQUEST_ID} printable characters")));
    }
    match agent.registry.of_request(id) {
        Some(entry) if entry.container() != request.container => {
            let message = format!(
                "cannot use request id {id:?} for container {}: it stands for migration {} of {}",
                request.container,
                entry.id(),
                entry.container()
            );
            Err(MigrationError::new(ErrorCode::InvalidRequest, message).hint("choose another request id"))
        }
        known => Ok(known),
    }
}

/// What is written down of a request.
struct Begun {
    request_id: String,
    strategy: Strategy,
    tail_token: String,
    keep_source_for_ms: u64,
    asked_by: Asker,
}

/// Writes the migration down, and what the commit will need, so that a full disk stops it now and not then.
async fn begin_journal(
    agent: &Arc<Agent>,
    entry: &Entry,
    Begun { request_id, strategy, tail_token, keep_source_for_ms, asked_by }: Begun,
    located: &Located,
    destination: &PeerAddress,
) -> Result<SharedLog, MigrationError> {
    let record = Record {
        id: entry.id().into(),
        request_id,
        role: journal::Role::Source,
        container: located.id.as_str().into(),
        runtime: located.runtime.name().into(),
        bundle: located.container.bundle.clone(),
        peer: journal::Peer { name: destination.name.clone(), address: destination.address.clone() },
        strategy,
        started_ms: doubt::now_ms(),
        ended_ms: 0,
        boot_id: process::boot_id(),
        init: process::identify(located.container.pid),
        tail: None,
        tail_token,
        network_stays: false,
        keep_source_for_ms,
        asked_by,
        phase: journal::Phase::Begun,
    };
    if record.init.is_none() {
        let message = format!("cannot migrate container {}: its init has ended", located.id);
        return Err(MigrationError::new(ErrorCode::ContainerNotRunning, message));
    }
    let (agent, committing) =
        (Arc::clone(agent), Record { phase: journal::Phase::Committing, ..record.clone() });
    written(move || {
        let log = agent.journal.begin(record)?;
        journal::guard(&log).stage(committing)?;
        Ok(log)
    })
    .await
}

/// Does something to the journal beside the asynchronous runtime.
async fn written<T: Send + 'static>(
    write: impl FnOnce() -> Result<T, JournalError> + Send + 'static,
) -> Result<T, MigrationError> {
    let done = tokio::task::spawn_blocking(write).await;
    let done = done.map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?;
    done.map_err(|error| MigrationError::caused(ErrorCode::JournalFailed, &error))
}

/// Does what follows the end of a migration: the site's hook, then the journal. In this order, so that a successor runs
/// a hook again that may not have run to its end.
async fn conclude(agent: &Agent, entry: &Entry, log: &SharedLog, ending: Ending) {
    let record = journal::guard(log).record().clone();
    hooks::after(agent, entry, &record, &ending).await;
    doubt::write_end(agent, Arc::clone(log), ending).await;
}

/// Least bandwidth that a stream can be limited to, bytes a second: below, one message takes longer than a
/// destination waits for progress.
pub const LEAST_BANDWIDTH: u64 = 125_000;

/// Longest time that an original is kept.
const LONGEST_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Most connections of one migration.
pub const MOST_STREAMS: u32 = 16;
const MOST_STREAMS_BY_CPUS: u32 = 8;
const CPUS_A_STREAM: usize = 4;

/// How long an original is kept, milliseconds; 0: not at all.
fn kept_for(milliseconds: u64) -> Result<u64, MigrationError> {
    let time = Duration::from_millis(milliseconds);
    if time > LONGEST_KEPT {
        let message = format!("cannot keep the original for {time:?}");
        return Err(MigrationError::new(ErrorCode::InvalidRequest, message)
            .hint("it takes the container's memory twice: 7 days at most"));
    }
    Ok(milliseconds)
}

/// What a user may ask for of the limits; 0 and unspecified: as configured.
#[derive(Debug, Clone, Copy)]
struct Wishes {
    max_downtime_ms: u64,
    max_rounds: u32,
    max_time_ms: u64,
    policy: control::Policy,
    bandwidth: u64,
    /// Absent: as configured; 0 is a wish.
    restore_after: Option<u32>,
}

impl Wishes {
    /// The limits of a migration by this strategy, and the bandwidth if it is limited.
    fn or_configured(
        self,
        agent: &Agent,
        strategy: Strategy,
    ) -> Result<(Limits, Option<u64>), MigrationError> {
        let migration = &agent.config.migration;
        let or = |asked: u64, configured| if asked == 0 { configured } else { asked };
        let downtime = or(self.max_downtime_ms, migration.max_downtime_ms);
        let max_rounds = if self.max_rounds == 0 { migration.max_rounds } else { self.max_rounds };
        let time = or(self.max_time_ms, migration.max_time_ms);
        let bandwidth = or(self.bandwidth, migration.bandwidth_bytes_per_second);
        if downtime > 3_600_000 || max_rounds > 1000 || time > 86_400_000 {
            let message = format!(
                "cannot use a downtime of {downtime} ms, {max_rounds} rounds and a time of {time} ms as limits"
            );
            return Err(MigrationError::new(ErrorCode::InvalidRequest, message)
                .hint("at most 3600000 ms, 1000 rounds and 86400000 ms"));
        }
        if bandwidth != 0 && bandwidth < LEAST_BANDWIDTH {
            let message = format!("cannot use a bandwidth of {bandwidth} bytes a second");
            return Err(MigrationError::new(ErrorCode::InvalidRequest, message).hint("at least 1 Mbit/s"));
        }
        let limits = Limits {
            max_downtime: Duration::from_millis(downtime),
            max_rounds,
            max_time: (time > 0).then(|| Duration::from_millis(time)),
            restore_after: restore_after(agent, self.restore_after, strategy, max_rounds)?,
            policy: match self.policy {
                control::Policy::Unspecified => migration.policy,
                control::Policy::StopAnyway => Policy::StopAnyway,
                control::Policy::Throttle => Policy::Throttle,
                control::Policy::Cancel => Policy::Cancel,
                control::Policy::PostCopy => Policy::PostCopy,
            },
        };
        Ok((limits, (bandwidth > 0).then_some(bandwidth)))
    }
}

/// Connections of a migration; 0: as configured, and that 0: one for four CPUs of this host, at most eight.
fn streams(agent: &Agent, asked: u32) -> Result<u32, MigrationError> {
    if asked > MOST_STREAMS {
        let message = format!("cannot use {asked} streams");
        return Err(
            MigrationError::new(ErrorCode::InvalidRequest, message).hint(format!("at most {MOST_STREAMS}"))
        );
    }
    let configured = agent.config.migration.streams;
    Ok(match (asked, configured) {
        (0, 0) => {
            let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
            u32::try_from(cpus / CPUS_A_STREAM).unwrap_or(1).clamp(1, MOST_STREAMS_BY_CPUS)
        }
        (0, configured) => configured,
        (asked, _) => asked,
    })
}

/// Whether memory is compared before the commit. All of it must be there then.
fn verified(agent: &Agent, asked: Option<bool>, policy: Policy) -> Result<bool, MigrationError> {
    let verify = asked.unwrap_or(agent.config.migration.verify);
    if verify && policy == Policy::PostCopy {
        let message =
            "cannot compare memory before the commit by policy post-copy: its last pages come after it";
        return Err(MigrationError::new(ErrorCode::InvalidRequest, message)
            .hint("migrate with --verify=false, or by another policy"));
    }
    Ok(verify)
}

/// The round from which on the copy is built: the one asked for, else the configured one; 0 where there is no such thing.
fn restore_after(
    agent: &Agent,
    asked: Option<u32>,
    strategy: Strategy,
    max_rounds: u32,
) -> Result<u32, MigrationError> {
    let refuse =
        |message: String, hint: &str| Err(MigrationError::new(ErrorCode::InvalidRequest, message).hint(hint));
    match (strategy, asked) {
        (Strategy::OneShot, None | Some(0)) => Ok(0),
        (Strategy::OneShot, Some(round)) => refuse(
            format!("cannot restore after round {round} by strategy one-shot, which restores after the stop"),
            "leave --restore-after out, or migrate with --strategy global or pipelined",
        ),
        (Strategy::Global | Strategy::Pipelined, asked) => {
            let round = asked.unwrap_or(agent.config.migration.restore_after);
            if round < max_rounds {
                return Ok(round);
            }
            refuse(
                format!("cannot restore after round {round}: there are {max_rounds} rounds at most"),
                "allow more rounds (--max-rounds) or restore earlier (--restore-after)",
            )
        }
    }
}

/// A migration whose link is plain text says so, at both ends.
/// Whoever asks for it is told what it is.
fn warn_of_experiment(limits: &Limits, entry: &Entry) {
    if limits.policy == Policy::PostCopy {
        entry.warn(
            "policy post-copy is experimental: docs/RECOVERY.md says what can be lost while pages follow",
        );
    }
}

fn warn_of_plain_text(agent: &Agent, entry: &Entry) {
    if agent.config.peer.insecure {
        entry.warn(
            "the link is plain text and not authenticated (peer.insecure): the container's memory can be read and \
             changed on its way",
        );
    }
}
