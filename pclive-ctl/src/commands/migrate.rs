//! `migrate`: starts a migration and follows it.

use std::time::Duration;

use pclive_proto::control::Role;
use serde::Serialize;

use crate::args::Migrate;
use crate::client::Client;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::follow::{Follower, OnInterrupt, Subject};
use crate::interrupt::Interrupts;
use crate::output::Output;
use crate::render::screen::screen;

/// `--detach`: all that there is to say.
#[derive(Serialize)]
struct Detached<'a> {
    migration_id: &'a str,
}

/// Starts a migration; follows it to its end, or leaves at once.
pub(super) async fn run(
    mut client: Client,
    args: &Migrate,
    patience: Duration,
    output: &mut Output,
) -> Result<Exit, Failure> {
    // From before the start on: a Ctrl-C in between must not leave a migration that nobody knows of.
    let mut interrupts = Interrupts::listen()?;
    let id = client.start(args.request()).await?;
    if args.detach {
        output.result(&Detached { migration_id: &id }, || id.clone())?;
        return Ok(Exit::Ok);
    }
    let (container, peer) = (args.container.clone(), args.to.clone());
    let subject = Subject { id, container, peer, role: Role::Source };
    let mut screen = screen(output);
    let follower =
        Follower::new(client, &subject, &mut *screen, &mut interrupts, OnInterrupt::Cancel, patience);
    Ok(follower.run().await?.exit())
}
