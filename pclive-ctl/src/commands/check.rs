//! `check`: what stands in the way of migrating a container.

use pclive_proto::control::CheckContainerRequest;

use crate::args::Check;
use crate::client::Client;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;
use crate::render::{host, json};

/// Lists the blockers; any of them is a failure.
pub(super) async fn run(mut client: Client, args: Check, output: &mut Output) -> Result<Exit, Failure> {
    let request = CheckContainerRequest {
        container: args.container.clone(),
        runtime: args.runtime.unwrap_or_default(),
        destination: args.to.clone().unwrap_or_default(),
    };
    let found = client.check(request).await?;
    let (container, to) = (args.container.as_str(), args.to.as_deref());
    output.result(&json::Check::new(container, to, &found), || host::check(container, to, &found))?;
    Ok(if found.blockers.is_empty() { Exit::Ok } else { Exit::Failed })
}
