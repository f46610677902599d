//! `undo`: back to the original that is kept at the source.

use pclive_proto::control::UndoMigrationRequest;

use super::now_ms;
use crate::args::Undo;
use crate::client::Client;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;
use crate::render::{ending, json};

/// Says what going back would lose; with `--yes`, goes back.
pub(super) async fn run(mut client: Client, wish: &Undo, output: &mut Output) -> Result<Exit, Failure> {
    let migration = client.migration(&wish.id).await?;
    let request = UndoMigrationRequest { migration_id: wish.id.clone(), confirmed: wish.yes };
    let undone = client.undo(request).await?;
    output.result(&json::Undone::new(&wish.id, &undone), || ending::undone(&migration, &undone, now_ms()))?;
    Ok(Exit::Ok)
}
