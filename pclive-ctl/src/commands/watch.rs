//! `watch`: follows a migration that somebody started.

use std::time::Duration;

use crate::client::Client;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::follow::{Follower, OnInterrupt, Subject};
use crate::interrupt::Interrupts;
use crate::output::Output;
use crate::render::screen::screen;

/// Follows the migration to its end; Ctrl-C leaves it alone.
pub(super) async fn run(
    mut client: Client,
    id: &str,
    patience: Duration,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let mut interrupts = Interrupts::listen()?;
    let subject = Subject::from(&client.migration(id).await?);
    let mut screen = screen(output);
    let follower =
        Follower::new(client, &subject, &mut *screen, &mut interrupts, OnInterrupt::Leave, patience);
    Ok(follower.run().await?.exit())
}
