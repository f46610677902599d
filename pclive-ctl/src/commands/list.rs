//! `list`: all migrations that the agent knows.

use super::now_ms;
use crate::client::Client;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;
use crate::render::{json, migration};

/// Lists the migrations.
pub(super) async fn run(mut client: Client, output: &mut Output) -> Result<Exit, Failure> {
    let found = client.migrations().await?;
    output.result(&json::Migrations::from(found.as_slice()), || migration::list(&found, now_ms()))?;
    Ok(Exit::Ok)
}
