//! `host`: the agent and its surroundings.

use crate::client::Client;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;
use crate::render::{host, json};

/// Shows the host.
pub(super) async fn run(mut client: Client, output: &mut Output) -> Result<Exit, Failure> {
    let found = client.host().await?;
    output.result(&json::Host::from(&found), || host::host(&found))?;
    Ok(Exit::Ok)
}
