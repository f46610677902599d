//! `cancel`: asks the agent to give a migration up.

use crate::client::Client;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;
use crate::render::{json, name};

/// Asks; does not wait for the end.
pub(super) async fn run(mut client: Client, id: &str, output: &mut Output) -> Result<Exit, Failure> {
    let phase = client.cancel(id).await?;
    output.result(&json::Cancelling::new(id, phase), || {
        format!("cancelling (phase: {}); for the outcome: pclivectl watch {id}", name::phase(phase))
    })?;
    Ok(Exit::Ok)
}
