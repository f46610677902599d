//! Migrations.

mod check;
mod wire;

use std::sync::Arc;

pub use check::{Checked, check};
use pclive_proto::control::StartMigrationRequest;
use pclive_proto::peer::{DestinationMessage, SourceMessage};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::agent::Agent;
use crate::error::{ErrorCode, MigrationError};
use crate::registry::Entry;

/// Starts a migration.
pub async fn start(agent: &Arc<Agent>, request: StartMigrationRequest) -> Result<Arc<Entry>, MigrationError> {
    agent.locate_running(&request.container, &request.runtime).await?;
    Err(MigrationError::new(ErrorCode::Internal, "migrations are not built in yet"))
}

/// Receives a migration.
pub fn receive(
    _agent: &Arc<Agent>,
    _stream: Streaming<SourceMessage>,
) -> mpsc::Receiver<Result<DestinationMessage, Status>> {
    let (answers, receiver) = mpsc::channel(1);
    let _ =
        answers.try_send(Err(
            MigrationError::new(ErrorCode::Internal, "migrations are not built in yet").into()
        ));
    receiver
}
