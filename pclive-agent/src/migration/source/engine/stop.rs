//! The stopped container: frozen, dumped, held; then let go, destroyed, or kept.

use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use pclive_engine::capture::{Dumped, Frozen, LastPages, Source};
use pclive_engine::memory::contents::{self, Unwanted};
use pclive_proto::peer::FinalState;
use pclive_proto::peer::source_message::Message;

use super::{
    Digested, Dump, Moved, Network, Plan, Reply, Step, Stopped, capture_error, end_round, network_error,
    out_of_step, send, stream_error, tell,
};
use crate::error::{MigrationError, chain};
use crate::fault::{self, Point};
use crate::migration::document;
use crate::migration::source::relay::Relay;
use crate::migration::source::sink::RoundSink;
use crate::migration::throttle::Throttle;
use crate::network::{self, Lock, Tenure};

/// What keeps the network of the stopped container, in working order. It takes tens of milliseconds, in which a running
/// container writes what the stop has to send: it is prepared while there is time.
pub(super) struct Gate {
    lock: Lock,
    relay: Relay,
}

impl Gate {
    /// What can fail or is slow.
    pub(super) fn prepare(plan: &Plan, network: &Network) -> Result<Self, MigrationError> {
        let Network { namespace, interfaces, .. } = network;
        let lock = Lock::prepare(namespace, &plan.container, interfaces, Tenure::Agent);
        let lock = lock.map_err(network_error)?;
        Ok(Self { lock, relay: Relay::prepare(namespace, interfaces, plan.capture_bytes) })
    }
}

pub(super) fn freeze(
    plan: &Plan,
    steps: &Receiver<Step>,
    source: &mut Source,
    network: &Network,
    (gate, throttle): (Result<Gate, MigrationError>, Option<Throttle>),
    reply: Reply<Stopped>,
) -> Option<Reached> {
    let Gate { mut lock, mut relay } = match gate {
        Ok(gate) => gate,
        Err(error) => return refused(reply, error),
    };
    let Network { namespace, interfaces, .. } = network;
    if let Err(error) = lock.recheck(namespace) {
        return refused(reply, network_error(error));
    }
    if !relay.is_ready() {
        relay = Relay::prepare(namespace, interfaces, plan.capture_bytes);
    }
    fault::reached(Point::SourceLockPrepared);
    drop(throttle);
    if let Err(error) = source.await_moment() {
        return refused(reply, capture_error(plan)(error));
    }
    let mut frozen = match source.freeze() {
        Ok(frozen) => frozen,
        Err(error) => return refused(reply, capture_error(plan)(error)),
    };
    let began = frozen.began();
    relay.listen();
    let engaged = lock.engage().map_err(network_error);
    fault::reached(Point::SourceLocked);
    tell(reply, engaged.map(|()| Stopped { began, elapsed: began.elapsed() }))?;
    let reached = stopped(plan, steps, &mut frozen, &mut lock, &mut relay);
    match reached {
        Some(Reached::Commit) => {
            committed(plan, steps, frozen, lock, relay, network);
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
pub(super) enum Reached {
    /// COMMIT was sent.
    Commit,
    /// It was put off: the container runs, and rounds go on.
    Rounds(Box<PutOff>),
}

/// A final dump that is to be ended as a round, and told, once the container runs again.
pub(super) struct PutOff {
    number: u32,
    dump: Dump,
    reply: Reply<Dump>,
}

impl PutOff {
    pub(super) fn tell(mut self, plan: &Plan) -> Option<()> {
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
            Step::Dump(number, last, reply) => match dump(plan, frozen, number, last) {
                Ok(dump) if !dump.obstacles.is_empty() => {
                    return Some(Reached::Rounds(Box::new(PutOff { number, dump, reply })));
                }
                dumped => {
                    tell(reply, dumped)?;
                    // The destination restores meanwhile.
                    relay.send_ahead(&plan.outlet);
                }
            },
            Step::Contents(reply) => {
                let contents = digested(plan, frozen, &|| reply.is_closed());
                tell(reply, contents)?;
            }
            Step::Hold(reply) => {
                let held = hold(plan, frozen, lock);
                relay.send_ahead(&plan.outlet);
                tell(reply, held)?;
            }
            Step::Committed => return Some(Reached::Commit),
            Step::LetGo => return None,
            Step::Round(_, _, reply) => tell(reply, Err(out_of_step("round")))?,
            Step::Elsewhere(_, reply) => tell(reply, Err(out_of_step("elsewhere")))?,
            Step::Pending(reply) => tell(reply, Err(out_of_step("pending")))?,
            Step::Outdated(reply) => tell(reply, Err(out_of_step("outdated")))?,
            Step::Freeze(_, reply) => tell(reply, Err(out_of_step("freeze")))?,
            Step::Destroy(reply) | Step::Keep(reply) | Step::Retire(reply) => {
                tell(reply, Err(out_of_step("destroy, keep or retire")))?;
            }
        }
    }
}

fn dump(plan: &Plan, frozen: &mut Frozen<'_>, number: u32, last: LastPages) -> Result<Dump, MigrationError> {
    let began = Instant::now();
    let mut sink = RoundSink::last(&plan.outlet, number);
    let (mut stats, dumped) = frozen.dump(&mut sink, last).map_err(capture_error(plan))?;
    let (bytes, state_digest, obstacles) = match dumped {
        Dumped::State(state) => {
            let (parts, state) = document::encode(&*state)?;
            let digest = document::digest(&parts, &state);
            let sending = Instant::now();
            let ahead = plan.outlet.send_parts(parts).map_err(|error| stream_error(&error))?;
            let (data_pages, later_pages) = (stats.data_pages, stats.later_pages);
            let message = FinalState { state, data_pages, later_pages };
            let bytes = ahead + send(plan, Message::FinalState(message))?;
            // It waits until the pages before it are on their way, as each of them did.
            stats.read += sending.elapsed();
            fault::reached(Point::SourceStateSent);
            (bytes, Some(digest), Vec::new())
        }
        Dumped::NotNow(obstacles) => (0, None, obstacles),
    };
    let moved =
        Moved { stats, bytes: sink.bytes + bytes, saved: sink.saved, elapsed: began.elapsed(), began };
    Ok(Dump { moved, obstacles, state_digest, places: contents::count(frozen.layout()) })
}

/// Reads the container's memory once more, unless the driver has gone; frames that arrive meanwhile wait in their socket.
fn digested(plan: &Plan, frozen: &Frozen<'_>, unwanted: Unwanted<'_>) -> Result<Digested, MigrationError> {
    let contents = frozen.contents(unwanted).map_err(capture_error(plan))?;
    fault::reached(Point::SourceCompared);
    let places = contents::places(frozen.layout()).collect();
    Ok(Digested { contents, places, pids: frozen.pids_by_vpid() })
}

fn hold(plan: &Plan, frozen: &mut Frozen<'_>, lock: &mut Lock) -> Result<(), MigrationError> {
    frozen.hold().map_err(capture_error(plan))?;
    lock.outlive_agent().map_err(network_error)?;
    fault::reached(Point::SourceLockOutlives);
    Ok(())
}

/// After the commit: destroyed, let go on the destination's word, or kept stopped.
fn committed(
    plan: &Plan,
    steps: &Receiver<Step>,
    mut frozen: Frozen<'_>,
    mut lock: Lock,
    mut relay: Relay,
    network: &Network,
) {
    match next(plan, steps, &mut relay) {
        Some(Step::Destroy(reply)) => {
            if network.stays {
                // Its peers are to hear that their connections end. What cannot be opened, they learn by their timers.
                frozen.unmute();
                let _ = lock.release().inspect_err(|error| tracing::warn!("{}", chain(error)));
            }
            // What cannot be killed is told; the network goes all the same.
            let _ = tell(reply, frozen.destroy().map_err(capture_error(plan)));
            retire(plan, steps, relay, network);
            // The namespace ends with the container.
            lock.abandon();
        }
        Some(Step::Keep(reply)) => {
            frozen.abandon();
            lock.abandon();
            relay.linger(&plan.outlet, Instant::now());
            let _ = tell(reply, Ok(()));
        }
        Some(Step::LetGo) => let_go(frozen, lock, relay),
        // The outcome is not known: neither the tasks nor the network may be let go.
        Some(
            Step::Round(..)
            | Step::Elsewhere(..)
            | Step::Pending(_)
            | Step::Outdated(_)
            | Step::Freeze(..)
            | Step::Dump(..)
            | Step::Contents(_)
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
fn retire(plan: &Plan, steps: &Receiver<Step>, mut relay: Relay, network: &Network) {
    let destroyed = Instant::now();
    let step = next(plan, steps, &mut relay);
    relay.linger(&plan.outlet, destroyed);
    fault::reached(Point::SourceRelayed);
    // The addresses that stay are the site's to take away.
    let interfaces = if network.stays { &[] } else { network.interfaces.as_slice() };
    let retired = network::retire(&network.namespace, &plan.container, interfaces).map_err(network_error);
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
