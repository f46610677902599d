//! A source's conversation: one state, one stream, and waits that always end.
//!
//! Every wait notices four things: what it waits for, the destination's word, a user's wish to end, a deadline.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pclive_proto::control::{Progress, Role};
use pclive_proto::peer::destination_message::Message as Answered;
use pclive_proto::peer::source_message::Message;
use pclive_proto::peer::{self, DestinationMessage, Failure, SourceMessage};
use tokio::sync::mpsc;
use tonic::Status;

use super::engine::Answer;
use super::state::{Event, State};
use crate::conversation::{Ears, Mouth};
use crate::error::{ErrorCode, MigrationError, printable};
use crate::migration::wire;
use crate::registry::Entry;

/// How often progress is told, and looked at.
const TICK: Duration = Duration::from_millis(250);
/// Longest time that a container stands still without any connection to its destination.
const STOPPED_RECONNECT: Duration = Duration::from_secs(2);
/// How long a destination may take to clean up, so that a second attempt finds nothing in its way.
const FAREWELL: Duration = Duration::from_secs(5);
/// Answers that may come before the engine's own word: digests of much memory, and Ready.
const MOST_EARLY: usize = 16;

/// The source's end of a migration.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) entry: Arc<Entry>,
    state: State,
    mouth: Mouth<SourceMessage>,
    ears: Ears<SourceMessage, DestinationMessage>,
    /// How long the container runs on without any connection.
    reconnect: Duration,
    /// Answers that came before the engine's own word: the destination may be done with a round before the
    /// engine thread has told that it has sent it.
    early: VecDeque<Answered>,
    /// How many of the destination's messages it has waited for.
    round_trips: u32,
}

/// What a round is expected to be, for progress.
#[derive(Debug, Clone)]
pub(super) struct Expectation {
    pub(super) round: u32,
    pub(super) total_bytes: u64,
    /// Bytes handed to the stream so far, all rounds.
    pub(super) counter: Arc<AtomicU64>,
    /// Longest time without any progress.
    pub(super) patience: Duration,
}

impl Session {
    pub(super) fn new(
        entry: Arc<Entry>,
        mouth: Mouth<SourceMessage>,
        ears: Ears<SourceMessage, DestinationMessage>,
        reconnect: Duration,
    ) -> Self {
        Self { entry, state: State::Idle, mouth, ears, reconnect, early: VecDeque::new(), round_trips: 0 }
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    /// How many of the destination's messages it has waited for so far.
    pub(super) fn round_trips(&self) -> u32 {
        self.round_trips
    }

    /// Moves on, and tells users when that is another phase.
    pub(super) fn advance(&mut self, event: Event) -> Result<(), MigrationError> {
        let next = self.state.next(event);
        let next = next.map_err(|error| MigrationError::caused(ErrorCode::BadMessage, &error))?;
        if next.phase() != self.state.phase() {
            self.entry.phase(next.phase());
        }
        self.state = next;
        Ok(())
    }

    /// Hands one message to the stream.
    pub(super) async fn send(&mut self, message: Message, patience: Duration) -> Result<(), MigrationError> {
        let sent = tokio::select! {
            biased;
            sent = self.mouth.send_timeout(wire::source_message(message), patience) => sent,
            why = self.ears.lost(self.link_patience()) => return Err(wire::status_error(&why)),
        };
        match sent {
            Ok(()) => Ok(()),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(wire::link_ended()),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => Err(late("take a message", patience)),
        }
    }

    /// The destination's next message. Cancelling is noticed while the state allows it.
    pub(super) async fn answer(
        &mut self,
        what: &str,
        patience: Duration,
    ) -> Result<Answered, MigrationError> {
        if let Some(early) = self.early.pop_front() {
            return Ok(early);
        }
        self.round_trips = self.round_trips.saturating_add(1);
        let committed = self.state == State::Committed;
        let link = self.link_patience();
        tokio::select! {
            biased;
            message = self.ears.message(link) => understood(message),
            why = self.entry.cancelled(), if !committed => Err(why),
            () = tokio::time::sleep(patience) => Err(late(what, patience)),
        }
    }

    /// Lets time pass; a user's wish to end is noticed.
    pub(super) async fn pause(&self, time: Duration) -> Result<(), MigrationError> {
        tokio::select! {
            biased;
            why = self.entry.cancelled() => Err(why),
            () = tokio::time::sleep(time) => Ok(()),
        }
    }

    /// Waits for the engine while keeping an ear on the destination.
    pub(super) async fn step<T>(
        &mut self,
        answer: Answer<T>,
        patience: Duration,
    ) -> Result<T, MigrationError> {
        let late = async {
            tokio::time::sleep(patience).await;
            late_here(patience)
        };
        self.attend(done(answer), late).await
    }

    /// Waits for work that has a deadline of its own while keeping an ear on the destination, which gives it up.
    pub(super) async fn beside<T>(
        &mut self,
        work: impl Future<Output = Result<T, MigrationError>>,
    ) -> Result<T, MigrationError> {
        self.attend(work, std::future::pending()).await
    }

    /// Waits for a round of the engine, telling progress; it may take as long as bytes move.
    pub(super) async fn moving<T>(
        &mut self,
        answer: Answer<T>,
        expected: &Expectation,
    ) -> Result<T, MigrationError> {
        let entry = Arc::clone(&self.entry);
        self.attend(done(answer), progress(&entry, expected)).await
    }

    /// Waits for work here until `stalled` says that it takes too long.
    async fn attend<T>(
        &mut self,
        work: impl Future<Output = Result<T, MigrationError>>,
        stalled: impl Future<Output = MigrationError>,
    ) -> Result<T, MigrationError> {
        tokio::pin!(work, stalled);
        let patience = self.link_patience();
        loop {
            tokio::select! {
                biased;
                outcome = &mut work => return outcome,
                message = self.ears.message(patience) => match understood(message) {
                    Ok(message) if self.early.len() < MOST_EARLY => self.early.push_back(message),
                    other => return Err(unexpected(other)),
                },
                why = self.entry.cancelled() => return Err(why),
                stalled = &mut stalled => return Err(stalled),
            }
        }
    }

    /// How long a migration waits for a new connection when it has none. The container must not stand still for
    /// long, and a destination that has not accepted it yet knows of no further connections.
    fn link_patience(&self) -> Duration {
        match self.state {
            State::Idle => Duration::ZERO,
            State::Negotiated | State::PreCopy(_) => self.reconnect,
            State::Frozen
            | State::FinalSent
            | State::Offered
            | State::Committed
            | State::Done
            | State::Failed
            | State::Unknown => self.reconnect.min(STOPPED_RECONNECT),
        }
    }

    /// Tells the destination that the migration is over, ahead of everything that still waits.
    pub(super) fn give_up(&mut self, error: &MigrationError) {
        let state = self.state;
        if let Ok(next) = state.next(Event::Failure) {
            self.state = next;
        }
        let failure = Failure::from(&error.clone().at(Role::Source, state.phase()));
        self.ears.last_word(wire::source_message(Message::Failure(failure)));
    }

    /// Waits until the destination is done with the migration as well: it ends the stream. What it has to say until
    /// then is told.
    pub(super) async fn farewell(mut self) {
        drop(self.mouth);
        let ended = async {
            while let Ok(Some(message)) = self.ears.message(Duration::ZERO).await {
                if let Some(Answered::Warning(peer::Warning { message })) = message.message {
                    self.entry.warn(format!("at the destination: {}", printable(message)));
                }
            }
        };
        let _ = tokio::time::timeout(FAREWELL, ended).await;
    }
}

/// Reads a message of the destination; its failure is an error here.
fn understood(message: Result<Option<DestinationMessage>, Status>) -> Result<Answered, MigrationError> {
    match message {
        Ok(Some(DestinationMessage { message: Some(Answered::Failure(failure)), .. })) => {
            Err(MigrationError::from(failure).at(Role::Destination, Default::default()))
        }
        Ok(Some(DestinationMessage { message: Some(message), .. })) => Ok(message),
        Ok(Some(DestinationMessage { message: None, .. })) => Err(wire::bad("an empty message")),
        Ok(None) => Err(wire::link_ended()),
        Err(status) => Err(wire::status_error(&status)),
    }
}

fn unexpected(message: Result<Answered, MigrationError>) -> MigrationError {
    match message {
        Ok(message) => wire::bad(format!("{} out of turn", name_of(&message))),
        Err(error) => error,
    }
}

/// A message's name, for errors.
pub(super) fn name_of(message: &Answered) -> &'static str {
    match message {
        Answered::Accepted(_) => "Accepted",
        Answered::RoundApplied(_) => "RoundApplied",
        Answered::Ready(_) => "Ready",
        Answered::Running(_) => "Running",
        Answered::Failure(_) => "Failure",
        Answered::Settled(_) => "Settled",
        Answered::Received(_) => "Received",
        Answered::End(_) => "End",
        Answered::Warning(_) => "Warning",
        Answered::Digests(_) => "Digests",
    }
}

/// The engine's answer.
async fn done<T>(answer: Answer<T>) -> Result<T, MigrationError> {
    answer.await.unwrap_or_else(|_| Err(thread_gone()))
}

fn late(what: &str, patience: Duration) -> MigrationError {
    let message = format!("the destination did not {what} within {patience:?}");
    MigrationError::new(ErrorCode::Timeout, message)
}

fn late_here(patience: Duration) -> MigrationError {
    let message = format!("the source's engine did not end its step within {patience:?}");
    MigrationError::new(ErrorCode::Timeout, message)
}

pub(super) fn thread_gone() -> MigrationError {
    MigrationError::new(ErrorCode::Internal, "the source's engine thread ended unexpectedly")
}

/// Tells progress until nothing has moved for too long.
async fn progress(entry: &Entry, expected: &Expectation) -> MigrationError {
    let first = expected.counter.load(Ordering::Relaxed);
    let began = Instant::now();
    let (mut last, mut moved) = (first, began);
    let mut ticks = tokio::time::interval(TICK);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let now = expected.counter.load(Ordering::Relaxed);
        if now != last {
            (last, moved) = (now, Instant::now());
        } else if moved.elapsed() >= expected.patience {
            return late("take more pages", expected.patience);
        }
        let bytes = now - first;
        let rate = u128::from(bytes) * 1_000_000 / began.elapsed().as_micros().max(1);
        entry.progress(Progress {
            round: expected.round,
            bytes,
            total_bytes: expected.total_bytes.max(bytes),
            bytes_per_second: u64::try_from(rate).unwrap_or(u64::MAX),
        });
    }
}
