//! `resolve`: where a container belongs whose migration is in doubt.

use pclive_proto::control::Phase;

use crate::args::Resolve;
use crate::client::Client;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;
use crate::render::{json, text};

/// Decides, and says where the container is now.
pub(super) async fn run(mut client: Client, wish: &Resolve, output: &mut Output) -> Result<Exit, Failure> {
    let decided = client.resolve(wish.request()).await?;
    output.result(&json::Resolved::new(&wish.id, &decided), || {
        let place = match decided.phase() {
            Phase::Done => "removed here; it belongs to the destination",
            Phase::Failed => "it belongs to the source",
            Phase::Unspecified
            | Phase::Queued
            | Phase::Negotiating
            | Phase::PreCopy
            | Phase::Frozen
            | Phase::Ready
            | Phase::Committed
            | Phase::Unknown => "not decided",
        };
        match decided.peer.as_str() {
            "" => format!("{place}\n"),
            peer => format!("{place}\nthe destination said: {}\n", text::printable(peer)),
        }
    })?;
    Ok(Exit::Ok)
}
