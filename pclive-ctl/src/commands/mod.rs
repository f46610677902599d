//! The commands, one file each. A command asks the agent, prints, and says how the program ends.

mod cancel;
mod check;
mod completions;
mod containers;
mod host;
mod list;
mod migrate;
mod plan;
mod report;
mod resolve;
mod status;
mod undo;
mod watch;

use std::time::{SystemTime, UNIX_EPOCH};

use crate::args::{Args, Command};
use crate::certs;
use crate::client::Client;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;

/// Runs the command of the command line.
pub(crate) async fn run(args: Args, output: &mut Output) -> Result<Exit, Failure> {
    if let Command::Completions { shell } = args.command {
        return completions::run(shell, output);
    }
    if let Command::Certs(certs) = args.command {
        return certs::run(certs, output);
    }
    let client = Client::connect(&args.agent, &args.tls).await?;
    match args.command {
        Command::Migrate(migrate) => migrate::run(client, &migrate, args.patience, output).await,
        Command::List => list::run(client, output).await,
        Command::Status(id) => status::run(client, &id.id, output).await,
        Command::Report(report) => report::run(client, &report, output).await,
        Command::Watch(id) => watch::run(client, &id.id, args.patience, output).await,
        Command::Cancel(id) => cancel::run(client, &id.id, output).await,
        Command::Resolve(resolve) => resolve::run(client, &resolve, output).await,
        Command::Undo(undo) => undo::run(client, &undo, output).await,
        Command::Check(check) => check::run(client, check, output).await,
        Command::Plan(plan) => plan::run(client, &plan, output).await,
        Command::Containers => containers::run(client, output).await,
        Command::Host => host::run(client, output).await,
        Command::Completions { shell } => completions::run(shell, output),
        Command::Certs(certs) => certs::run(certs, output),
    }
}

/// Unix time in milliseconds.
fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
