//! As many migrations arrive as may: the next waits before anything is created for it.

use std::time::Duration;

use super::{Incoming, out_of_turn, understood};
use crate::agent::Agent;
use crate::error::{ErrorCode, MigrationError};
use crate::registry::Entry;

/// Waits until it is this migration's turn, for less time than its source waits for an answer; ends with the source, and
/// with a user's wish.
pub(super) async fn wait(
    agent: &Agent,
    entry: &Entry,
    incoming: &mut Incoming,
) -> Result<(), MigrationError> {
    let patience = agent.config.migration.prepare_timeout() / 2;
    tokio::select! {
        biased;
        () = entry.turn() => Ok(()),
        why = entry.cancelled() => Err(why),
        message = incoming.message(Duration::ZERO) => Err(match understood(message) {
            Ok(message) => out_of_turn(&message),
            Err(error) => error,
        }),
        () = tokio::time::sleep(patience) => {
            let name = &agent.name;
            let message = format!("as many migrations as allowed arrive on {name}, for longer than {patience:?}");
            Err(MigrationError::new(ErrorCode::TooMany, message))
        }
    }
}
