//! What the other end says: put in order, each message once, until the driver takes it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::{MOST_UNCONFIRMED, Spoken};

/// Messages are confirmed when the driver has taken so many, or so many bytes.
const CONFIRM_MESSAGES: u64 = 16;
const CONFIRM_BYTES: usize = 1 << 20;
/// Most bytes that may wait: more than an honest end sends unconfirmed.
pub(super) const MOST_WAITING: usize = 320 << 20;

/// A message so far ahead of its turn, or confirmed before it was said, that the other end cannot mean it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unordered;

#[derive(Debug)]
pub(super) struct Inbox<M> {
    arrived: Mutex<Arrived<M>>,
    /// The one driver has something to look at.
    changed: Notify,
}

#[derive(Debug)]
struct Arrived<M> {
    /// The place whose turn it is.
    next: u64,
    waiting: BTreeMap<u64, M>,
    waiting_bytes: usize,
    /// Outside of the order; the first such word is the last: what waits for its turn is of no use any more.
    urgent: Option<M>,
    /// The other end has said its last message; it may not be its turn yet.
    ended: bool,
    /// It was its turn, or an urgent word was the last.
    complete: bool,
    /// What was taken and is not confirmed.
    unconfirmed: u64,
    unconfirmed_bytes: usize,
}

/// What there is for the driver.
pub(super) enum Next<M> {
    /// A message, and up to which place all should be confirmed now.
    Message(M, Option<u64>),
    Nothing,
    /// Everything was heard; the same.
    End(Option<u64>),
}

impl<M: Spoken> Inbox<M> {
    pub(super) fn new() -> Self {
        let arrived = Arrived {
            next: 1,
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            urgent: None,
            ended: false,
            complete: false,
            unconfirmed: 0,
            unconfirmed_bytes: 0,
        };
        Self { arrived: Mutex::new(arrived), changed: Notify::new() }
    }

    /// Takes a message of a line. If it came before, up to which place all should be confirmed again: the other end
    /// does not know that.
    pub(super) fn put(&self, message: M) -> Result<Option<u64>, Unordered> {
        let again = self.arrived().put(message)?;
        if again.is_none() {
            self.changed.notify_one();
        }
        Ok(again)
    }

    /// What is in turn.
    pub(super) fn next(&self) -> Next<M> {
        self.arrived().next()
    }

    /// Waits until there may be something; for one driver.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Whether the other end has said its last message.
    pub(super) fn has_ended(&self) -> bool {
        self.arrived().ended
    }

    /// No step below leaves it half changed.
    fn arrived(&self) -> MutexGuard<'_, Arrived<M>> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: Spoken> Arrived<M> {
    fn put(&mut self, message: M) -> Result<Option<u64>, Unordered> {
        let (place, weight) = (message.place(), message.weight());
        if place == 0 {
            self.ended = true;
            self.urgent.get_or_insert(message);
            return Ok(None);
        }
        if place < self.next || self.waiting.contains_key(&place) {
            return Ok(Some(self.next - 1));
        }
        let bytes = self.waiting_bytes.saturating_add(weight);
        if place - self.next >= MOST_UNCONFIRMED as u64 || bytes > MOST_WAITING {
            return Err(Unordered);
        }
        self.waiting_bytes = bytes;
        self.ended |= message.is_end();
        self.waiting.insert(place, message);
        Ok(None)
    }

    fn next(&mut self) -> Next<M> {
        if self.complete {
            return Next::End(None);
        }
        if let Some(urgent) = self.urgent.take() {
            self.complete = true;
            return Next::Message(urgent, None);
        }
        let Some(message) = self.waiting.remove(&self.next) else { return Next::Nothing };
        let weight = message.weight();
        self.next += 1;
        self.waiting_bytes = self.waiting_bytes.saturating_sub(weight);
        self.unconfirmed += 1;
        self.unconfirmed_bytes = self.unconfirmed_bytes.saturating_add(weight);
        if message.is_end() {
            self.complete = true;
            return Next::End(Some(self.next - 1));
        }
        let confirm = self.unconfirmed >= CONFIRM_MESSAGES || self.unconfirmed_bytes >= CONFIRM_BYTES;
        if confirm {
            (self.unconfirmed, self.unconfirmed_bytes) = (0, 0);
        }
        Next::Message(message, confirm.then_some(self.next - 1))
    }
}
