//! Frames that arrived while the container stood still: to the destination after the commit, to the container
//! itself when it goes on here.
//!
//! What has arrived before the commit should be at the destination when the copy wakes: a client that hears the
//! copy sends new segments there, and what comes behind them looks late, or too old, and is retransmitted. But the
//! commit must not wait for it: so much is sent ahead as takes milliseconds, and kept here in case the container goes
//! on. The rest follows the commit at once, and so does what still arrives until the neighbours have learned the
//! new place.
//!
//! Failure: clients wait for TCP's retransmission, as they would without. It never stops a migration.

use std::thread;
use std::time::{Duration, Instant};

use pclive_proto::peer::Frames;
use pclive_proto::peer::source_message::Message;

use super::sink::Outlet;
use crate::error::chain;
use crate::migration::wire;
use crate::network::{self, Arrival, Injector, Interface, Namespace, Tap};

/// Contents in one message, about.
const MESSAGE_BYTES: usize = 256 << 10;
/// Most that is sent ahead of the commit.
const AHEAD_BYTES: usize = 4 << 20;
/// How long one look for frames waits.
const LOOK: Duration = Duration::from_millis(2);
/// The neighbours know the new place when nothing has come for the container for so long: the destination's second
/// announcement is in it.
const QUIET: Duration = Duration::from_millis(150);
/// Longest time that somebody who does not notice is served.
const LONGEST: Duration = Duration::from_secs(1);

/// What is needed to carry frames, in working order.
struct Ways {
    tap: Tap,
    /// Back into the container here.
    home: Injector,
}

/// The frames of one stop.
pub(super) struct Relay {
    /// None: switched off, or it does not work here.
    ways: Option<Ways>,
    is_wanted: bool,
    /// When the last frame for the container alone came.
    last: Instant,
    sent: u64,
    /// What was sent ahead of the commit.
    ahead: Vec<Arrival>,
    ahead_bytes: usize,
}

impl Relay {
    /// Everything that can fail or is slow; the container runs.
    pub(super) fn prepare(namespace: &Namespace, interfaces: &[Interface], limit_bytes: u64) -> Self {
        let is_wanted = limit_bytes > 0;
        let prepare = || {
            let tap = Tap::prepare(namespace, interfaces, limit_bytes)?;
            Ok(Ways { tap, home: Injector::prepare(namespace, interfaces, limit_bytes)? })
        };
        let told = |error: &network::Error| {
            tracing::warn!("clients that speak during the stop will wait longer: {}", chain(error));
        };
        let ways = if is_wanted { prepare().inspect_err(told).ok() } else { None };
        Self { ways, is_wanted, last: Instant::now(), sent: 0, ahead: Vec::new(), ahead_bytes: 0 }
    }

    /// Frames can be kept, or need not be.
    pub(super) fn is_ready(&self) -> bool {
        self.ways.is_some() || !self.is_wanted
    }

    /// From now on frames are kept: just before the network is locked.
    pub(super) fn listen(&mut self) {
        if let Some(Err(error)) = self.ways.as_ref().map(|ways| ways.tap.listen()) {
            tracing::warn!("clients that speak during the stop will wait longer: {}", chain(&error));
            self.ways = None;
        }
    }

    /// Before the commit: sends what has arrived so far, without waiting for anything.
    pub(super) fn send_ahead(&mut self, outlet: &Outlet) {
        let Some(ways) = &mut self.ways else { return };
        while self.ahead_bytes < AHEAD_BYTES && outlet.has_room() {
            let arrivals = ways.tap.take(MESSAGE_BYTES.min(AHEAD_BYTES - self.ahead_bytes));
            if arrivals.is_empty() {
                break;
            }
            self.ahead_bytes += arrivals.iter().map(|arrival| arrival.contents.len()).sum::<usize>();
            self.sent += arrivals.len() as u64;
            self.ahead.extend(arrivals.iter().cloned());
            offer(outlet, arrivals);
        }
    }

    /// After the commit: hands on what has arrived, waiting a moment for it. What finds no room in the stream waits.
    pub(super) fn forward(&mut self, outlet: &Outlet) {
        let Some(ways) = self.ways.as_mut().filter(|_| outlet.has_room()) else {
            return thread::sleep(LOOK);
        };
        ways.tap.wait(LOOK);
        let arrivals = ways.tap.take(MESSAGE_BYTES);
        if arrivals.iter().any(Arrival::is_unicast) {
            self.last = Instant::now();
        }
        self.sent += arrivals.len() as u64;
        if !arrivals.is_empty() {
            offer(outlet, arrivals);
        }
    }

    /// Goes on until nothing comes any more; the destination said at `running` that it runs.
    pub(super) fn linger(&mut self, outlet: &Outlet, running: Instant) {
        while self.ways.is_some() && running.elapsed() < LONGEST {
            if self.last.max(running).elapsed() >= QUIET {
                break;
            }
            self.forward(outlet);
        }
        if let Some(ways) = &mut self.ways {
            tracing::info!(sent = self.sent, lost = ways.tap.lost(), "frames that arrived during the stop");
        }
    }

    /// What has arrived, while the network here is still locked, for [`Heard::give_back`]. Nothing is heard from here
    /// on, least of all what is given back.
    pub(super) fn stop(self) -> Option<Heard> {
        let Ways { mut tap, home } = self.ways?;
        let mut arrivals = self.ahead;
        loop {
            let more = tap.take(MESSAGE_BYTES);
            if more.is_empty() {
                return Some(Heard { arrivals, home });
            }
            arrivals.extend(more);
        }
    }
}

fn offer(outlet: &Outlet, arrivals: Vec<Arrival>) {
    let frames = arrivals.into_iter().map(Arrival::encode).collect();
    outlet.offer(wire::source_message(Message::Frames(Frames { frames })));
}

/// Frames that a container which goes on here has missed.
pub(super) struct Heard {
    arrivals: Vec<Arrival>,
    home: Injector,
}

impl Heard {
    /// Gives them to the container: its network is open.
    pub(super) fn give_back(mut self) {
        self.arrivals.iter().for_each(|arrival| self.home.inject(arrival));
        let tally = self.home.tally();
        tracing::info!(
            injected = tally.injected,
            dropped = tally.dropped,
            "frames that arrived during the stop"
        );
    }
}
