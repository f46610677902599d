//! `status`: one migration, and its state as the exit code.

use pclive_proto::control::Phase;

use super::now_ms;
use crate::client::Client;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;
use crate::render::{json, migration};

/// Shows the migration.
pub(super) async fn run(mut client: Client, id: &str, output: &mut Output) -> Result<Exit, Failure> {
    let found = client.migration(id).await?;
    output.result(&json::Migration::from(&found), || migration::details(&found, now_ms()))?;
    Ok(exit(found.phase()))
}

/// A migration that goes on is no failure.
fn exit(phase: Phase) -> Exit {
    match phase {
        Phase::Failed => Exit::Failed,
        Phase::Unknown => Exit::Unknown,
        Phase::Unspecified
        | Phase::Queued
        | Phase::Negotiating
        | Phase::PreCopy
        | Phase::Frozen
        | Phase::Ready
        | Phase::Committed
        | Phase::Done => Exit::Ok,
    }
}
