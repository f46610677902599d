//! `containers`: the containers of the host.

use crate::client::Client;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;
use crate::render::{host, json};

/// Lists them.
pub(super) async fn run(mut client: Client, output: &mut Output) -> Result<Exit, Failure> {
    let found = client.containers().await?;
    output.result(&json::Containers::from(found.as_slice()), || host::containers(&found))?;
    Ok(Exit::Ok)
}
