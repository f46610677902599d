//! The connections that a migration's conversation comes over: each begins it, or joins it.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use pclive_proto::PROTOCOL_VERSION;
use pclive_proto::control::{Phase, Role};
use pclive_proto::peer::destination_message::Message as Answered;
use pclive_proto::peer::source_message::Message;
use pclive_proto::peer::{DestinationMessage, Failure, Join, SourceMessage};
use tokio::sync::oneshot;
use tonic::{Status, Streaming};

use super::{answer, out_of_turn, run};
use crate::agent::Agent;
use crate::conversation::{self, LineEnd, Receiving, Said};
use crate::error::{ErrorCode, MigrationError, chain};
use crate::migration::{version_matches, wire};
use crate::tls::Caller;

/// Takes a connection of a migration from another agent; what is answered on it comes out of the stream.
pub(crate) fn receive(
    agent: &Arc<Agent>,
    caller: Caller,
    incoming: Streaming<SourceMessage>,
) -> Said<Result<DestinationMessage, Status>> {
    let (found, words) = oneshot::channel();
    let agent = Arc::clone(agent);
    tokio::spawn(async move {
        if let Err(error) = attend(&agent, caller, incoming, found).await {
            tracing::warn!(code = error.code.as_str(), "refused a connection of a migration: {error}");
        }
    });
    // Nobody knows before the first message has come what there is to say.
    let words = stream::once(words).flat_map(|words| words.unwrap_or_else(|_| Box::pin(stream::empty())));
    Box::pin(words.map(Ok))
}

/// Hears a connection, to its end.
async fn attend(
    agent: &Arc<Agent>,
    caller: Caller,
    mut incoming: Streaming<SourceMessage>,
    found: oneshot::Sender<Said<DestinationMessage>>,
) -> Result<(), MigrationError> {
    let patience = agent.config.migration.connect_timeout();
    let first = tokio::time::timeout(patience, incoming.message()).await;
    let silent = |_| MigrationError::new(ErrorCode::Timeout, "the source did not say what it wants");
    let first = first.map_err(silent).and_then(|first| first.map_err(|status| wire::status_error(&status)));
    let first = first.and_then(|first| first.ok_or_else(wire::link_ended));
    let place = first.and_then(|first| Ok((place(agent, caller, &first)?, first)));
    let ((carrier, slot, heard), first) = match place {
        Ok(place) => place,
        Err(error) => {
            let failure = Failure::from(&error.clone().at(Role::Destination, Phase::Negotiating));
            let failure = answer(Answered::Failure(failure));
            // A source that is gone needs no answer.
            let _ = found.send(Box::pin(stream::once(std::future::ready(failure))));
            return Err(error);
        }
    };
    let line = carrier.line(slot);
    if found.send(Box::pin(carrier.words(line.id()))).is_err() {
        return Ok(());
    }
    let first = stream::iter(heard.then_some(Ok(first)));
    if let LineEnd::Broken(status) = carrier.listen(line, first.chain(incoming)).await {
        tracing::warn!(slot, "a connection of a migration broke: {}", chain(&status));
    }
    Ok(())
}

/// The conversation that a connection begins or joins, its slot, and whether the first message is a part of it.
fn place(
    agent: &Arc<Agent>,
    caller: Caller,
    first: &SourceMessage,
) -> Result<(Arc<Receiving>, u32, bool), MigrationError> {
    match &first.message {
        Some(Message::Join(join)) => {
            let Join { protocol_version, slot, .. } = *join;
            version_matches(PROTOCOL_VERSION, protocol_version, "the source")?;
            Ok((agent.conversations.join(&caller, join)?, slot, false))
        }
        Some(Message::Prepare(_)) => {
            let (mouth, ears) = conversation::begin(agent.config.migration.conversation_limits());
            let carrier = Arc::clone(ears.carrier());
            tokio::spawn(run(Arc::clone(agent), caller, ears, mouth));
            Ok((carrier, 0, true))
        }
        Some(Message::Failure(_)) => {
            Err(MigrationError::new(ErrorCode::Cancelled, "the source gave up before it had begun"))
        }
        Some(other) => Err(out_of_turn(other)),
        None => Err(wire::bad("an empty message")),
    }
}
