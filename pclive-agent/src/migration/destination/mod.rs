//! The destination's side of a migration: check, create, fill, restore, run.
//!
//! The driver moves messages; the engine works on a thread of its own ([`engine`]). The driver's promise: until
//! `Commit` has come nothing of the copy runs, and whatever ends the migration before leaves nothing of it: no
//! task, no container at the runtime, no interface. After `Commit` the copy runs even if the link dies. A source that
//! asks what became of it gets one answer, for good: the journal's log of the migration decides which was first, the
//! commit or the question.

mod admission;
mod engine;
mod late;
mod placement;
mod reaper;
mod state;

use std::sync::Arc;
use std::time::{Duration, Instant};

use pclive_engine::restore::DestinationOptions;
use pclive_proto::control::{self, Role};
use pclive_proto::peer::destination_message::Message;
use pclive_proto::peer::source_message::Message as Received;
use pclive_proto::peer::{
    Accepted, DestinationMessage, Failure, FinalState, PageBatch, Ready, RoundBegin, RoundEnd, Running,
    SourceMessage,
};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tonic::{Status, Streaming};
use tracing::{Instrument, Span, info, info_span};

use self::admission::Admitted;
use self::engine::{Engine, Pages, Plan, Restored, Resumed};
use self::state::{Event, State};
use super::report::{self, ns};
use super::{SharedLog, wire, written};
use crate::agent::Agent;
use crate::error::{ErrorCode, MigrationError, chain};
use crate::fault::{self, Point};
use crate::host::{self, UsageMeter};
use crate::journal::{self, Ending, JournalError, Record};
use crate::network::Waiting;
use crate::recovery::{self, doubt, process};
use crate::registry::Entry;
use crate::tls::Caller;

/// Where answers to the source go.
pub(super) type Answers = mpsc::Sender<Result<DestinationMessage, Status>>;

/// How long the last word to the source may take.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Takes one migration, to whatever end, and records that end.
pub(super) async fn run(
    agent: Arc<Agent>,
    caller: Caller,
    mut incoming: Streaming<SourceMessage>,
    answers: Answers,
) {
    let admitted = match first(&agent, &caller, &mut incoming).await {
        Ok(admitted) => admitted,
        Err(error) => {
            tracing::warn!(code = error.code.as_str(), "refused a migration: {error}");
            refuse(&answers, &error).await;
            return;
        }
    };
    let entry = Arc::clone(&admitted.entry);
    let span = info_span!("migration", id = entry.id(), container = entry.container(), role = "destination");
    take(agent, admitted, incoming, answers).instrument(span).await;
}

async fn first(
    agent: &Arc<Agent>,
    caller: &Caller,
    incoming: &mut Streaming<SourceMessage>,
) -> Result<Admitted, MigrationError> {
    let patience = agent.config.migration.connect_timeout();
    let message = tokio::time::timeout(patience, incoming.message()).await;
    let late = |_| MigrationError::new(ErrorCode::Timeout, "the source did not say what it wants");
    match understood(message.map_err(late)?)? {
        Received::Prepare(prepare) => admission::admit(agent, caller, prepare).await,
        other => Err(out_of_turn(&other)),
    }
}

async fn refuse(answers: &Answers, error: &MigrationError) {
    let error = error.clone().at(Role::Destination, control::Phase::Negotiating);
    let failure = answer(Message::Failure(Failure::from(&error)));
    // A source that is gone needs no answer.
    let _ = answers.send_timeout(Ok(failure), LAST_WORD).await;
}

fn answer(message: Message) -> DestinationMessage {
    DestinationMessage { message: Some(message) }
}

/// Creates the container, builds the copy in it, and cleans up what must not stay.
async fn take(agent: Arc<Agent>, admitted: Admitted, incoming: Streaming<SourceMessage>, answers: Answers) {
    let Admitted { entry, id, runtime, prepare, interfaces, staging, log } = admitted;
    super::warn_of_plain_text(&agent, &entry);
    info!(from = prepare.source_agent, memory_bytes = prepare.memory_bytes, "migration begins");
    fault::reached(Point::DestinationBegun);
    let meter = UsageMeter::start();
    let output = agent.config.migration.stdio_dir.join(format!("{id}.log"));
    let created = match runtime.create(&id, prepare.bundle.as_ref(), &output).await {
        Ok(container) => container,
        Err(error) => {
            let error = MigrationError::caused(ErrorCode::RuntimeFailed, &error);
            refuse(&answers, &error).await;
            failed(&agent, &entry, log, error).await;
            return;
        }
    };
    fault::reached(Point::DestinationCreated);
    let plan = Plan {
        container: id.as_str().into(),
        pid: created.pid,
        options: DestinationOptions { stop_timeout: agent.config.migration.stop_timeout() },
        interfaces,
        network: (&agent.config.network).into(),
        capture_bytes: agent.config.network.capture_bytes,
        staging,
        catch_up: agent.config.migration.progress_timeout() / 2,
    };
    let started = match stage_committing(&log, created.pid).await {
        Ok(()) => Engine::start(plan).await,
        Err(error) => Err(error),
    };
    let outcome = match started {
        Ok((engine, warnings)) => {
            warnings.into_iter().for_each(|warning| entry.warn(warning));
            let shared = Arc::clone(&log);
            let receiver = Receiver::new(
                &agent,
                Arc::clone(&entry),
                shared,
                incoming,
                answers.clone(),
                engine,
                created.pid,
            );
            receiver.receive(&meter).await
        }
        Err(error) => {
            refuse(&answers, &error).await;
            Err(Ended::Discarded(error))
        }
    };
    tokio::spawn(reaper::reap(created.pid));
    match outcome {
        Ok(report) => {
            fault::reached(Point::DestinationTold);
            if let Err(error) = runtime.start(&id).await {
                entry.warn(format!("the container runs, but the runtime was not told: {}", chain(&error)));
            }
            match &report {
                Some(report) => info!(restore_ms = report.restore_ns / 1_000_000, "container runs here"),
                None => info!("container runs here"),
            }
            doubt::write_end(&agent, log, Ending::Done).await;
            entry.finish(report);
            agent.registry.ended();
        }
        Err(Ended::Discarded(error)) => {
            if let Err(error) = runtime.delete(&id).await {
                entry.warn(format!("the created container could not be removed: {}", chain(&error)));
            }
            failed(&agent, &entry, log, error).await;
        }
    }
}

/// Writes down in advance what must be in force before a task is let go.
async fn stage_committing(log: &SharedLog, init_pid: i32) -> Result<(), MigrationError> {
    let init = process::identify(init_pid).ok_or_else(|| {
        MigrationError::new(ErrorCode::RuntimeFailed, "the init of the created container has ended")
    })?;
    let log = Arc::clone(log);
    written(move || {
        let mut log = journal::guard(&log);
        let record = Record { init: Some(init), phase: journal::Phase::Committing, ..log.record().clone() };
        log.stage(record)
    })
    .await
}

async fn failed(agent: &Agent, entry: &Entry, log: SharedLog, error: MigrationError) {
    tracing::warn!(code = error.code.as_str(), "migration failed, the copy is discarded: {error}");
    doubt::write_end(agent, log, doubt::failed(&error)).await;
    entry.fail(error);
    agent.registry.ended();
}

/// How a migration that did not end well ended.
enum Ended {
    /// Nothing of the copy is left but what the runtime created. Also after the commit, when nothing could be let go:
    /// the source is told so when it asks.
    Discarded(MigrationError),
}

/// One migration with everything it has open.
struct Receiver<'a> {
    agent: &'a Agent,
    entry: Arc<Entry>,
    log: SharedLog,
    /// The journal's write that must have ended before a task is let go.
    committing: Option<JoinHandle<Result<bool, JournalError>>>,
    state: State,
    incoming: Streaming<SourceMessage>,
    answers: Answers,
    engine: Engine,
    room: Arc<Semaphore>,
    init_pid: i32,
    /// The round that is arriving.
    round: control::Round,
    round_began: Instant,
    rounds: Vec<control::Round>,
}

impl<'a> Receiver<'a> {
    fn new(
        agent: &'a Agent,
        entry: Arc<Entry>,
        log: SharedLog,
        incoming: Streaming<SourceMessage>,
        answers: Answers,
        engine: Engine,
        init_pid: i32,
    ) -> Self {
        Self {
            agent,
            entry,
            log,
            committing: None,
            state: State::Idle,
            incoming,
            answers,
            engine,
            room: Arc::new(Semaphore::new(agent.config.migration.in_flight_kib_at_destination())),
            init_pid,
            round: control::Round::default(),
            round_began: Instant::now(),
            rounds: Vec::new(),
        }
    }

    async fn receive(mut self, meter: &UsageMeter) -> Result<Option<control::Report>, Ended> {
        let (restored, received_at, waiting) = match self.build().await {
            Ok(done) => done,
            Err(error) => return Err(self.give_up(error).await),
        };
        // ==> The source has committed: it runs here, whatever happens to the link.
        match self.engine.resume(waiting).await {
            Ok(resumed) => Ok(Some(self.running(resumed, restored, received_at, meter).await)),
            Err(error) => self.broken(error).await,
        }
    }

    /// Lets go of the copy, which ends it.
    async fn give_up(self, error: MigrationError) -> Ended {
        let error = error.at(Role::Destination, self.state.phase());
        tracing::debug!(after = ?self.state.next(Event::Failure), "giving up");
        // The source first: its container may be waiting to go on.
        refuse(&self.answers, &error).await;
        self.engine.release().await;
        Ended::Discarded(error)
    }

    /// The source has committed and the copy was not let go as it should: init tells whether it was at all. The
    /// source asks, and is told.
    async fn broken(self, error: MigrationError) -> Result<Option<control::Report>, Ended> {
        let error = error.at(Role::Destination, self.state.phase());
        self.engine.release().await;
        let log = Arc::clone(&self.log);
        let runs =
            tokio::task::spawn_blocking(move || recovery::copy_runs(&journal::guard(&log).record().clone()));
        if runs.await.unwrap_or(false) {
            self.entry.warn(format!("the container runs, but not everything went well: {error}"));
            return Ok(None);
        }
        refuse(&self.answers, &error).await;
        Err(Ended::Discarded(error))
    }

    /// From `Accepted` to `Commit`.
    async fn build(&mut self) -> Result<(Restored, Instant, Waiting), MigrationError> {
        self.accept().await?;
        let (restored, received_at) = loop {
            let message = self.next().await?;
            let received_at = Instant::now();
            if let Some(restored) = self.handle(message, received_at).await? {
                break (restored, received_at);
            }
        };
        self.say(Message::Ready(Ready { ledger: Some(restored.ledger) })).await?;
        self.advance(Event::Offered)?;
        // From here on only the source may end it: it may have sent its commit already.
        self.entry.begin_commit()?;
        fault::reached(Point::DestinationOffered);
        let mut waiting = Waiting::new(self.agent.config.network.capture_bytes);
        loop {
            match self.next().await? {
                Received::Frames(frames) => waiting.take(frames),
                Received::Commit(_) => break,
                other => return Err(out_of_turn(&other)),
            }
        }
        self.take_commit().await?;
        self.advance(Event::Commit)?;
        fault::reached(Point::DestinationCommitted);
        Ok((restored, received_at, waiting))
    }

    /// Begins to put `Committing` in force, beside the restore: that it is, is looked at in [`Self::take_commit`].
    fn write_committing(&mut self) {
        let log = Arc::clone(&self.log);
        self.committing = Some(tokio::task::spawn_blocking(move || journal::guard(&log).enact()));
    }

    /// On `Ok` the copy may be let go: that is durable, and the source has not been promised the contrary.
    async fn take_commit(&mut self) -> Result<(), MigrationError> {
        if let Some(committing) = self.committing.take() {
            let done =
                committing.await.map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?;
            done.map_err(|error| MigrationError::caused(ErrorCode::JournalFailed, &error))?;
        }
        if journal::guard(&self.log).take_commit() {
            return Ok(());
        }
        let message = "COMMIT came after the source was promised that the container does not run here";
        Err(MigrationError::new(ErrorCode::Discarded, message))
    }

    async fn accept(&mut self) -> Result<(), MigrationError> {
        let facts = host::facts().map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?;
        let accepted = Accepted { host: Some(facts), agent_name: self.agent.name.clone() };
        self.advance(Event::Prepared)?;
        self.say(Message::Accepted(accepted)).await
    }

    /// One message of the rounds; the restored state once the final one has come.
    async fn handle(&mut self, message: Received, at: Instant) -> Result<Option<Restored>, MigrationError> {
        match message {
            Received::RoundBegin(begin) => self.round_begin(begin).await?,
            Received::PageBatch(batch) => self.pages(batch).await?,
            Received::RoundEnd(ended) => self.round_end(&ended).await?,
            Received::FinalState(state) => return self.final_state(state, at).await.map(Some),
            other @ (Received::Prepare(_)
            | Received::Commit(_)
            | Received::Frames(_)
            | Received::Failure(_)) => {
                return Err(out_of_turn(&other));
            }
        }
        Ok(None)
    }

    async fn round_begin(&mut self, begin: RoundBegin) -> Result<(), MigrationError> {
        let event =
            if begin.r#final { Event::FinalBegun(begin.round) } else { Event::RoundBegun(begin.round) };
        self.advance(event)?;
        if begin.r#final {
            self.write_committing();
        }
        self.round = control::Round { number: begin.round, r#final: begin.r#final, ..Default::default() };
        self.round.bytes = begin.layout.len() as u64;
        self.round_began = Instant::now();
        self.engine.layout(begin.layout, begin.round, begin.r#final).await
    }

    async fn pages(&mut self, message: PageBatch) -> Result<(), MigrationError> {
        self.advance(Event::Pages)?;
        let checksum = message.checksum;
        let batch = wire::batch(message)?;
        self.count(&batch)?;
        let kib = u32::try_from(batch.payload.len() / 1024).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(kib).await;
        let room = room.map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?;
        self.engine.pages(Pages { batch, checksum, room }).await
    }

    fn count(&mut self, batch: &pclive_engine::model::Batch) -> Result<(), MigrationError> {
        use pclive_engine::model::ExtentKind;
        for extent in &batch.extents {
            let counter = match extent.kind {
                ExtentKind::Data => &mut self.round.data_pages,
                ExtentKind::Zero => &mut self.round.zero_pages,
                ExtentKind::Hole | ExtentKind::Guard => &mut self.round.hole_pages,
            };
            *counter =
                counter.checked_add(extent.pages).ok_or_else(|| wire::bad("more pages than there can be"))?;
        }
        self.round.bytes += batch.payload.len() as u64;
        Ok(())
    }

    async fn round_end(&mut self, ended: &RoundEnd) -> Result<(), MigrationError> {
        self.advance(Event::RoundEnded(ended.round))?;
        // A final dump that was put off is a round like any other.
        self.round.r#final = false;
        self.all_came(ended.data_pages)?;
        let began = Instant::now();
        let whole = tokio::select! {
            whole = self.engine.round_end() => whole?,
            why = self.entry.cancelled() => return Err(why),
        };
        self.finish_round();
        fault::reached(Point::DestinationRound);
        self.say(Message::RoundApplied(whole.answer(ended.round, began.elapsed()))).await
    }

    async fn final_state(&mut self, state: FinalState, at: Instant) -> Result<Restored, MigrationError> {
        self.all_came(state.data_pages)?;
        if !matches!(self.state, State::Reconciling(_)) {
            return Err(out_of_turn(&Received::FinalState(state)));
        }
        let restored = self.engine.restore(state.state, at).await?;
        self.advance(Event::StateRestored)?;
        self.finish_round();
        fault::reached(Point::DestinationRestored);
        Ok(restored)
    }

    fn all_came(&self, data_pages: u64) -> Result<(), MigrationError> {
        if self.round.data_pages == data_pages {
            return Ok(());
        }
        let came = self.round.data_pages;
        Err(wire::bad(format!("{came} pages in round {} and counted {data_pages}", self.round.number)))
    }

    fn finish_round(&mut self) {
        let elapsed = self.round_began.elapsed();
        self.round.duration_ns = ns(elapsed);
        let rate = u128::from(self.round.bytes) * 1_000_000_000 / elapsed.as_nanos().max(1);
        self.round.bytes_per_second = u64::try_from(rate).unwrap_or(u64::MAX);
        let round = self.round;
        info!(
            round = round.number,
            last = round.r#final,
            bytes = round.bytes,
            data_pages = round.data_pages,
            ms = round.duration_ns / 1_000_000,
            "round in place"
        );
        self.entry.round(round);
        self.rounds.push(round);
    }

    /// It runs: the source is told first, the rest has time.
    async fn running(
        self,
        resumed: Resumed,
        restored: Restored,
        received_at: Instant,
        meter: &UsageMeter,
    ) -> control::Report {
        fault::reached(Point::DestinationResumed);
        let mut ledger = restored.ledger;
        ledger.resume_ns = ns(resumed.elapsed);
        ledger.restore_ns = ns(resumed.at.saturating_duration_since(received_at));
        let used = meter.used();
        let running = Running {
            ledger: Some(ledger),
            init_pid: self.init_pid,
            cpu_ns: used.cpu_ns,
            peak_memory_bytes: used.peak_memory_bytes,
            staging_peak_bytes: restored.staging_peak_bytes,
        };
        if self.say(Message::Running(running)).await.is_err() {
            self.entry.warn("the source could not be told that the container runs here");
        }
        tokio::spawn(late::take(self.incoming, resumed.injector).instrument(Span::current()));
        let settled = self.engine.settled().await;
        resumed.warnings.into_iter().chain(settled).for_each(|warning| self.entry.warn(warning));
        tokio::spawn(async move {
            if let Err(error) = resumed.announcer.repeat().await {
                tracing::warn!("cannot announce the container again: {}", chain(&error));
            }
        });
        report::received(self.rounds, &running, self.entry.began().elapsed())
    }

    /// The source's next message; also ends with the engine, with a user's wish, and at a deadline.
    async fn next(&mut self) -> Result<Received, MigrationError> {
        let patience = self.agent.config.migration.progress_timeout();
        tokio::select! {
            biased;
            message = self.incoming.message() => understood(message),
            error = self.engine.why() => Err(error),
            why = self.entry.cancelled() => Err(why),
            () = tokio::time::sleep(patience) => Err(silent(patience)),
        }
    }

    async fn say(&self, message: Message) -> Result<(), MigrationError> {
        self.answers.send(Ok(answer(message))).await.map_err(|_| wire::link_ended())
    }

    /// Moves on, and tells users when that is another phase.
    fn advance(&mut self, event: Event) -> Result<(), MigrationError> {
        let next = self.state.next(event);
        let next = next.map_err(|error| MigrationError::caused(ErrorCode::BadMessage, &error))?;
        if next.phase() != self.state.phase() {
            self.entry.phase(next.phase());
        }
        self.state = next;
        Ok(())
    }
}

fn silent(patience: Duration) -> MigrationError {
    MigrationError::new(ErrorCode::Timeout, format!("the source sent nothing for {patience:?}"))
}

/// Reads a message of the source; its failure is an error here.
fn understood(message: Result<Option<SourceMessage>, Status>) -> Result<Received, MigrationError> {
    match message {
        Ok(Some(SourceMessage { message: Some(Received::Failure(failure)) })) => {
            Err(MigrationError::from(failure).at(Role::Source, control::Phase::Unspecified))
        }
        Ok(Some(SourceMessage { message: Some(message) })) => Ok(message),
        Ok(Some(SourceMessage { message: None })) => Err(wire::bad("an empty message")),
        Ok(None) => Err(wire::link_ended()),
        Err(status) => Err(wire::status_error(&status)),
    }
}

fn out_of_turn(message: &Received) -> MigrationError {
    let name = match message {
        Received::Prepare(_) => "Prepare",
        Received::RoundBegin(_) => "RoundBegin",
        Received::PageBatch(_) => "PageBatch",
        Received::RoundEnd(_) => "RoundEnd",
        Received::FinalState(_) => "FinalState",
        Received::Commit(_) => "Commit",
        Received::Frames(_) => "Frames",
        Received::Failure(_) => "Failure",
    };
    wire::bad(format!("{name} out of turn"))
}
