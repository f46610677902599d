//! The destination's side of a migration: check, create, fill, restore, run.
//!
//! The driver moves messages; the engine works on a thread of its own ([`engine`]). The driver's promise: until
//! `Commit` has come nothing of the copy runs, and whatever ends the migration before leaves nothing of it: no
//! task, no container at the runtime, no interface. After `Commit` the copy runs even if the link dies. A source that
//! asks what became of it gets one answer, for good: the journal's log of the migration decides which was first, the
//! commit or the question.

mod admission;
mod engine;
mod handover;
mod late;
mod lines;
mod memory;
mod placement;
mod reaper;
mod rounds;
mod state;
mod tail;
mod turn;
mod verification;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pclive_engine::restore::DestinationOptions;
use pclive_proto::control::{self, Role};
use pclive_proto::peer::destination_message::Message;
use pclive_proto::peer::source_message::Message as Received;
use pclive_proto::peer::{Accepted, DestinationMessage, Failure, Prepare, Ready, SourceMessage};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::task::JoinHandle;
use tonic::Status;
use tracing::{Instrument, info, info_span};

use self::admission::Admitted;
use self::engine::{Begun, Engine, Plan, Restored};
use self::handover::stage_committing;
pub(crate) use self::lines::receive;
use self::memory::MemoryWatch;
use self::state::{Event, State};
use self::tail::Tardy;
use super::document::Arriving;
use super::{SharedLog, comparison_patience, conclude, wire};
use crate::agent::Agent;
use crate::conversation::{Ears, Mouth};
use crate::error::{ErrorCode, MigrationError, chain};
use crate::fault::{self, Point};
use crate::host::{self, UsageMeter};
use crate::journal::{Ending, JournalError};
use crate::network::{self, Interface, Waiting};
use crate::recovery::doubt;
use crate::registry::Entry;
use crate::tail::Fetcher;
use crate::tls::Caller;

/// Where answers to the source go.
type Answers = Mouth<DestinationMessage>;
/// Where the source is heard.
type Incoming = Ears<DestinationMessage, SourceMessage>;

/// How long the last word to the source may take.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Takes one migration, to whatever end, and records that end.
pub(super) async fn run(agent: Arc<Agent>, caller: Caller, mut incoming: Incoming, answers: Answers) {
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
    incoming: &mut Incoming,
) -> Result<Admitted, MigrationError> {
    let patience = agent.config.migration.connect_timeout();
    let message = tokio::time::timeout(patience, incoming.message(Duration::ZERO)).await;
    let late = |_| MigrationError::new(ErrorCode::Timeout, "the source did not say what it wants");
    match understood(message.map_err(late)?)? {
        Received::Prepare(prepare) => {
            let admitted = admission::admit(agent, caller, prepare).await?;
            let Prepare { migration_id, source_agent, conversation_token, .. } = &admitted.prepare;
            let carrier = incoming.carrier();
            agent.conversations.open(migration_id, source_agent, conversation_token, carrier);
            Ok(admitted)
        }
        other => Err(out_of_turn(&other)),
    }
}

async fn refuse(answers: &Answers, error: &MigrationError) {
    let error = error.clone().at(Role::Destination, control::Phase::Negotiating);
    let failure = answer(Message::Failure(Failure::from(&error)));
    // A source that is gone needs no answer.
    let _ = answers.send_timeout(failure, LAST_WORD).await;
}

fn answer(message: Message) -> DestinationMessage {
    DestinationMessage { message: Some(message), place: 0 }
}

/// Creates the container, builds the copy in it, and cleans up what must not stay.
async fn take(agent: Arc<Agent>, admitted: Admitted, mut incoming: Incoming, answers: Answers) {
    let Admitted { entry, id, runtime, prepare, interfaces, staging, log } = admitted;
    super::warn_of_plain_text(&agent, &entry);
    if let Err(error) = turn::wait(&agent, &entry, &mut incoming).await {
        refuse(&answers, &error).await;
        failed(&agent, &entry, log, error).await;
        return;
    }
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
        close_connections: prepare.close_connections,
        network: (&agent.config.network).into(),
        capture_bytes: agent.config.network.capture_bytes,
        staging,
        catch_up: agent.config.migration.progress_timeout() / 2,
    };
    let outcome = match begin(&agent, &prepare, &log, plan).await {
        Ok((fetcher, engine, begun)) => {
            begun.warnings.into_iter().for_each(|warning| entry.warn(warning));
            let shared = Arc::clone(&log);
            let interfaces = if prepare.close_connections { begun.interfaces } else { Vec::new() };
            let comparison = prepare.verify.then(|| comparison_patience(prepare.memory_bytes));
            let receiver = Receiver::new(
                &agent,
                Arc::clone(&entry),
                shared,
                incoming,
                answers.clone(),
                Copy { engine, fetcher, init_pid: created.pid, comparison, interfaces },
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
        Ok(Ran { mut report, fetcher, hook }) => {
            fault::reached(Point::DestinationTold);
            if let Err(error) = runtime.start(&id).await {
                entry.warn(format!("the container runs, but the runtime was not told: {}", chain(&error)));
            }
            fault::reached(Point::DestinationStarted);
            handover::hook_ended(&entry, &answers, hook).await;
            match &report {
                Some(report) => info!(restore_ms = report.restore_ns / 1_000_000, "container runs here"),
                None => info!("container runs here"),
            }
            match tail::fetched(&agent, fetcher, &log).await {
                Ok(tail) => report.iter_mut().for_each(|report| report.tail = tail),
                Err(error) => {
                    entry.unknown(error);
                    agent.registry.ended();
                    return;
                }
            }
            if report.as_ref().is_some_and(|report| report.tail.is_some()) {
                fault::reached(Point::DestinationFetched);
            }
            doubt::write_end(&agent, log, Ending::Done).await;
            entry.finish(report);
            agent.registry.ended();
        }
        Err(Ended::Discarded(error)) => {
            if let Err(error) = runtime.delete(&id).await {
                entry.warn(format!("the created container could not be removed: {}", chain(&error)));
            }
            fault::reached(Point::DestinationDeleted);
            failed(&agent, &entry, log, error).await;
        }
    }
}

/// Makes ready what must be there before the copy is built, its network, and what must be in force before a task of it is
/// let go. What fetches its last pages, if they may come later, comes first.
async fn begin(
    agent: &Agent,
    prepare: &Prepare,
    log: &SharedLog,
    plan: Plan,
) -> Result<(Option<Fetcher>, Engine, Begun), MigrationError> {
    let (init_pid, original) = (plan.pid, plan.interfaces.clone());
    let fetcher = tail::start_fetcher(agent, prepare, init_pid).await?;
    if fetcher.is_some() {
        fault::reached(Point::DestinationFetcherStarted);
    }
    let (engine, begun) = Engine::start(plan).await?;
    let here: Vec<IpAddr> = network::addresses(&begun.interfaces).collect();
    let network_stays = prepare.close_connections && network::differ(&original, &here);
    let tail = fetcher.as_ref().map(Fetcher::identity);
    match stage_committing(log, init_pid, tail, network_stays).await {
        Ok(()) => Ok((fetcher, engine, begun)),
        Err(error) => {
            engine.release().await;
            Err(error)
        }
    }
}

/// What a migration works on.
struct Copy {
    engine: Engine,
    fetcher: Option<Fetcher>,
    init_pid: i32,
    comparison: Option<Duration>,
    /// What the source is told of its network.
    interfaces: Vec<Interface>,
}

/// A copy that was let go.
struct Ran {
    report: Option<control::Report>,
    /// What still fetches its last pages.
    fetcher: Option<Fetcher>,
    /// The site's `after-resume`, which runs.
    hook: JoinHandle<Result<(), MigrationError>>,
}

async fn failed(agent: &Agent, entry: &Entry, log: SharedLog, error: MigrationError) {
    tracing::warn!(code = error.code.as_str(), "migration failed, the copy is discarded: {error}");
    conclude(agent, entry, &log, doubt::failed(&error)).await;
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
    agent: &'a Arc<Agent>,
    entry: Arc<Entry>,
    log: SharedLog,
    /// The journal's write that must have ended before a task is let go.
    committing: Option<JoinHandle<Result<bool, JournalError>>>,
    state: State,
    incoming: Incoming,
    answers: Answers,
    engine: Engine,
    /// What will fetch the last pages, if they may come later.
    fetcher: Option<Fetcher>,
    /// What the final round leaves for later.
    later: Tardy,
    /// What was named as outdated and is not done with.
    outdated: Tardy,
    /// What pages may still take of this host's memory before it is looked at again.
    memory: MemoryWatch,
    room: Arc<Semaphore>,
    init_pid: i32,
    /// The source compares memory before it commits, which may take so much longer.
    comparison: Option<Duration>,
    /// What the source is told of the copy's network.
    interfaces: Vec<Interface>,
    /// The layout or final state that is arriving.
    document: Arriving,
    /// The round that is arriving.
    round: control::Round,
    round_began: Instant,
    rounds: Vec<control::Round>,
}

impl<'a> Receiver<'a> {
    fn new(
        agent: &'a Arc<Agent>,
        entry: Arc<Entry>,
        log: SharedLog,
        incoming: Incoming,
        answers: Answers,
        Copy { engine, fetcher, init_pid, comparison, interfaces }: Copy,
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
            fetcher,
            later: Tardy::default(),
            outdated: Tardy::default(),
            memory: MemoryWatch::default(),
            room: Arc::new(Semaphore::new(agent.config.migration.in_flight_kib_at_destination())),
            document: Arriving::new(host::memory_available().unwrap_or(0)),
            init_pid,
            comparison,
            interfaces,
            round: control::Round::default(),
            round_began: Instant::now(),
            rounds: Vec::new(),
        }
    }

    async fn receive(mut self, meter: &UsageMeter) -> Result<Ran, Ended> {
        let (restored, received_at, waiting) = match self.build().await {
            Ok(done) => done,
            Err(error) => return Err(self.give_up(error).await),
        };
        // ==> The source has committed: it runs here, whatever happens to the link.
        match self.engine.resume(waiting).await {
            Ok(resumed) => Ok(self.running(resumed, restored, received_at, meter).await),
            Err(error) => self.broken(error).await,
        }
    }

    /// Lets go of the copy, which ends it.
    async fn give_up(self, error: MigrationError) -> Ended {
        let error = error.at(Role::Destination, self.state.phase());
        tracing::debug!(after = ?self.state.next(Event::Failure), "giving up");
        // The source first: its container may be waiting to go on.
        refuse(&self.answers, &error).await;
        fault::reached(Point::DestinationGivingUp);
        self.engine.release().await;
        fault::reached(Point::DestinationGaveUp);
        Ended::Discarded(error)
    }

    /// From `Accepted` to `Commit`.
    async fn build(&mut self) -> Result<(Restored, Instant, Waiting), MigrationError> {
        self.accept().await?;
        let (mut restored, received_at) = loop {
            let message = self.next().await?;
            let received_at = Instant::now();
            if let Some(restored) = self.handle(message, received_at).await? {
                break (restored, received_at);
            }
        };
        let mut waiting = Waiting::new(self.agent.config.network.capture_bytes);
        if self.comparison.is_some() {
            restored.ledger.verify_ns = self.tell_contents(&mut waiting).await?;
        }
        self.say(Message::Ready(Ready { ledger: Some(restored.ledger) })).await?;
        self.advance(Event::Offered)?;
        // From here on only the source may end it: it may have sent its commit already.
        self.entry.begin_commit()?;
        fault::reached(Point::DestinationOffered);
        let patience = self.patience();
        let committed = tokio::time::timeout(patience, self.commit(&mut waiting)).await;
        // Frames are no sign of a commit: a source that sends nothing else is as silent as one that sends nothing.
        committed.unwrap_or_else(|_| Err(silent(patience)))?;
        self.take_commit().await?;
        self.advance(Event::Commit)?;
        fault::reached(Point::DestinationCommitted);
        Ok((restored, received_at, waiting))
    }

    /// Waits for `Commit`; the frames that come before it wait.
    async fn commit(&mut self, waiting: &mut Waiting) -> Result<(), MigrationError> {
        loop {
            match self.next().await? {
                Received::Frames(frames) => waiting.take(frames),
                Received::Commit(_) => return Ok(()),
                other => return Err(out_of_turn(&other)),
            }
        }
    }

    async fn accept(&mut self) -> Result<(), MigrationError> {
        let facts = host::facts().map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?;
        let accepted = Accepted {
            host: Some(facts),
            agent_name: self.agent.name.clone(),
            interfaces: network::encode(&self.interfaces),
        };
        self.advance(Event::Prepared)?;
        self.say(Message::Accepted(accepted)).await?;
        fault::reached(Point::DestinationAccepted);
        Ok(())
    }

    /// How long the source may say nothing.
    fn patience(&self) -> Duration {
        self.agent.config.migration.progress_timeout() + self.comparison.unwrap_or_default()
    }

    /// The source's next message; also ends with the engine, with a user's wish, and at a deadline.
    async fn next(&mut self) -> Result<Received, MigrationError> {
        let patience = self.patience();
        let reconnect = self.agent.config.migration.reconnect_timeout();
        tokio::select! {
            biased;
            message = self.incoming.message(reconnect) => understood(message),
            error = self.engine.why() => Err(error),
            why = self.entry.cancelled() => Err(why),
            () = tokio::time::sleep(patience) => Err(silent(patience)),
        }
    }

    async fn say(&self, message: Message) -> Result<(), MigrationError> {
        let patience = self.agent.config.migration.progress_timeout();
        match self.answers.send_timeout(answer(message), patience).await {
            Ok(()) => Ok(()),
            Err(SendTimeoutError::Closed(_)) => Err(wire::link_ended()),
            Err(SendTimeoutError::Timeout(_)) => {
                let message = format!("the source took no answer for {patience:?}");
                Err(MigrationError::new(ErrorCode::Timeout, message))
            }
        }
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
        Ok(Some(SourceMessage { message: Some(Received::Failure(failure)), .. })) => {
            Err(MigrationError::from(failure).at(Role::Source, control::Phase::Unspecified))
        }
        Ok(Some(SourceMessage { message: Some(message), .. })) => Ok(message),
        Ok(Some(SourceMessage { message: None, .. })) => Err(wire::bad("an empty message")),
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
        Received::DocumentPart(_) => "DocumentPart",
        Received::FinalState(_) => "FinalState",
        Received::Commit(_) => "Commit",
        Received::Frames(_) => "Frames",
        Received::Later(_) => "Later",
        Received::Outdated(_) => "Outdated",
        Received::Settle(_) => "Settle",
        Received::Failure(_) => "Failure",
        Received::Join(_) => "Join",
        Received::Received(_) => "Received",
        Received::End(_) => "End",
    };
    wire::bad(format!("{name} out of turn"))
}
