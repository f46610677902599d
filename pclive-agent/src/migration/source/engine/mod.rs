//! The thread that owns the source container.
//!
//! A traced task belongs to the thread that seized it, so one thread makes every engine call of a migration, and
//! keeps the network lock as well. The driver sends it one step at a time. Its life follows the type states of
//! the engine: open, rounds, frozen; letting go of the [`Engine`] ends it, and the container runs on - except after
//! [`Engine::committed`], from where on it never runs again here by itself.

mod stop;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use pclive_engine::capture::{CaptureError, LastPages, RoundStats, SinkError, Source, SourceOptions};
use pclive_engine::memory::contents::{Contents, Place};
use pclive_engine::model::{Blocker, Pid, Vpid};
use pclive_engine::tail::Later;
use pclive_proto::peer::source_message::Message;
use pclive_proto::peer::{RoundEnd, Settle};
use tokio::sync::oneshot;

use self::stop::{Gate, Reached};
use super::sink::{Outlet, RoundSink};
use crate::error::{ErrorCode, MigrationError, chain};
use crate::fault::{self, Point};
use crate::migration::source::sink::later_messages;
use crate::migration::throttle::Throttle;
use crate::migration::wire;
use crate::network::{self, Interface, Namespace};

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
}

/// What it found when it opened the container.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) blockers: Vec<Blocker>,
    pub(super) memory_bytes: u64,
    pub(super) interfaces: Vec<Interface>,
    /// What of its network stays behind.
    pub(super) unmoved: Vec<String>,
}

/// What a round moved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moved {
    pub(super) stats: RoundStats,
    /// On the wire.
    pub(super) bytes: u64,
    /// What compressing has kept off it.
    pub(super) saved: u64,
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
    /// Digest of the state that was sent.
    pub(super) state_digest: Option<u64>,
    /// How many digests there are of such a container.
    pub(super) places: usize,
}

/// What the stopped container has in memory.
#[derive(Debug)]
pub(super) struct Digested {
    pub(super) contents: Contents,
    /// What each digest is of.
    pub(super) places: Vec<Place>,
    /// The processes, by their ids inside the container.
    pub(super) pids: BTreeMap<Vpid, Pid>,
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
    Round(u32, Option<u64>, Reply<Moved>),
    Elsewhere(Vec<IpAddr>, Reply<bool>),
    Pending(Reply<Option<u64>>),
    Outdated(Reply<u64>),
    Freeze(Option<Throttle>, Reply<Stopped>),
    Dump(u32, LastPages, Reply<Dump>),
    Contents(Reply<Digested>),
    Hold(Reply<()>),
    Committed,
    Destroy(Reply<()>),
    Keep(Reply<()>),
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
    /// `bandwidth`: most bytes a second.
    pub(super) fn round(&self, number: u32, bandwidth: Option<u64>) -> Answer<Moved> {
        self.ask(|reply| Step::Round(number, bandwidth, reply))
    }

    /// The copy will have these addresses, and none of the container's connections: what needs another one is refused. Whether
    /// none of them is the container's own.
    pub(super) fn elsewhere(&self, addresses: Vec<IpAddr>) -> Answer<bool> {
        self.ask(|reply| Step::Elsewhere(addresses, reply))
    }

    /// Counts the pages written since the last round began; `None` when that could not be done.
    pub(super) fn pending(&self) -> Answer<Option<u64>> {
        self.ask(Step::Pending)
    }

    /// Tells the destination which pages it need not keep; how many are new among them.
    pub(super) fn outdated(&self) -> Answer<u64> {
        self.ask(Step::Outdated)
    }

    /// Stops the container and silences its network. A throttle is lifted just before: tasks without CPU time would
    /// not come to their stop.
    pub(super) fn freeze(&self, throttle: Option<Throttle>) -> Answer<Stopped> {
        self.ask(|reply| Step::Freeze(throttle, reply))
    }

    /// The final dump: layout, last pages, `FinalState`. With obstacles the container has been let go again, the round
    /// is ended by `RoundEnd`, and the thread takes rounds and another freeze.
    pub(super) fn dump(&self, number: u32, last: LastPages) -> Answer<Dump> {
        self.ask(|reply| Step::Dump(number, last, reply))
    }

    /// After the dump: digests of the container's memory.
    pub(super) fn contents(&self) -> Answer<Digested> {
        self.ask(Step::Contents)
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

    /// Leaves the container as it is, frozen and silent, whatever becomes of the agent; it runs elsewhere.
    pub(super) fn keep(&self) -> Answer<()> {
        self.ask(Step::Keep)
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
    network: Network,
}

/// The container's network at the source.
struct Network {
    namespace: Namespace,
    interfaces: Vec<Interface>,
    /// The copy lives with other addresses: these stay, and their connections end as any program's do.
    stays: bool,
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
    let unmoved = network::unmoved(&namespace);
    let found = Opened { blockers, memory_bytes, interfaces: interfaces.clone(), unmoved };
    let network = Network { namespace, interfaces, stays: false };
    Ok((Opening { source, network }, found))
}

/// `None` when the driver has let go or a step failed.
fn rounds(plan: &Plan, steps: &Receiver<Step>, opening: Opening) -> Option<()> {
    let Opening { mut source, mut network } = opening;
    let mut gate = None;
    loop {
        match steps.recv().ok()? {
            Step::Round(number, bandwidth, reply) => {
                tell(reply, round(plan, &mut source, number, bandwidth))?;
                // The destination has still something to do. What cannot be prepared now is told by the stop.
                gate = gate.or_else(|| Gate::prepare(plan, &network).ok());
            }
            Step::Elsewhere(there, reply) => {
                network.stays = network::differ(&network.interfaces, &there);
                tell(reply, elsewhere(plan, &source, &there).map(|()| network.stays))?;
            }
            Step::Pending(reply) => {
                // Not worth ending a migration for: without it the rounds' own figures are used.
                let counted = source.pending_pages();
                let counted = counted.inspect_err(|error| tracing::debug!("cannot count: {}", chain(error)));
                tell(reply, Ok(counted.ok()))?;
            }
            Step::Outdated(reply) => tell(reply, outdated(plan, &mut source))?,
            Step::Freeze(throttle, reply) => {
                let ready = gate.take().map_or_else(|| Gate::prepare(plan, &network), Ok);
                let reached = stop::freeze(plan, steps, &mut source, &network, (ready, throttle), reply)?;
                let Reached::Rounds(put_off) = reached else { return None };
                put_off.tell(plan)?;
                gate = Gate::prepare(plan, &network).ok();
            }
            Step::Dump(_, _, reply) => tell(reply, Err(out_of_step("dump")))?,
            Step::Contents(reply) => tell(reply, Err(out_of_step("contents")))?,
            Step::Hold(reply) | Step::Destroy(reply) | Step::Keep(reply) | Step::Retire(reply) => {
                tell(reply, Err(out_of_step("hold, destroy, keep or retire")))?;
            }
            Step::Committed | Step::LetGo => return None,
        }
    }
}

fn round(
    plan: &Plan,
    source: &mut Source,
    number: u32,
    bandwidth: Option<u64>,
) -> Result<Moved, MigrationError> {
    let began = Instant::now();
    let mut sink = RoundSink::new(&plan.outlet, number, bandwidth);
    let stats = source.round(&mut sink).map_err(capture_error(plan))?;
    // The destination confirms the end of the round, so that the connection which brings it has no limit in a stop; others
    // follow with what they are given then. The next round sets its limit anew.
    plan.outlet.hurry();
    let bytes = sink.bytes + end_round(plan, number, &stats)?;
    fault::reached(Point::SourceRoundSent);
    Ok(Moved { stats, bytes, saved: sink.saved, elapsed: began.elapsed(), began })
}

fn elsewhere(plan: &Plan, source: &Source, addresses: &[IpAddr]) -> Result<(), MigrationError> {
    let blockers = source.check_addresses(addresses).map_err(capture_error(plan))?;
    if blockers.is_empty() { Ok(()) } else { Err(MigrationError::blocked(&plan.container, blockers)) }
}

fn outdated(plan: &Plan, source: &mut Source) -> Result<u64, MigrationError> {
    let found = source.outdated_pages().map_err(capture_error(plan))?;
    let pages = found.iter().map(Later::pages).sum();
    for outdated in &found {
        for message in later_messages(outdated) {
            send(plan, Message::Outdated(message))?;
        }
    }
    send(plan, Message::Settle(Settle {}))?;
    Ok(pages)
}

fn end_round(plan: &Plan, round: u32, stats: &RoundStats) -> Result<u64, MigrationError> {
    send(plan, Message::RoundEnd(RoundEnd { round, data_pages: stats.data_pages }))
}

fn send(plan: &Plan, message: Message) -> Result<u64, MigrationError> {
    plan.outlet.send(wire::source_message(message)).map_err(|error| stream_error(&error))
}

fn stream_error(error: &SinkError) -> MigrationError {
    MigrationError::caused(ErrorCode::PeerLost, error)
}
