//! Digests of the copy's memory, told before `Ready` to a source that compares.

use std::time::Instant;

use pclive_engine::memory::contents::Contents;
use pclive_proto::peer::Digests;
use pclive_proto::peer::destination_message::Message;
use pclive_proto::peer::source_message::Message as Received;
use tokio::sync::oneshot;

use super::{Receiver, out_of_turn};
use crate::error::MigrationError;
use crate::fault::{self, Point};
use crate::migration::report::ns;
use crate::network::Waiting;

/// Digests in one message: 1 MiB.
const AT_ONCE: usize = 1 << 16;

impl Receiver<'_> {
    /// Reads the copy's memory and tells its digests; how long that took, nanoseconds. Frames that come meanwhile wait.
    pub(super) async fn tell_contents(&mut self, waiting: &mut Waiting) -> Result<u64, MigrationError> {
        let began = Instant::now();
        let answer = self.engine.contents().await?;
        let contents = self.digested(answer, waiting).await?;
        fault::reached(Point::DestinationCompared);
        for part in contents.digests.chunks(AT_ONCE) {
            let digests: Vec<u8> = part.iter().flat_map(|digest| digest.to_le_bytes()).collect();
            self.say(Message::Digests(Digests { digests: digests.into() })).await?;
        }
        Ok(ns(began.elapsed()))
    }

    /// Waits for the digests while keeping an ear on the source, which may give up.
    async fn digested(
        &mut self,
        mut answer: oneshot::Receiver<Contents>,
        waiting: &mut Waiting,
    ) -> Result<Contents, MigrationError> {
        loop {
            let heard = tokio::select! {
                biased;
                contents = &mut answer => match contents {
                    Ok(contents) => return Ok(contents),
                    Err(_) => return Err(self.engine.why().await),
                },
                heard = self.next() => heard?,
            };
            match heard {
                Received::Frames(frames) => waiting.take(frames),
                other => return Err(out_of_turn(&other)),
            }
        }
    }
}
