//! What one end says: numbered, and kept until it is confirmed.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc};

use super::inbox::Unordered;
use super::lines::LineId;
use super::{MOST_UNCONFIRMED, Spoken};

#[derive(Debug)]
pub(super) struct Outbox<M> {
    /// What the driver says. A line holds it while it waits for the next message.
    queue: tokio::sync::Mutex<mpsc::Receiver<M>>,
    kept: Mutex<Kept<M>>,
    /// Something has come that a waiting line should look at.
    changed: Notify,
    limit_bytes: usize,
}

/// What is to be said, and what was said and is not confirmed.
#[derive(Debug)]
struct Kept<M> {
    messages: VecDeque<Message<M>>,
    /// Place of the first of them.
    first: u64,
    bytes: usize,
    /// How many of them are on no line.
    lost: usize,
    /// The driver has said everything.
    complete: bool,
    /// Place of the message that says so, once it was said.
    end: Option<u64>,
    /// This end does not hear confirmations any more.
    deaf: bool,
    last_word: Option<M>,
    ended: bool,
    /// Those that may be used.
    lines: BTreeSet<LineId>,
    /// What is to be confirmed to the other end, and what was.
    heard: u64,
    told: u64,
}

#[derive(Debug)]
struct Message<M> {
    message: M,
    /// The line that it went over.
    line: Option<LineId>,
}

/// What a line has to do now.
enum Next<M> {
    Say(M),
    /// There is room for a message of the driver.
    Ask,
    /// Everything that may be on its way is, or this line is not used any more.
    Wait,
    End,
}

impl<M: Spoken> Outbox<M> {
    pub(super) fn new(queue: mpsc::Receiver<M>, limit_bytes: usize) -> Self {
        let kept = Kept {
            messages: VecDeque::new(),
            first: 1,
            bytes: 0,
            lost: 0,
            complete: false,
            end: None,
            deaf: false,
            last_word: None,
            ended: false,
            lines: BTreeSet::new(),
            heard: 0,
            told: 0,
        };
        Self {
            queue: tokio::sync::Mutex::new(queue),
            kept: Mutex::new(kept),
            changed: Notify::new(),
            limit_bytes,
        }
    }

    /// The next message for this line; `None` when there is nothing more to say. May be dropped at any time.
    pub(super) async fn next(&self, line: LineId) -> Option<M> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let next = self.kept().next(line, self.limit_bytes);
            match next {
                Next::Say(message) => return Some(message),
                Next::End => return None,
                Next::Wait => changed.await,
                Next::Ask => tokio::select! {
                    biased;
                    () = changed => {}
                    said = self.said(line) => match said {
                        Some(Some(message)) => return Some(message),
                        // Another line has to say it.
                        Some(None) => self.changed.notify_waiters(),
                        None => self.change(|kept| kept.complete = true),
                    },
                },
            }
        }
    }

    /// What the driver says next; nothing for this line if it is not used any more by then. `None` after the last word.
    async fn said(&self, line: LineId) -> Option<Option<M>> {
        let mut queue = self.queue.lock().await;
        let message = queue.recv().await?;
        Some(self.kept().keep(message, line))
    }

    /// The other end has everything up to this place.
    pub(super) fn confirmed(&self, place: u64) -> Result<(), Unordered> {
        let mut kept = self.kept();
        let awaited = kept.is_full(self.limit_bytes) || kept.end.is_some();
        kept.confirmed(place)?;
        drop(kept);
        if awaited {
            self.changed.notify_waiters();
        }
        Ok(())
    }

    /// Tells the other end that everything up to this place has come.
    pub(super) fn confirm(&self, place: u64) {
        self.change(|kept| kept.heard = kept.heard.max(place));
    }

    /// The same, although it may have been told: that was lost.
    pub(super) fn confirm_again(&self, place: u64) {
        self.change(|kept| {
            kept.heard = kept.heard.max(place);
            kept.told = kept.told.min(place.saturating_sub(1));
        });
    }

    /// A line may be used.
    pub(super) fn enter(&self, line: LineId) {
        self.kept().lines.insert(line);
    }

    /// A line is gone: what it carried and is not confirmed goes over another one.
    pub(super) fn lost(&self, line: LineId) {
        self.change(|kept| kept.lost_with(line));
    }

    /// Nothing is confirmed any more: there is nothing to wait for after the last message.
    pub(super) fn hears_no_more(&self) {
        self.change(|kept| kept.deaf = true);
    }

    /// Ends what is said, by this.
    pub(super) fn last_word(&self, word: M) {
        self.change(|kept| kept.last_word = Some(word));
    }

    fn change(&self, change: impl FnOnce(&mut Kept<M>)) {
        change(&mut self.kept());
        self.changed.notify_waiters();
    }

    /// No step below leaves it half changed.
    fn kept(&self) -> MutexGuard<'_, Kept<M>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: Spoken> Kept<M> {
    fn next(&mut self, line: LineId, limit_bytes: usize) -> Next<M> {
        if !self.lines.contains(&line) {
            // Its end would be taken for the end of what there is to say.
            return Next::Wait;
        }
        if self.ended {
            return Next::End;
        }
        if let Some(word) = self.last_word.take() {
            self.ended = true;
            return Next::Say(word);
        }
        if self.told < self.heard {
            self.told = self.heard;
            return Next::Say(M::received(self.heard));
        }
        if self.lost > 0
            && let Some(again) = self.messages.iter_mut().find(|kept| kept.line.is_none())
        {
            again.line = Some(line);
            self.lost -= 1;
            return Next::Say(again.message.clone());
        }
        match self.end {
            Some(end) if self.deaf || end < self.first => Next::End,
            Some(_) => Next::Wait,
            None if self.complete => self.say_end(line),
            None if self.is_full(limit_bytes) => Next::Wait,
            None => Next::Ask,
        }
    }

    fn say_end(&mut self, line: LineId) -> Next<M> {
        self.end = Some(self.first.saturating_add(self.messages.len() as u64));
        self.keep(M::end(), line).map_or(Next::Wait, Next::Say)
    }

    /// One message is always sent, however long it is.
    fn is_full(&self, limit_bytes: usize) -> bool {
        self.messages.len() >= MOST_UNCONFIRMED || (self.bytes > 0 && self.bytes >= limit_bytes)
    }

    /// Gives a message its place; it is for this line, if that is used.
    fn keep(&mut self, mut message: M, line: LineId) -> Option<M> {
        message.set_place(self.first.saturating_add(self.messages.len() as u64));
        self.bytes = self.bytes.saturating_add(message.weight());
        let line = Some(line).filter(|line| self.lines.contains(line));
        self.lost += usize::from(line.is_none());
        self.messages.push_back(Message { message: message.clone(), line });
        line.map(|_| message)
    }

    fn confirmed(&mut self, place: u64) -> Result<(), Unordered> {
        if place >= self.first.saturating_add(self.messages.len() as u64) {
            return Err(Unordered);
        }
        while self.first <= place {
            let Some(done) = self.messages.pop_front() else { return Err(Unordered) };
            self.first += 1;
            self.bytes = self.bytes.saturating_sub(done.message.weight());
            self.lost -= usize::from(done.line.is_none());
        }
        Ok(())
    }

    fn lost_with(&mut self, line: LineId) {
        if !self.lines.remove(&line) {
            return;
        }
        for kept in self.messages.iter_mut().filter(|kept| kept.line == Some(line)) {
            kept.line = None;
            self.lost += 1;
        }
        // A confirmation may have been lost as well.
        self.told = 0;
    }
}
