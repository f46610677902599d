//! The thread that owns the source container.
//!
//! A traced task belongs to the thread that seized it, so one thread makes every engine call of a migration, and
//! keeps the network lock as well. The driver sends it one step at a time. Its life follows the type states of
//! the engine: open, rounds, frozen; letting go of the [`Engine`] ends it, and the container runs on - except after
//! [`Engine::committed`], from where on it never runs again here by itself.

use std::io;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use pclive_engine::capture::{CaptureError, Dumped, Frozen, RoundStats, Source, SourceOptions};
use pclive_engine::model::{Blocker, Pid};
use pclive_proto::peer::source_message::Message;
use pclive_proto::peer::{FinalState, RoundEnd};
use tokio::sync::oneshot;

use super::relay::Relay;
use super::sink::{Outlet, RoundSink};
use crate::error::{ErrorCode, MigrationError, chain};
use crate::migration::throttle::Throttle;
use crate::migration::wire;
use crate::network::{self, Interface, Lock, Namespace, Tenure};

/// Where a step's outcome goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, MigrationError>>;
/// Where a step's outcome comes from.
pub(super) type Answer<T> = oneshot::Receiver<Result<T, MigrationError>>;

/// What the thread needs to begin.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) container: String,
    pub(super) pid: i32,
    pub(super) options: SourceOptions,
    /// Most bytes of frames that are kept while the container is stopped; 0: none.
    pub(super) capture_bytes: u64,
    pub(super) outlet: Outlet,
    /// Most bytes a second while the container runs.
    pub(super) bandwidth: Option<u64>,
}

/// What it found when it opened the container.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) blockers: Vec<Blocker>,
    pub(super) memory_bytes: u64,
    pub(super) interfaces: Vec<Interface>,
}

/// What a round moved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moved {
    pub(super) stats: RoundStats,
    /// On the wire.
    pub(super) bytes: u64,
    /// From the first scan to the last message handed to the stream.
    pub(super) elapsed: Duration,
    /// When it began.
    pub(super) began: Instant,
}

/// What a final dump came to.
#[derive(Debug)]
pub(super) struct Dump {
    pub(super) moved: Moved,
    /// What cannot be carried at this instant: the container runs on, and what was moved is a round like any other.
    pub(super) obstacles: Vec<Blocker>,
}

/// A container that was stopped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stopped {
    /// When the first task was about to be stopped: the downtime begins here.
    pub(super) began: Instant,
    /// Until every task was stopped and the network silent.
    pub(super) elapsed: Duration,
}

#[derive(Debug)]
enum Step {
    Round(u32, Reply<Moved>),
    Pending(Reply<Option<u64>>),
    Freeze(Option<Throttle>, Reply<Stopped>),
    Dump(u32, Reply<Dump>),
    Hold(Reply<()>),
    Committed,
    Destroy(Reply<()>),
    Retire(Reply<()>),
    LetGo,
}

/// The driver's handle of the thread.
#[derive(Debug)]
pub(super) struct Engine {
    steps: Sender<Step>,
    ended: oneshot::Receiver<()>,
}

impl Engine {
    /// Starts the thread and opens the container; nothing of it is stopped or changed.
    pub(super) fn start(plan: Plan) -> io::Result<(Self, Answer<Opened>)> {
        let (steps, received) = channel();
        let (opened, answer) = oneshot::channel();
        let (alive, ended) = oneshot::channel();
        let span = tracing::Span::current();
        thread::Builder::new().name("source".into()).spawn(move || {
            let _entered = span.enter();
            run(&plan, &received, opened);
            drop(alive);
        })?;
        Ok((Self { steps, ended }, answer))
    }

    /// One round while the container runs: layout, pages, `RoundEnd`.
    pub(super) fn round(&self, number: u32) -> Answer<Moved> {
        self.ask(|reply| Step::Round(number, reply))
    }

    /// Counts the pages written since the last round began; `None` when that could not be done.
    pub(super) fn pending(&self) -> Answer<Option<u64>> {
        self.ask(Step::Pending)
    }

    /// Stops the container and silences its network. A throttle is lifted just before: tasks without CPU time would
    /// not come to their stop.
    pub(super) fn freeze(&self, throttle: Option<Throttle>) -> Answer<Stopped> {
        self.ask(|reply| Step::Freeze(throttle, reply))
    }

    /// The final dump: layout, last pages, `FinalState`. With obstacles the container has been let go again, the round
    /// is ended by `RoundEnd`, and the thread takes rounds and another freeze.
    pub(super) fn dump(&self, number: u32) -> Answer<Dump> {
        self.ask(|reply| Step::Dump(number, reply))
    }

    /// Makes the stop outlive the agent.
    pub(super) fn hold(&self) -> Answer<()> {
        self.ask(Step::Hold)
    }

    /// The point of no return: from here on the container is not let go when this handle is dropped.
    pub(super) fn committed(&self) {
        // A thread that is gone has nothing to let go either.
        let _ = self.steps.send(Step::Committed);
    }

    /// Kills the container; it runs elsewhere. Its network stays, silent: frames still arrive there.
    pub(super) fn destroy(&self) -> Answer<()> {
        self.ask(Step::Destroy)
    }

    /// Takes the network of the destroyed container away once nothing arrives there any more.
    pub(super) fn retire(&self) -> Answer<()> {
        self.ask(Step::Retire)
    }

    /// After the commit: the destination has promised that its copy never runs, so the container goes on here.
    pub(super) fn let_go(&self) {
        // A thread that is gone has left the container to the journal.
        let _ = self.steps.send(Step::LetGo);
    }

    /// Lets go and waits until the thread has put everything back.
    pub(super) async fn release(self) {
        drop(self.steps);
        // Its end closes the channel; there is no value.
        let _ = self.ended.await;
    }

    fn ask<T>(&self, step: impl FnOnce(Reply<T>) -> Step) -> Answer<T> {
        let (reply, answer) = oneshot::channel();
        // A thread that is gone drops the reply, which the answer shows.
        let _ = self.steps.send(step(reply));
        answer
    }
}

fn capture_error(plan: &Plan) -> impl Fn(CaptureError) -> MigrationError {
    move |error| match error {
        CaptureError::Blocked(blockers) => MigrationError::blocked(&plan.container, blockers),
        error => MigrationError::caused(ErrorCode::CaptureFailed, &error),
    }
}

fn network_error(error: network::Error) -> MigrationError {
    let hint = error.hint().unwrap_or_default();
    MigrationError::caused(ErrorCode::NetworkFailed, &error).hint(hint)
}

fn out_of_step(step: &str) -> MigrationError {
    MigrationError::new(ErrorCode::Internal, format!("cannot take step {step} now"))
}

/// Answers a step; `None` when it failed, which ends the thread.
fn tell<T>(reply: Reply<T>, outcome: Result<T, MigrationError>) -> Option<()> {
    let ok = outcome.is_ok();
    // A driver that is gone has let go: the next step will not come.
    let _ = reply.send(outcome);
    ok.then_some(())
}

struct Opening {
    source: Source,
    namespace: Namespace,
    interfaces: Vec<Interface>,
}

fn run(plan: &Plan, steps: &Receiver<Step>, opened: Reply<Opened>) {
    let (opening, found) = match open(plan) {
        Ok(done) => done,
        Err(error) => {
            let _ = opened.send(Err(error));
            return;
        }
    };
    let _ = opened.send(Ok(found));
    // Every way out of the steps that is not an end in itself lets the container run on.
    let _ = rounds(plan, steps, opening);
}

fn open(plan: &Plan) -> Result<(Opening, Opened), MigrationError> {
    let mut source = Source::open(Pid(plan.pid), plan.options.clone()).map_err(capture_error(plan))?;
    let blockers = source.check().map_err(capture_error(plan))?;
    let memory_bytes = source.memory_bytes().map_err(capture_error(plan))?;
    let namespace = Namespace::of(plan.pid).map_err(network_error)?;
    namespace.refuse_host().map_err(network_error)?;
    let interfaces = network::capture(&namespace).map_err(network_error)?;
    let found = Opened { blockers, memory_bytes, interfaces: interfaces.clone() };
    Ok((Opening { source, namespace, interfaces }, found))
}

/// `None` when the driver has let go or a step failed.
fn rounds(plan: &Plan, steps: &Receiver<Step>, opening: Opening) -> Option<()> {
    let Opening { mut source, namespace, interfaces } = opening;
    loop {
        match steps.recv().ok()? {
            Step::Round(number, reply) => tell(reply, round(plan, &mut source, number))?,
            Step::Pending(reply) => {
                // Not worth ending a migration for: without it the rounds' own figures are used.
                let counted = source.pending_pages();
                let counted = counted.inspect_err(|error| tracing::debug!("cannot count: {}", chain(error)));
                tell(reply, Ok(counted.ok()))?;
            }
            Step::Freeze(throttle, reply) => {
                let reached = freeze(plan, steps, &mut source, (&namespace, &interfaces), throttle, reply)?;
                let Reached::Rounds(put_off) = reached else { return None };
                put_off.tell(plan)?;
            }
            Step::Dump(_, reply) => tell(reply, Err(out_of_step("dump")))?,
            Step::Hold(reply) | Step::Destroy(reply) | Step::Retire(reply) => {
                tell(reply, Err(out_of_step("hold, destroy or retire")))?;
            }
            Step::Committed | Step::LetGo => return None,
        }
    }
}

fn round(plan: &Plan, source: &mut Source, number: u32) -> Result<Moved, MigrationError> {
    let began = Instant::now();
    let mut sink = RoundSink::new(&plan.outlet, number, plan.bandwidth);
    let stats = source.round(&mut sink).map_err(capture_error(plan))?;
    let bytes = sink.bytes + end_round(plan, number, &stats)?;
    Ok(Moved { stats, bytes, elapsed: began.elapsed(), began })
}

fn end_round(plan: &Plan, round: u32, stats: &RoundStats) -> Result<u64, MigrationError> {
    send(plan, Message::RoundEnd(RoundEnd { round, data_pages: stats.data_pages }))
}

fn send(plan: &Plan, message: Message) -> Result<u64, MigrationError> {
    let sent = plan.outlet.send(wire::source_message(message));
    sent.map_err(|error| MigrationError::caused(ErrorCode::PeerLost, &error))
}

fn freeze(
    plan: &Plan,
    steps: &Receiver<Step>,
    source: &mut Source,
    (namespace, interfaces): (&Namespace, &[Interface]),
    throttle: Option<Throttle>,
    reply: Reply<Stopped>,
) -> Option<Reached> {
    // What can fail or is slow comes before the stop.
    let prepared =
        Lock::prepare(namespace, &plan.container, interfaces, Tenure::Agent).map_err(network_error);
    let mut lock = match prepared {
        Ok(lock) => lock,
        Err(error) => return refused(reply, error),
    };
    let mut relay = Relay::prepare(namespace, interfaces, plan.capture_bytes);
    drop(throttle);
    let began = Instant::now();
    let mut frozen = match source.freeze() {
        Ok(frozen) => frozen,
        Err(error) => return refused(reply, capture_error(plan)(error)),
    };
    relay.listen();
    let engaged = lock.engage().map_err(network_error);
    tell(reply, engaged.map(|()| Stopped { began, elapsed: began.elapsed() }))?;
    let reached = stopped(plan, steps, &mut frozen, &mut lock, &mut relay);
    match reached {
        Some(Reached::Commit) => {
            committed(plan, steps, frozen, lock, relay, (namespace, interfaces));
        }
        Some(Reached::Rounds(_)) | None => let_go(frozen, lock, relay),
    }
    reached
}

/// A step that failed, which ends the thread.
fn refused<T>(reply: Reply<T>, error: MigrationError) -> Option<Reached> {
    tell(reply, Err(error))?;
    None
}

/// How a stop ended.
enum Reached {
    /// COMMIT was sent.
    Commit,
    /// It was put off: the container runs, and rounds go on.
    Rounds(PutOff),
}

/// A final dump that is to be ended as a round, and told, once the container runs again.
struct PutOff {
    number: u32,
    dump: Dump,
    reply: Reply<Dump>,
}

impl PutOff {
    fn tell(mut self, plan: &Plan) -> Option<()> {
        let ended = end_round(plan, self.number, &self.dump.moved.stats);
        self.dump.moved.bytes += ended.as_ref().copied().unwrap_or_default();
        tell(self.reply, ended.map(|_| self.dump))
    }
}

fn stopped(
    plan: &Plan,
    steps: &Receiver<Step>,
    frozen: &mut Frozen<'_>,
    lock: &mut Lock,
    relay: &mut Relay,
) -> Option<Reached> {
    loop {
        match steps.recv().ok()? {
            Step::Dump(number, reply) => match dump(plan, frozen, number) {
                Ok(dump) if !dump.obstacles.is_empty() => {
                    return Some(Reached::Rounds(PutOff { number, dump, reply }));
                }
                dumped => {
                    tell(reply, dumped)?;
                    // The destination restores meanwhile.
                    relay.send_ahead(&plan.outlet);
                }
            },
            Step::Hold(reply) => {
                let held = hold(plan, frozen, lock);
                relay.send_ahead(&plan.outlet);
                tell(reply, held)?;
            }
            Step::Committed => return Some(Reached::Commit),
            Step::LetGo => return None,
            Step::Round(_, reply) => tell(reply, Err(out_of_step("round")))?,
            Step::Pending(reply) => tell(reply, Err(out_of_step("pending")))?,
            Step::Freeze(_, reply) => tell(reply, Err(out_of_step("freeze")))?,
            Step::Destroy(reply) | Step::Retire(reply) => {
                tell(reply, Err(out_of_step("destroy or retire")))?;
            }
        }
    }
}

fn dump(plan: &Plan, frozen: &mut Frozen<'_>, number: u32) -> Result<Dump, MigrationError> {
    let began = Instant::now();
    let mut sink = RoundSink::last(&plan.outlet, number);
    let (stats, dumped) = frozen.dump(&mut sink).map_err(capture_error(plan))?;
    let (bytes, obstacles) = match dumped {
        Dumped::State(state) => {
            let state = wire::encode(&*state)?.into();
            let message = FinalState { state, data_pages: stats.data_pages };
            (send(plan, Message::FinalState(message))?, Vec::new())
        }
        Dumped::NotNow(obstacles) => (0, obstacles),
    };
    let moved = Moved { stats, bytes: sink.bytes + bytes, elapsed: began.elapsed(), began };
    Ok(Dump { moved, obstacles })
}

fn hold(plan: &Plan, frozen: &mut Frozen<'_>, lock: &mut Lock) -> Result<(), MigrationError> {
    frozen.hold().map_err(capture_error(plan))?;
    lock.outlive_agent().map_err(network_error)
}

/// After the commit: destroyed, let go on the destination's word, or kept stopped.
fn committed(
    plan: &Plan,
    steps: &Receiver<Step>,
    frozen: Frozen<'_>,
    lock: Lock,
    mut relay: Relay,
    (namespace, interfaces): (&Namespace, &[Interface]),
) {
    match next(plan, steps, &mut relay) {
        Some(Step::Destroy(reply)) => {
            // What cannot be killed is told; the network goes all the same.
            let _ = tell(reply, frozen.destroy().map_err(capture_error(plan)));
            retire(plan, steps, relay, namespace, interfaces);
            // The namespace ends with the container.
            lock.abandon();
        }
        Some(Step::LetGo) => let_go(frozen, lock, relay),
        // The outcome is not known: neither the tasks nor the network may be let go.
        Some(
            Step::Round(..)
            | Step::Pending(_)
            | Step::Freeze(..)
            | Step::Dump(..)
            | Step::Hold(_)
            | Step::Committed
            | Step::Retire(_),
        )
        | None => {
            lock.abandon();
            frozen.abandon();
        }
    }
}

/// First the network, then the tasks: the first thing that a task sends must pass.
fn let_go(frozen: Frozen<'_>, lock: Lock, relay: Relay) {
    let heard = relay.stop();
    drop(lock);
    drop(frozen);
    if let Some(heard) = heard {
        heard.give_back();
    }
}

/// Frames are handed on while the driver has other things to do, and until nothing comes any more.
fn retire(
    plan: &Plan,
    steps: &Receiver<Step>,
    mut relay: Relay,
    namespace: &Namespace,
    interfaces: &[Interface],
) {
    let destroyed = Instant::now();
    let step = next(plan, steps, &mut relay);
    relay.linger(&plan.outlet, destroyed);
    let retired = network::retire(namespace, &plan.container, interfaces).map_err(network_error);
    if let Some(Step::Retire(reply)) = step {
        let _ = tell(reply, retired);
    } else if let Err(error) = retired {
        tracing::warn!("{error}");
    }
}

/// The driver's next step; frames are handed on meanwhile. `None` when the driver is gone.
fn next(plan: &Plan, steps: &Receiver<Step>, relay: &mut Relay) -> Option<Step> {
    loop {
        match steps.try_recv() {
            Ok(step) => return Some(step),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => relay.forward(&plan.outlet),
        }
    }
}
