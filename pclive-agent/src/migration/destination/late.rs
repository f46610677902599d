//! What comes after the commit: more frames that arrived for the container at the source, and the end of the stream.
//!
//! The copy runs by now. A frame that makes no sense is dropped, as a network would: nothing that comes here can
//! fail the migration.

use std::time::Duration;

use super::Incoming;
use crate::network::{Arrival, Injector};
use pclive_proto::peer::source_message::Message;

/// How long a source that has committed may take to end the stream.
const FAREWELL: Duration = Duration::from_secs(5);

/// Gives the container its frames, and lets the source end the stream in its own time, so that it sees `Running`
/// before the end.
pub(super) async fn take(mut incoming: Incoming, mut injector: Option<Injector>) {
    let ended = async {
        while let Ok(Some(message)) = incoming.message(FAREWELL).await {
            if let (Some(Message::Frames(frames)), Some(injector)) = (message.message, &mut injector) {
                // A message has few frames, and sending them does not wait.
                frames.frames.into_iter().map(Arrival::decode).for_each(|arrival| injector.inject(&arrival));
            }
        }
    };
    if tokio::time::timeout(FAREWELL, ended).await.is_err() {
        tracing::debug!("the source keeps the stream open");
    }
    let tally = injector.map(|injector| injector.tally()).unwrap_or_default();
    tracing::info!(injected = tally.injected, dropped = tally.dropped, "frames that arrived during the stop");
}
