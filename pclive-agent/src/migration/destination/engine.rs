//! The thread that owns the copy.
//!
//! A traced task belongs to the thread that seized it, so one thread makes every engine call of a migration, and
//! keeps the container's network as well. Commands come in the order of the stream; pages that wait for it are
//! bounded by the driver. When the driver lets go before [`Engine::resume`], or a command fails, the copy is
//! discarded: restorers killed, network taken back.

use std::io;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pclive_engine::memory::contents::Contents;
use pclive_engine::model::{FinalState, Pid};
use pclive_engine::restore::{Destination, DestinationOptions};
use pclive_engine::tail::{Lack, Later};
use pclive_proto::peer::{DestinationLedger, RoundApplied};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use super::placement::{Placement, StagingPlan, restore_error};
use crate::error::{ErrorCode, MigrationError, chain};
use crate::fault::{self, Point};
use crate::migration::compression::Unpacker;
use crate::migration::report::ns;
use crate::migration::wire;
use crate::network::{self, Announcer, Applied, Injector, Interface, Namespace, NetworkConfig, Waiting};

/// Commands that may wait; the bytes of pages have a bound of their own.
const QUEUE: usize = 256;

/// What the thread needs to begin.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) container: String,
    /// Init of the created container.
    pub(super) pid: i32,
    pub(super) options: DestinationOptions,
    /// Those of the original.
    pub(super) interfaces: Vec<Interface>,
    /// Its connections end, and what the runtime has given the copy is its network.
    pub(super) close_connections: bool,
    pub(super) network: NetworkConfig,
    /// Most bytes of frames that arrive at the source during the stop; 0: none are wanted.
    pub(super) capture_bytes: u64,
    /// How pages wait; `None`: they do not.
    pub(super) staging: Option<StagingPlan>,
    /// How long the end of a round may wait for the rounds before it to be in place: within the source's patience.
    pub(super) catch_up: Duration,
}

/// A batch on its way into the copy.
#[derive(Debug)]
pub(super) struct Pages {
    pub(super) batch: wire::Arrived,
    /// Room for its bytes, given back when they are in place.
    pub(super) room: OwnedSemaphorePermit,
}

/// A round that has come whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whole {
    /// What waits.
    pub(super) staged_bytes: u64,
    /// How long putting it in place will take.
    pub(super) backlog: Duration,
}

impl Whole {
    /// What the source is told of it.
    pub(super) fn answer(self, round: u32, took: Duration) -> RoundApplied {
        let Self { staged_bytes, backlog } = self;
        RoundApplied { round, staged_bytes, apply_ns: ns(took), backlog_ns: ns(backlog) }
    }
}

/// A copy that has its network and waits for its layout.
#[derive(Debug)]
pub(super) struct Begun {
    /// What the administrator should know of the network.
    pub(super) warnings: Vec<String>,
    /// Its network.
    pub(super) interfaces: Vec<Interface>,
}

/// What restoring brought.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) ledger: DestinationLedger,
    /// The most memory that waited, bytes.
    pub(super) staging_peak_bytes: u64,
    /// What the copy goes on without, and how each process tells what it waits for.
    pub(super) lacks: Vec<(Lack, OwnedFd)>,
}

/// A copy that runs.
pub(super) struct Resumed {
    /// When the last task was let go.
    pub(super) at: Instant,
    pub(super) elapsed: Duration,
    /// To announce the container's addresses a few times more.
    pub(super) announcer: Announcer,
    /// For frames that arrive at the source.
    pub(super) injector: Option<Injector>,
    /// What did not work and does not stop the container.
    pub(super) warnings: Vec<String>,
}

enum Command {
    Layout { document: Bytes, round: u32, is_final: bool },
    Pages(Pages),
    Later(Later),
    Outdated(Later),
    Settle(oneshot::Sender<()>),
    RoundEnd(oneshot::Sender<Whole>),
    Restore { state: Bytes, received: Instant, reply: oneshot::Sender<Restored> },
    Contents(oneshot::Sender<Contents>),
    Resume { waiting: Waiting, reply: oneshot::Sender<Resumed> },
}

/// How the thread ended, once it has: with what did not work and does not stop the container.
type Ending = Option<Result<Vec<String>, MigrationError>>;

/// The driver's handle of the thread.
#[derive(Debug)]
pub(super) struct Engine {
    commands: mpsc::Sender<Command>,
    ended: watch::Receiver<Ending>,
}

impl Engine {
    /// Starts the thread: it adopts the container and gives it its network, silently.
    pub(super) async fn start(plan: Plan) -> Result<(Self, Begun), MigrationError> {
        let (commands, queue) = mpsc::channel(QUEUE);
        let (ready, answer) = oneshot::channel();
        let (ending, ended) = watch::channel(None);
        let span = tracing::Span::current();
        let thread = thread::Builder::new().name("destination".into()).spawn(move || {
            let _entered = span.enter();
            ending.send_replace(Some(run(&plan, queue, ready)));
        });
        thread.map_err(|error: io::Error| MigrationError::caused(ErrorCode::Internal, &error))?;
        let engine = Self { commands, ended };
        match answer.await {
            Ok(begun) => Ok((engine, begun)),
            Err(_) => Err(engine.why().await),
        }
    }

    /// A round's layout, as it came.
    pub(super) async fn layout(
        &self,
        document: Bytes,
        round: u32,
        is_final: bool,
    ) -> Result<(), MigrationError> {
        self.give(Command::Layout { document, round, is_final }).await
    }

    /// Pages of the round.
    pub(super) async fn pages(&self, pages: Pages) -> Result<(), MigrationError> {
        self.give(Command::Pages(pages)).await
    }

    /// Pages of the final round that come when the copy runs.
    pub(super) async fn later(&self, later: Later) -> Result<(), MigrationError> {
        self.give(Command::Later(later)).await
    }

    /// Pages that are of no use any more.
    pub(super) async fn outdated(&self, outdated: Later) -> Result<(), MigrationError> {
        self.give(Command::Outdated(outdated)).await
    }

    /// Waits until every command before is done.
    pub(super) async fn settle(&self) -> Result<(), MigrationError> {
        self.ask(Command::Settle).await
    }

    /// Waits until the round is in place; where it is staged, until it is staged whole and the rounds before it are in
    /// place, so that of restorers that live no more than a round is behind.
    pub(super) async fn round_end(&self) -> Result<Whole, MigrationError> {
        self.ask(Command::RoundEnd).await
    }

    /// Puts the small state in place; `received` is when it had come whole.
    pub(super) async fn restore(&self, state: Bytes, received: Instant) -> Result<Restored, MigrationError> {
        self.ask(|reply| Command::Restore { state, received, reply }).await
    }

    /// After [`Self::restore`]: begins to digest the copy's memory, and ends when the answer is no longer waited for.
    pub(super) async fn contents(&self) -> Result<oneshot::Receiver<Contents>, MigrationError> {
        let (reply, answer) = oneshot::channel();
        self.give(Command::Contents(reply)).await?;
        Ok(answer)
    }

    /// Opens the network, delivers the frames that wait, and lets the copy run: after the commit only.
    pub(super) async fn resume(&self, waiting: Waiting) -> Result<Resumed, MigrationError> {
        self.ask(|reply| Command::Resume { waiting, reply }).await
    }

    /// Ends when the thread does, with its failure.
    pub(super) async fn why(&self) -> MigrationError {
        let mut ended = self.ended.clone();
        let ending = ended.wait_for(Option::is_some).await.ok().and_then(|ending| ending.clone());
        let unexpected =
            || MigrationError::new(ErrorCode::Internal, "the destination's engine thread ended unexpectedly");
        ending.and_then(Result::err).unwrap_or_else(unexpected)
    }

    /// After [`Engine::resume`]: waits until nothing is left to be done for the copy. The warnings of that.
    pub(super) async fn settled(&self) -> Vec<String> {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await.ok().and_then(|ending| ending.clone()) {
            Some(Ok(warnings)) => warnings,
            Some(Err(error)) => vec![error.message],
            None => Vec::new(),
        }
    }

    /// Lets go and waits until the thread has put everything back that a running copy does not need.
    pub(super) async fn release(self) {
        let mut ended = self.ended;
        drop(self.commands);
        let _ = ended.wait_for(Option::is_some).await;
    }

    async fn give(&self, command: Command) -> Result<(), MigrationError> {
        match self.commands.send(command).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.why().await),
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, MigrationError> {
        let (reply, answer) = oneshot::channel();
        self.give(command(reply)).await?;
        match answer.await {
            Ok(done) => Ok(done),
            Err(_) => Err(self.why().await),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn network_error(error: network::Error) -> MigrationError {
    MigrationError::caused(ErrorCode::NetworkFailed, &error).hint(error.hint().unwrap_or_default())
}

/// The copy and its network, until one of them ends.
struct Copy {
    network: Applied,
    announcer: Announcer,
    /// None: not wanted, or it does not work here.
    injector: Option<Injector>,
    placement: Placement,
    unpacker: Unpacker,
    /// Time that the last layout took.
    reconcile: Duration,
}

/// A round whose end has come and is answered once the rounds before it are in place, or at `until`.
struct Closing {
    reply: oneshot::Sender<Whole>,
    until: Instant,
}

fn run(
    plan: &Plan,
    mut commands: mpsc::Receiver<Command>,
    ready: oneshot::Sender<Begun>,
) -> Result<Vec<String>, MigrationError> {
    let (mut copy, begun) = prepare(plan)?;
    // A driver that is gone lets go at once, below.
    let _ = ready.send(begun);
    let mut closing = None;
    // While something waits that may be put in place, that goes on in slices between the commands.
    while let Some(command) = next(&mut commands, copy.placement.lags() || closing.is_some()) {
        match command {
            Some(Command::Layout { document, round, is_final }) => copy.layout(&document, round, is_final)?,
            Some(Command::Pages(pages)) => copy.fill(pages)?,
            Some(Command::Later(later)) => copy.placement.go_without(later),
            Some(Command::Outdated(outdated)) => copy.placement.drop_outdated(&outdated)?,
            // A driver that is gone lets go.
            Some(Command::Settle(reply)) => drop(reply.send(())),
            Some(Command::RoundEnd(reply)) => {
                closing = Some(Closing { reply, until: Instant::now() + plan.catch_up });
            }
            Some(Command::Restore { state, received, reply }) => {
                let _ = reply.send(copy.restore(&state, received)?);
            }
            Some(Command::Contents(reply)) => {
                let contents = copy.placement.contents(&|| reply.is_closed())?;
                let _ = reply.send(contents);
            }
            Some(Command::Resume { waiting, reply }) => return copy.resume(&waiting, reply),
            None => {}
        }
        copy.placement.place_some()?;
        closing = closing.and_then(|round| copy.close(round));
    }
    Ok(Vec::new())
}

/// The next command: waits for it, unless there is something else to do. `None` when the driver has let go.
#[expect(clippy::option_option, reason = "no command is not the end of commands")]
fn next(commands: &mut mpsc::Receiver<Command>, busy: bool) -> Option<Option<Command>> {
    if !busy {
        return commands.blocking_recv().map(Some);
    }
    match commands.try_recv() {
        Ok(command) => Some(Some(command)),
        Err(TryRecvError::Empty) => Some(None),
        Err(TryRecvError::Disconnected) => None,
    }
}

fn prepare(plan: &Plan) -> Result<(Copy, Begun), MigrationError> {
    let namespace = Namespace::of(plan.pid).map_err(network_error)?;
    let destination = Destination::adopt(Pid(plan.pid), plan.options.clone()).map_err(restore_error)?;
    let interfaces = match plan.close_connections {
        true => network::native(&namespace, &plan.interfaces).map_err(network_error)?,
        false => plan.interfaces.clone(),
    };
    let network =
        network::apply(namespace, &plan.container, &interfaces, &plan.network).map_err(network_error)?;
    let announcer = Announcer::prepare(network.namespace(), &interfaces).map_err(network_error)?;
    let injector = injector(plan, network.namespace());
    let begun = Begun { warnings: network.warnings().to_vec(), interfaces };
    fault::reached(Point::DestinationNetworkBuilt);
    let placement = Placement::new(destination, plan.staging)?;
    let copy = Copy {
        network,
        announcer,
        injector,
        placement,
        unpacker: Unpacker::default(),
        reconcile: Duration::ZERO,
    };
    Ok((copy, begun))
}

/// A courtesy to clients: without it they wait for TCP's retransmission.
fn injector(plan: &Plan, namespace: &Namespace) -> Option<Injector> {
    if plan.capture_bytes == 0 || plan.close_connections {
        return None;
    }
    let prepared = Injector::prepare(namespace, &plan.interfaces, plan.capture_bytes);
    let failed =
        |error| tracing::warn!("clients that speak during the stop will wait longer: {}", chain(&error));
    prepared.map_err(failed).ok()
}

impl Copy {
    fn layout(&mut self, document: &[u8], round: u32, is_final: bool) -> Result<(), MigrationError> {
        let began = Instant::now();
        self.placement.follow(wire::document(document)?, round, is_final)?;
        self.reconcile = began.elapsed();
        Ok(())
    }

    fn fill(&mut self, pages: Pages) -> Result<(), MigrationError> {
        let Pages { batch, room } = pages;
        self.placement.take(&batch.unpack(&mut self.unpacker)?)?;
        drop(room);
        Ok(())
    }

    /// Answers the end of a round if it is time; else it comes back.
    fn close(&mut self, round: Closing) -> Option<Closing> {
        if self.placement.lags() && Instant::now() < round.until {
            return Some(round);
        }
        self.placement.seal();
        let whole = Whole { staged_bytes: self.placement.staged_bytes(), backlog: self.placement.backlog() };
        // A driver that is gone lets go.
        let _ = round.reply.send(whole);
        None
    }

    fn restore(&mut self, state: &[u8], received: Instant) -> Result<Restored, MigrationError> {
        let state: FinalState = wire::document(state)?;
        let staging_peak_bytes = self.placement.peak_bytes();
        let waited = received.elapsed();
        let (filled, parts) = self.placement.restore(&state)?;
        let ledger = DestinationLedger {
            fill_ns: ns(waited + filled),
            reconcile_ns: ns(self.reconcile),
            files_ns: ns(parts.files),
            tasks_ns: ns(parts.tasks),
            resume_ns: 0,
            verify_ns: 0,
            restore_ns: ns(received.elapsed()),
        };
        Ok(Restored { ledger, staging_peak_bytes, lacks: self.placement.take_lacks() })
    }

    /// First what the death of the agent may not undo halfway, then the network, then the tasks. The answer comes as
    /// soon as these run; what the source need not wait for comes after it.
    fn resume(
        mut self,
        waiting: &Waiting,
        reply: oneshot::Sender<Resumed>,
    ) -> Result<Vec<String>, MigrationError> {
        let began = Instant::now();
        let mut warnings = Vec::new();
        let mut destination = self.placement.into_destination();
        // The connections live by now, whatever it says; what they say is dropped, and said again.
        warnings.extend(destination.wake_sockets().err().map(|error| chain(&error)));
        // ==> From here on the copy runs also when the agent dies.
        warnings.extend(destination.keep().err().map(|error| chain(&error)));
        let opened = self.network.open();
        fault::reached(Point::DestinationOpened);
        warnings.extend(opened.err().map(|error| chain(&error)));
        warnings.extend(self.announcer.announce().err().map(|error| chain(&error)));
        destination.push_sockets();
        // What has waited goes ahead of what peers send next.
        if let Some(injector) = &mut self.injector {
            waiting.iter().for_each(|arrival| injector.inject(arrival));
        }
        // The tasks run by now, whatever it says.
        warnings.extend(destination.resume().err().map(|error| chain(&error)));
        let at = Instant::now();
        warnings.extend(self.announcer.announce().err().map(|error| chain(&error)));
        // A driver that is gone does not stop the copy.
        let (announcer, injector) = (self.announcer, self.injector);
        drop(reply.send(Resumed { at, elapsed: at - began, announcer, injector, warnings }));
        Ok(self.network.keep().err().map(|error| chain(&error)).into_iter().collect())
    }
}
