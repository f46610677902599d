//! Digests of the copy's memory, told before `Ready` to a source that compares.

use std::time::Instant;

use pclive_proto::peer::Digests;
use pclive_proto::peer::destination_message::Message;

use super::Receiver;
use crate::error::MigrationError;
use crate::fault::{self, Point};
use crate::migration::report::ns;

/// Digests in one message: 1 MiB.
const AT_ONCE: usize = 1 << 16;

impl Receiver<'_> {
    /// Reads the copy's memory and tells its digests; how long that took, nanoseconds.
    pub(super) async fn tell_contents(&self) -> Result<u64, MigrationError> {
        let began = Instant::now();
        let contents = tokio::select! {
            contents = self.engine.contents() => contents?,
            why = self.entry.cancelled() => return Err(why),
        };
        fault::reached(Point::DestinationCompared);
        for part in contents.digests.chunks(AT_ONCE) {
            let digests: Vec<u8> = part.iter().flat_map(|digest| digest.to_le_bytes()).collect();
            self.say(Message::Digests(Digests { digests: digests.into() })).await?;
        }
        Ok(ns(began.elapsed()))
    }
}
