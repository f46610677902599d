//! `plan`: how a migration would go.

use crate::args::Plan;
use crate::client::Client;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;
use crate::render::{json, plan};

/// Watches the container and shows what each strategy would cost.
pub(super) async fn run(mut client: Client, args: &Plan, output: &mut Output) -> Result<Exit, Failure> {
    let found = client.plan(args.request(), args.watch).await?;
    let (container, to) = (args.container.as_str(), args.to.as_deref());
    output.result(&json::Plan::new(container, to, &found), || plan::plan(container, to, &found))?;
    Ok(Exit::Ok)
}
