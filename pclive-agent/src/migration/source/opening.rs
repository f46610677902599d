//! Before the first message: the container is checked, the destination found.
//!
//! Nothing has been changed at either end; whatever fails here, the container runs on untouched.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::info;

use super::Order;
use super::engine::{Answer, Opened};
use super::lines::Lines;
use crate::agent::Agent;
use crate::error::{ErrorCode, MigrationError};
use crate::migration::check;

/// Waits for the engine's check of the container; what stands in the way is an error.
pub(super) async fn open(
    agent: &Agent,
    order: &Order,
    opened: Answer<Opened>,
) -> Result<Opened, MigrationError> {
    let name = order.located.id.as_str();
    let patience = agent.config.migration.prepare_timeout();
    let opened = tokio::time::timeout(patience, opened).await;
    let late = || {
        MigrationError::new(
            ErrorCode::Timeout,
            format!("container {name} could not be checked within {patience:?}"),
        )
    };
    let gone = || MigrationError::new(ErrorCode::Internal, "the source's engine thread ended unexpectedly");
    let mut opened = opened.map_err(|_| late())?.map_err(|_| gone())??;
    opened.blockers.extend(check::configuration(&order.located)?);
    if opened.blockers.is_empty() { Ok(opened) } else { Err(MigrationError::blocked(name, opened.blockers)) }
}

/// Opens the first connection to the destination; says how long a question to it and the answer take.
pub(super) async fn connect(agent: &Agent, lines: &Arc<Lines>) -> Result<Duration, MigrationError> {
    let mut client = lines.connect().await?;
    let asked = Instant::now();
    let answer = check::hello(agent, &mut client).await?;
    let round_trip = asked.elapsed();
    info!(agent = answer.agent_name, "connected");
    lines.begin(client).await?;
    Ok(round_trip)
}
