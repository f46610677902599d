//! Where the engine's rounds go: messages into the stream to the destination, with back-pressure.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pclive_engine::capture::{Sink, SinkError};
use pclive_engine::model::{Batch, Layout, PAGE_SIZE};
use pclive_engine::tail::Later;
use pclive_proto::peer::source_message::Message;
use pclive_proto::peer::{self, DocumentPart, RoundBegin, SourceMessage};
use prost::Message as _;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::pace::{Pace, spread};
use crate::link::Pacing;
use crate::migration::compression::Packer;
use crate::migration::{document, wire};

/// A list of pages as messages.
pub(super) fn later_messages(later: &Later) -> impl Iterator<Item = peer::Later> {
    later.runs.chunks(wire::RUNS_PER_MESSAGE).map(|part| {
        let runs = part.iter().flat_map(|(start, end)| [*start, (end - start) / PAGE_SIZE]).collect();
        peer::Later { process: later.vpid.0, runs }
    })
}

/// The engine thread's end of the stream. Sending blocks while the stream is full.
#[derive(Debug, Clone)]
pub(super) struct Outlet {
    sender: mpsc::Sender<SourceMessage>,
    /// Ends a send that waits: the destination may stall for good.
    abort: CancellationToken,
    /// Bytes handed to the stream so far.
    sent: Arc<AtomicU64>,
    /// Used by the engine thread alone.
    packer: Arc<Mutex<Packer>>,
    /// Of the connections.
    pacing: Pacing,
    runtime: Handle,
}

impl Outlet {
    /// To be made on a thread of the asynchronous runtime, to be used on another.
    pub(super) fn new(
        sender: mpsc::Sender<SourceMessage>,
        abort: CancellationToken,
        packer: Packer,
        pacing: Pacing,
    ) -> Self {
        let packer = Arc::new(Mutex::new(packer));
        Self { sender, abort, sent: Arc::default(), packer, pacing, runtime: Handle::current() }
    }

    /// Counter of the bytes handed to the stream.
    pub(super) fn counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.sent)
    }

    /// Hands one message to the stream.
    pub(super) fn send(&self, message: SourceMessage) -> Result<u64, SinkError> {
        let bytes = message.encoded_len() as u64;
        if let Err(full) = self.sender.try_send(message) {
            self.send_slowly(full.into_inner())?;
        }
        self.sent.fetch_add(bytes, Ordering::Relaxed);
        Ok(bytes)
    }

    /// Hands over pages, packed as it is fastest: bytes on the wire.
    fn send_pages(&self, batch: Batch, pace: Option<&mut Pace>) -> Result<u64, SinkError> {
        let mut packer = self.packer.lock().unwrap_or_else(PoisonError::into_inner);
        let message = wire::page_batch(batch, |contents| packer.pack(contents));
        let began = Instant::now();
        if let Some(pace) = pace {
            let wait = pace.delay(message.encoded_len() as u64, began);
            if !wait.is_zero() && !self.wait(wait) {
                return Err(SinkError { reason: "the migration has ended".into() });
            }
        }
        let bytes = self.send(message)?;
        packer.sent(bytes, began.elapsed());
        Ok(bytes)
    }

    /// Whatever is sent from here on goes as fast as it can.
    pub(super) fn hurry(&self) {
        self.pacing.set(None);
    }

    /// Hands over what goes ahead of a document's end.
    pub(super) fn send_parts(&self, parts: Vec<DocumentPart>) -> Result<u64, SinkError> {
        let messages = parts.into_iter().map(|part| wire::source_message(Message::DocumentPart(part)));
        messages.map(|message| self.send(message)).sum()
    }

    /// A round begins: the time since the last one was not the link's.
    fn rest(&self) {
        self.packer.lock().unwrap_or_else(PoisonError::into_inner).rest();
    }

    /// Whether the stream takes a message now. One that has ended takes everything, to no effect.
    pub(super) fn has_room(&self) -> bool {
        self.sender.is_closed() || self.sender.capacity() > 0
    }

    /// Hands a message to the stream that may be lost: when there is no room, or no stream.
    pub(super) fn offer(&self, message: SourceMessage) {
        let _ = self.sender.try_send(message);
    }

    /// Waits, unless the migration ends. False: it has.
    fn wait(&self, time: Duration) -> bool {
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.abort.cancelled() => false,
                () = tokio::time::sleep(time) => true,
            }
        })
    }

    fn send_slowly(&self, message: SourceMessage) -> Result<(), SinkError> {
        let sent = self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.abort.cancelled() => false,
                sent = self.sender.send(message) => sent.is_ok(),
            }
        });
        if sent {
            Ok(())
        } else {
            Err(SinkError { reason: "the stream to the destination has ended".into() })
        }
    }
}

/// One round on its way.
#[derive(Debug)]
pub(super) struct RoundSink<'a> {
    outlet: &'a Outlet,
    round: u32,
    is_final: bool,
    /// The bandwidth limit; none while the container stands still.
    pace: Option<Pace>,
    /// Bytes on the wire so far.
    pub(super) bytes: u64,
    /// What compressing has kept off the wire, bytes.
    pub(super) saved: u64,
}

impl<'a> RoundSink<'a> {
    /// A round while the container runs.
    pub(super) fn new(outlet: &'a Outlet, round: u32, bandwidth: Option<u64>) -> Self {
        outlet.rest();
        outlet.pacing.set(bandwidth.map(spread));
        Self { outlet, round, is_final: false, pace: bandwidth.map(Pace::new), bytes: 0, saved: 0 }
    }

    /// The final dump.
    pub(super) fn last(outlet: &'a Outlet, round: u32) -> Self {
        outlet.rest();
        outlet.hurry();
        Self { outlet, round, is_final: true, pace: None, bytes: 0, saved: 0 }
    }
}

impl Sink for RoundSink<'_> {
    fn layout(&mut self, layout: &Layout) -> Result<(), SinkError> {
        let cut = document::encode(layout);
        let (parts, layout) = cut.map_err(|error| SinkError { reason: error.to_string() })?;
        self.bytes += self.outlet.send_parts(parts)?;
        let message = RoundBegin { round: self.round, r#final: self.is_final, layout };
        self.bytes += self.outlet.send(wire::source_message(Message::RoundBegin(message)))?;
        Ok(())
    }

    fn batch(&mut self, batch: Batch) -> Result<(), SinkError> {
        let contents = batch.payload.len() as u64;
        let bytes = self.outlet.send_pages(batch, self.pace.as_mut())?;
        self.bytes += bytes;
        self.saved += contents.saturating_sub(bytes);
        Ok(())
    }

    fn later(&mut self, later: Later) -> Result<(), SinkError> {
        for message in later_messages(&later) {
            self.bytes += self.outlet.send(wire::source_message(Message::Later(message)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn message() -> SourceMessage {
        wire::source_message(Message::Commit(pclive_proto::peer::Commit {}))
    }

    fn outlet(sender: mpsc::Sender<SourceMessage>, abort: CancellationToken) -> Outlet {
        Outlet::new(sender, abort, Packer::new(false).unwrap(), Pacing::default())
    }

    #[tokio::test]
    async fn a_full_stream_blocks_the_engine_until_there_is_room() {
        let (sender, mut receiver) = mpsc::channel(1);
        let outlet = outlet(sender, CancellationToken::new());
        let counter = outlet.counter();
        let engine = thread::spawn(move || (0..10).try_for_each(|_| outlet.send(message()).map(drop)));
        for _ in 0..10 {
            assert!(receiver.recv().await.is_some());
        }
        engine.join().unwrap().unwrap();
        assert_eq!(counter.load(Ordering::Relaxed), 10 * message().encoded_len() as u64);
    }

    #[tokio::test]
    async fn an_abort_frees_an_engine_that_waits_for_a_stalled_destination() {
        let (sender, _receiver) = mpsc::channel(1);
        let abort = CancellationToken::new();
        let outlet = outlet(sender, abort.clone());
        let engine = thread::spawn(move || (0..2).try_for_each(|_| outlet.send(message()).map(drop)));
        abort.cancel();
        assert!(tokio::task::spawn_blocking(move || engine.join().unwrap()).await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_stream_that_is_gone_ends_the_round() {
        let (sender, receiver) = mpsc::channel(1);
        drop(receiver);
        let outlet = outlet(sender, CancellationToken::new());
        let engine = thread::spawn(move || outlet.send(message()));
        let error = tokio::task::spawn_blocking(move || engine.join().unwrap()).await.unwrap().unwrap_err();
        assert!(error.to_string().contains("ended"));
    }
}
