//! Following a migration to its end.
//!
//! The event stream tells the story; the agent's state of the migration tells the truth. Whenever the stream ends
//! without an outcome (the agent went away, the connection broke), the state is asked for: an outcome is taken
//! over, a running migration is watched again, events that were shown are not shown twice. Only when nobody
//! answers within the patience is the outcome unknown.

mod outcome;
mod replay;

use std::time::Duration;

use pclive_proto::control::{Error, Event, Migration, Phase, Role};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tonic::{Status, Streaming};

pub(crate) use self::outcome::Outcome;
use self::outcome::{Word, last_word, verdict};
use self::replay::Replay;
use crate::client::Client;
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::render::screen::Screen;

/// Between two questions to an agent that does not answer, or that ended the stream early.
const RETRY: Duration = Duration::from_millis(200);

/// The migration that is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    /// Its id.
    pub(crate) id: String,
    /// The container.
    pub(crate) container: String,
    /// The other host.
    pub(crate) peer: String,
    /// What the agent is in it.
    pub(crate) role: Role,
}

impl From<&Migration> for Subject {
    fn from(migration: &Migration) -> Self {
        Self {
            id: migration.id.clone(),
            container: migration.container.clone(),
            peer: migration.peer.clone(),
            role: migration.role(),
        }
    }
}

/// What the first Ctrl-C does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnInterrupt {
    /// Asks the agent to cancel and waits for the outcome; the second one leaves.
    Cancel,
    /// Leaves.
    Leave,
}

/// Follows one migration.
pub(crate) struct Follower<'a> {
    client: Client,
    subject: &'a Subject,
    screen: &'a mut dyn Screen,
    interrupts: &'a mut Interrupts,
    on_interrupt: OnInterrupt,
    patience: Duration,
    replay: Replay,
    phase: Phase,
    cancelling: Cancelling,
}

/// Whether the agent was asked to cancel.
enum Cancelling {
    No,
    Asked(JoinHandle<Result<Phase, Failure>>),
    Answered,
}

/// How one look at the event stream ended.
enum Watched {
    Ended(Outcome),
    /// Without an outcome. A failure that the stream told although it came too late to be believed stays.
    Cut(Option<Box<Error>>),
}

/// What woke us up while watching.
enum Turn {
    Message(Result<Option<Box<Event>>, Status>),
    Interrupted,
    CancelAnswered(Result<Phase, Failure>),
}

impl<'a> Follower<'a> {
    /// Prepares to follow a migration that exists.
    pub(crate) fn new(
        client: Client,
        subject: &'a Subject,
        screen: &'a mut dyn Screen,
        interrupts: &'a mut Interrupts,
        on_interrupt: OnInterrupt,
        patience: Duration,
    ) -> Self {
        Self {
            client,
            subject,
            screen,
            interrupts,
            on_interrupt,
            patience,
            replay: Replay::default(),
            phase: Phase::Unspecified,
            cancelling: Cancelling::No,
        }
    }

    /// Follows it and shows it, the outcome included.
    pub(crate) async fn run(mut self) -> Result<Outcome, Failure> {
        self.screen.started(self.subject)?;
        let outcome = self.outcome().await?;
        self.screen.end(self.subject, &outcome)?;
        Ok(outcome)
    }

    async fn outcome(&mut self) -> Result<Outcome, Failure> {
        loop {
            let told = match self.watch().await? {
                Watched::Ended(outcome) => return Ok(outcome),
                Watched::Cut(told) => told,
            };
            if let Some(outcome) = self.ask(told).await? {
                return Ok(outcome);
            }
        }
    }

    /// Shows events until the outcome or the end of the stream.
    async fn watch(&mut self) -> Result<Watched, Failure> {
        let mut stream = match self.open().await {
            Ok(Some(stream)) => stream,
            Ok(None) => return Ok(Watched::Ended(Outcome::Left)),
            Err(failure) => return self.cut(&failure),
        };
        self.replay.rewind();
        loop {
            let turn = tokio::select! {
                message = stream.message() => Turn::Message(message.map(|event| event.map(Box::new))),
                () = self.interrupts.next() => Turn::Interrupted,
                answer = answered(&mut self.cancelling) => Turn::CancelAnswered(answer),
            };
            match turn {
                Turn::Message(Ok(Some(event))) => {
                    if let Some(ended) = self.take(&event)? {
                        return Ok(ended);
                    }
                }
                Turn::Message(Ok(None)) => return Ok(Watched::Cut(None)),
                Turn::Message(Err(status)) => {
                    return self.cut(&Failure::call(format!("watch migration {}", self.subject.id), status));
                }
                Turn::Interrupted => {
                    if self.leaves()? {
                        return Ok(Watched::Ended(Outcome::Left));
                    }
                }
                Turn::CancelAnswered(answer) => self.cancel_answered(answer)?,
            }
        }
    }

    /// Opens the event stream; `None` if the user leaves meanwhile.
    async fn open(&mut self) -> Result<Option<Streaming<Event>>, Failure> {
        loop {
            tokio::select! {
                stream = self.client.watch(&self.subject.id) => return stream.map(Some),
                () = self.interrupts.next() => if self.leaves()? { return Ok(None) },
            }
        }
    }

    /// Shows an event, or makes the last one the outcome.
    fn take(&mut self, event: &Event) -> Result<Option<Watched>, Failure> {
        match last_word(event, self.phase) {
            Some(Word::Outcome(outcome)) => Ok(Some(Watched::Ended(outcome))),
            Some(Word::Doubtful(error)) => Ok(Some(Watched::Cut(Some(error)))),
            None => {
                if self.replay.is_new(event) {
                    self.phase = outcome::phase_of(event).unwrap_or(self.phase);
                    self.screen.event(self.subject, event)?;
                }
                Ok(None)
            }
        }
    }

    fn cut(&mut self, failure: &Failure) -> Result<Watched, Failure> {
        self.screen.note(self.subject, &format!("{}; asking again", failure.to_error().message))?;
        Ok(Watched::Cut(None))
    }

    /// Asks for the state until the agent answers; `None` while the migration goes on.
    async fn ask(&mut self, told: Option<Box<Error>>) -> Result<Option<Outcome>, Failure> {
        let deadline = Instant::now() + self.patience;
        loop {
            let answer = tokio::select! {
                answer = self.client.migration(&self.subject.id) => answer,
                () = self.interrupts.next() => {
                    if self.leaves()? {
                        return Ok(Some(Outcome::Left));
                    }
                    continue;
                }
            };
            match answer {
                Ok(migration) => {
                    let outcome = verdict(&migration, told);
                    if outcome.is_none() {
                        sleep(RETRY).await;
                    }
                    return Ok(outcome);
                }
                Err(failure) if failure.is_answer() || Instant::now() >= deadline => {
                    let unknown = Failure::OutcomeUnknown {
                        id: self.subject.id.clone(),
                        phase: self.phase,
                        source: Box::new(failure),
                    };
                    return Ok(Some(Outcome::Unknown(Box::new(unknown.to_error()))));
                }
                Err(_) => sleep(RETRY).await,
            }
        }
    }

    /// Handles Ctrl-C; whether the user leaves.
    fn leaves(&mut self) -> Result<bool, Failure> {
        let first = matches!(self.cancelling, Cancelling::No);
        if self.on_interrupt == OnInterrupt::Leave || !first {
            return Ok(true);
        }
        let (mut client, id) = (self.client.clone(), self.subject.id.clone());
        self.cancelling = Cancelling::Asked(tokio::spawn(async move { client.cancel(&id).await }));
        let message =
            "asking the agent to cancel, waiting for the outcome; Ctrl-C again leaves the migration alone";
        self.screen.note(self.subject, message)?;
        Ok(false)
    }

    fn cancel_answered(&mut self, answer: Result<Phase, Failure>) -> Result<(), Failure> {
        let Err(failure) = answer else { return Ok(()) };
        let message =
            format!("it was not cancelled: {}; waiting for the outcome", failure.to_error().message);
        Ok(self.screen.note(self.subject, &message)?)
    }
}

/// Waits for the answer to a cancellation, once; forever if none is due.
async fn answered(cancelling: &mut Cancelling) -> Result<Phase, Failure> {
    let Cancelling::Asked(task) = cancelling else { return std::future::pending().await };
    let answer = task.await;
    *cancelling = Cancelling::Answered;
    match answer {
        Ok(answer) => answer,
        // The task panicked, which has been reported; the migration goes on and so do we.
        Err(_) => std::future::pending().await,
    }
}
