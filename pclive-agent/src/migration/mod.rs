//! Migrations: one end each.
//!
//! Both ends are state machines whose transitions are pure (`source` and `destination` have a `state` each), a
//! driver that moves messages on the asynchronous runtime, and an OS thread that makes every call of the engine.
//! [`convergence`] decides when the rounds end.
//!
//! Invariants: at most one copy runs, ever; until `Commit` is sent the source can go on unchanged, afterwards it
//! never does by itself; every wait has a deadline; pages in flight are bounded at both ends.

mod check;
pub mod convergence;
mod destination;
mod report;
mod source;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use pclive_proto::control::{Role, StartMigrationRequest};
use pclive_proto::peer::{DestinationMessage, SourceMessage};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use uuid::Uuid;

use self::convergence::Limits;
use self::source::Order;
use crate::agent::Agent;
use crate::error::{ErrorCode, MigrationError};
use crate::registry::{Description, Entry};

pub use check::{Checked, check};

/// Answers of a destination that may wait for the link; there is one a round.
const ANSWERS: usize = 8;

/// Starts to migrate a container away and returns at once. What can be refused without asking another host is.
pub async fn start(agent: &Arc<Agent>, request: StartMigrationRequest) -> Result<Arc<Entry>, MigrationError> {
    let destination = agent.peer_address(&request.destination)?;
    let located = agent.locate_running(&request.container, &request.runtime).await?;
    let strategy = agent.strategy(request.strategy());
    let limits = limits(agent, &request)?;
    let entry = agent.registry.begin(Description {
        id: Uuid::new_v4().to_string(),
        container: request.container.clone(),
        runtime: located.runtime.name().into(),
        role: Role::Source,
        peer: request.destination.clone(),
        strategy: wire::control_strategy(strategy),
    })?;
    let allow_clock_step_back = request.allow_clock_step_back;
    let order = Order { located, destination, strategy, limits, allow_clock_step_back };
    tokio::spawn(source::run(Arc::clone(agent), Arc::clone(&entry), order));
    Ok(entry)
}

/// The request's limits, else the configured ones.
fn limits(agent: &Agent, request: &StartMigrationRequest) -> Result<Limits, MigrationError> {
    let migration = &agent.config.migration;
    let downtime =
        if request.max_downtime_ms == 0 { migration.max_downtime_ms } else { request.max_downtime_ms };
    let max_rounds = if request.max_rounds == 0 { migration.max_rounds } else { request.max_rounds };
    if downtime > 3_600_000 || max_rounds > 1000 {
        let message = format!("cannot use a downtime of {downtime} ms and {max_rounds} rounds as limits");
        return Err(MigrationError::new(ErrorCode::InvalidRequest, message)
            .hint("at most 3600000 ms and 1000 rounds"));
    }
    Ok(Limits { max_downtime: Duration::from_millis(downtime), max_rounds })
}

/// Takes a migration from another agent; the answers to it come out of the receiver.
pub fn receive(
    agent: &Arc<Agent>,
    incoming: Streaming<SourceMessage>,
) -> mpsc::Receiver<Result<DestinationMessage, Status>> {
    let (answers, receiver) = mpsc::channel(ANSWERS);
    tokio::spawn(destination::run(Arc::clone(agent), incoming, answers));
    receiver
}
