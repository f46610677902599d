//! A conversation between two agents that outlives the connections it goes over.
//!
//! Messages are numbered, and kept until the other end says that it has them. So they may go over several connections
//! ("lines") at once, and those that were on a line when it broke go again over another one; who hears them puts them
//! in order and drops what comes twice. Neither driver sees anything of this: it hears every message once, in order,
//! or learns that no line has lived for as long as it wants to wait.
//!
//! ```text
//! driver > queue > [outbox] > line 1, line 2 ... > [inbox] > driver
//!                     '-----< received(n) <-----------'
//! ```
//!
//! A message is confirmed when the driver has taken it, so that a slow driver slows its other end down, and no line ever
//! waits: a confirmation is never stuck behind what nobody takes. Memory: what is kept is bounded by [`Limits`], and what
//! may wait for a driver by what an honest end sends unconfirmed.

mod inbox;
mod lines;
mod messages;
mod outbox;
mod register;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::Stream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use self::inbox::{Inbox, Next, Unordered};
use self::lines::Lines;
pub(crate) use self::lines::{Line, LineId};
use self::outbox::Outbox;
pub(crate) use self::register::{Receiving, Register};

/// A message that has a place in a conversation.
pub(crate) trait Spoken: Clone + Send + std::fmt::Debug + 'static {
    /// Its place, counted from 1; 0 is outside of the order.
    fn place(&self) -> u64;
    /// Gives it its place.
    fn set_place(&mut self, place: u64);
    /// About how much memory it holds, bytes.
    fn weight(&self) -> usize;
    /// A message that says: everything up to this place has come.
    fn received(place: u64) -> Self;
    /// What such a message says.
    fn as_received(&self) -> Option<u64>;
    /// A message that says: there is nothing more.
    fn end() -> Self;
    /// Whether this is one.
    fn is_end(&self) -> bool;
}

/// What one end keeps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Messages that the driver has handed over and no line has taken yet.
    pub(crate) queued: usize,
    /// Bytes that were sent and not confirmed. One message is always sent.
    pub(crate) unconfirmed_bytes: usize,
}

/// Slots of lines: most lines at once.
pub(crate) const SLOTS: u32 = 32;
/// Most messages that are sent and not confirmed: what an end that hears must have room for.
const MOST_UNCONFIRMED: usize = 1024;

/// What all lines of one end share. `Out` is what this end says, `In` what it hears.
#[derive(Debug)]
pub(crate) struct Carrier<Out, In> {
    outbox: Outbox<Out>,
    inbox: Inbox<In>,
    lines: Lines,
    /// The newest line of each slot.
    slots: Mutex<BTreeMap<u32, (LineId, CancellationToken)>>,
    /// The driver does not hear any more.
    closed: CancellationToken,
}

/// Where a driver says something: it waits while the queue is full, and fails when the conversation has ended.
pub(crate) type Mouth<Out> = mpsc::Sender<Out>;

/// Where a driver hears. The lines end with it.
#[derive(Debug)]
pub(crate) struct Ears<Out: Spoken, In: Spoken> {
    carrier: Arc<Carrier<Out, In>>,
}

/// Begins a conversation that has no line yet.
pub(crate) fn begin<Out: Spoken, In: Spoken>(limits: Limits) -> (Mouth<Out>, Ears<Out, In>) {
    let (mouth, queue) = mpsc::channel(limits.queued.max(1));
    let carrier = Arc::new(Carrier {
        outbox: Outbox::new(queue, limits.unconfirmed_bytes),
        inbox: Inbox::new(),
        lines: Lines::default(),
        slots: Mutex::default(),
        closed: CancellationToken::new(),
    });
    (mouth, Ears { carrier })
}

impl<Out: Spoken, In: Spoken> Ears<Out, In> {
    /// The other end's next message; `None` once it has ended the conversation. `Err`: no line has lived for so long,
    /// and why. May be dropped at any time.
    pub(crate) async fn message(&mut self, patience: Duration) -> Result<Option<In>, Status> {
        let Carrier { inbox, outbox, lines, .. } = &*self.carrier;
        loop {
            match inbox.next() {
                Next::Message(message, confirm) => {
                    confirm.into_iter().for_each(|place| outbox.confirm(place));
                    return Ok(Some(message));
                }
                Next::End(confirm) => {
                    confirm.into_iter().for_each(|place| outbox.confirm(place));
                    return Ok(None);
                }
                Next::Nothing => tokio::select! {
                    biased;
                    () = inbox.changed() => {}
                    why = lines.lost(patience) => return Err(why),
                },
            }
        }
    }

    /// Ends with the reason once no line has lived for so long.
    pub(crate) async fn lost(&self, patience: Duration) -> Status {
        self.carrier.lines.lost(patience).await
    }

    /// Says something that overtakes whatever waits; nothing else is said after it.
    pub(crate) fn last_word(&self, word: Out) {
        self.carrier.outbox.last_word(word);
    }

    /// For new lines.
    pub(crate) fn carrier(&self) -> &Arc<Carrier<Out, In>> {
        &self.carrier
    }
}

impl<Out: Spoken, In: Spoken> Drop for Ears<Out, In> {
    fn drop(&mut self) {
        self.carrier.closed.cancel();
        self.carrier.outbox.hears_no_more();
    }
}

/// How a line ended.
#[derive(Debug)]
pub(crate) enum LineEnd {
    /// The conversation is over: the other end has ended it, or this one does not listen any more.
    Over,
    /// It broke.
    Broken(Status),
}

impl<Out: Spoken, In: Spoken> Carrier<Out, In> {
    /// A new line, in place of the one that had this slot: that one may not know yet that it is broken. It lives until
    /// the value is dropped.
    pub(crate) fn line(&self, slot: u32) -> Line {
        let line = self.lines.enter();
        self.outbox.enter(line.id());
        let newest = (line.id(), line.replaced.clone());
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((id, replaced)) = slots.insert(slot, newest) {
            replaced.cancel();
            self.outbox.lost(id);
        }
        line
    }

    /// What this end says on a line, until there is no more or the stream is dropped.
    pub(crate) fn words(self: &Arc<Self>, line: LineId) -> impl Stream<Item = Out> + Send + use<Out, In> {
        let words = Words { carrier: Arc::clone(self), line };
        let words = futures_util::stream::unfold(words, |words| async {
            let word = words.carrier.outbox.next(words.line).await?;
            Some((word, words))
        });
        futures_util::StreamExt::fuse(words)
    }

    /// Hears what the other end says on a line, to the line's end.
    pub(crate) async fn listen<S>(&self, mut line: Line, mut words: S) -> LineEnd
    where
        S: Stream<Item = Result<In, Status>> + Unpin + Send,
    {
        let heard = async {
            loop {
                match futures_util::StreamExt::next(&mut words).await {
                    Some(Ok(message)) => self.hear(message)?,
                    Some(Err(status)) => return Err(status),
                    None => return Ok(()),
                }
            }
        };
        let ended = tokio::select! {
            biased;
            () = self.closed.cancelled() => return LineEnd::Over,
            () = line.replaced.cancelled() => return LineEnd::Over,
            ended = heard => ended,
        };
        let status = match ended {
            Ok(()) if self.inbox.has_ended() => {
                line.leave();
                return LineEnd::Over;
            }
            Ok(()) => Status::unavailable("the connection ended"),
            Err(status) => status,
        };
        line.broke(&status);
        LineEnd::Broken(status)
    }

    /// Ends with the driver's interest in the conversation.
    pub(crate) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    fn hear(&self, message: In) -> Result<(), Status> {
        if let Some(place) = message.as_received() {
            return self.outbox.confirmed(place).map_err(|Unordered| unordered());
        }
        let again = self.inbox.put(message).map_err(|Unordered| unordered())?;
        again.into_iter().for_each(|place| self.outbox.confirm_again(place));
        Ok(())
    }
}

fn unordered() -> Status {
    Status::invalid_argument("a message far out of order")
}

/// What is said on one line.
struct Words<Out: Spoken, In: Spoken> {
    carrier: Arc<Carrier<Out, In>>,
    line: LineId,
}

impl<Out: Spoken, In: Spoken> Drop for Words<Out, In> {
    /// What was on the line may not have come.
    fn drop(&mut self) {
        self.carrier.outbox.lost(self.line);
    }
}

/// A stream of a type that can be named.
pub(crate) type Said<T> = Pin<Box<dyn Stream<Item = T> + Send>>;
