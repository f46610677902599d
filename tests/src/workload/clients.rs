//! Clients that ask without pause on persistent connections, and what they saw.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::node::Node;
use crate::wait::until;

/// How long a client waits for one answer before it counts its connection as lost.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Why a client cannot go on.
#[derive(Debug)]
pub enum Failure {
    /// The connection ended, was reset, or said nothing for [`PATIENCE`].
    Lost(std::io::Error),
    /// The answer is not what was written and acknowledged before.
    Wrong(String),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Lost(error)
    }
}

/// One client's conversation with the server.
pub trait Session: Send {
    /// One request and its answer, checked.
    fn ask(&mut self) -> Result<(), Failure>;

    /// Reads back everything that was acknowledged; how many writes are missing. On a connection of its own when
    /// the old one is lost.
    fn audit(&mut self) -> Result<u64>;
}

/// What one client, or several together, saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// Connections that ended without being asked to.
    pub lost_connections: u64,
    /// Acknowledged writes that were not there, or wrong, when read back.
    pub lost_writes: u64,
    /// Longest time between two answers on one connection.
    pub longest_gap: Duration,
    /// Answers.
    pub answers: u64,
    /// The first failure, in words.
    pub failure: Option<String>,
}

impl Record {
    fn add(&mut self, other: Self) {
        self.lost_connections += other.lost_connections;
        self.lost_writes += other.lost_writes;
        self.longest_gap = self.longest_gap.max(other.longest_gap);
        self.answers += other.answers;
        self.failure = self.failure.take().or(other.failure);
    }

    /// # Errors
    /// When a client lost its connection or a write.
    pub fn nothing_lost(&self) -> Result<()> {
        if self.lost_connections > 0 || self.lost_writes > 0 || self.failure.is_some() {
            bail!("clients lost something: {self:?}");
        }
        Ok(())
    }
}

/// What the clients share with who watches them.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    answers: AtomicU64,
    /// The first, in words.
    failure: OnceLock<String>,
    /// Longest gap since the last look, nanoseconds.
    gap_ns: AtomicU64,
}

/// Running clients. They end when stopped or dropped.
#[derive(Debug)]
pub struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<Record>>>,
}

impl Clients {
    /// Starts `count` clients on `node`; each makes its session by `connect(index)` there, and pauses for `pause`
    /// between an answer and the next request.
    pub fn start<S: Session + 'static>(
        node: &Node,
        count: usize,
        pause: Duration,
        connect: impl Fn(usize) -> Result<S> + Send + Sync + 'static,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let connect = Arc::new(connect);
        let start = |index| {
            let (shared, connect) = (Arc::clone(&shared), Arc::clone(&connect));
            node.in_network(move || Ok(converse(connect(index)?, &shared, pause)))
        };
        let threads = (0..count).map(start).collect::<Result<_>>()?;
        let clients = Self { shared, threads };
        clients.wait_for_answers(count as u64)?;
        Ok(clients)
    }

    /// Waits until there have been `more` answers from now on; the time that took.
    pub fn wait_for_answers(&self, more: u64) -> Result<Duration> {
        let (start, target) = (Instant::now(), self.answers() + more);
        until("an answer to the clients", PATIENCE, || {
            if self.answers() >= target {
                return Ok(true);
            }
            if let Some(why) = self.shared.failure.get() {
                bail!("a client has failed: {why}");
            }
            if self.threads.iter().all(JoinHandle::is_finished) {
                bail!("the clients have ended");
            }
            Ok(false)
        })?;
        Ok(start.elapsed())
    }

    /// Waits until every client has ended by itself: each has lost its connection or a write.
    pub fn wait_for_ends(&self) -> Result<()> {
        until("the clients' ends", PATIENCE, || Ok(self.threads.iter().all(JoinHandle::is_finished)))
    }

    /// Answers so far, of all clients.
    pub fn answers(&self) -> u64 {
        self.shared.answers.load(Ordering::Relaxed)
    }

    /// The longest gap since this was last asked.
    pub fn take_gap(&self) -> Duration {
        Duration::from_nanos(self.shared.gap_ns.swap(0, Ordering::Relaxed))
    }

    /// Ends the clients, lets each read back what it wrote, and tells what they saw.
    pub fn stop(mut self) -> Result<Record> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut record = Record::default();
        for thread in self.threads.drain(..) {
            record.add(thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??);
        }
        Ok(record)
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

/// One client's life.
fn converse(mut session: impl Session, shared: &Shared, pause: Duration) -> Record {
    let mut record = Record::default();
    let mut last = Instant::now();
    while !shared.stop.load(Ordering::Relaxed) {
        match session.ask() {
            Ok(()) => {}
            Err(failure) => {
                let why = record.note(failure, last.elapsed());
                // Another may have been the first.
                let _ = shared.failure.set(why);
                break;
            }
        }
        let gap = last.elapsed();
        last += gap;
        record.answers += 1;
        record.longest_gap = record.longest_gap.max(gap);
        shared.answers.fetch_add(1, Ordering::Relaxed);
        shared.gap_ns.fetch_max(u64::try_from(gap.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    match session.audit() {
        Ok(missing) => record.lost_writes += missing,
        Err(error) => record.failure = record.failure.take().or(Some(format!("cannot read back: {error:#}"))),
    }
    record
}

impl Record {
    /// Takes a failure down; it in words.
    fn note(&mut self, failure: Failure, after: Duration) -> String {
        self.longest_gap = self.longest_gap.max(after);
        let why = match failure {
            Failure::Lost(error) => {
                self.lost_connections += 1;
                format!("connection lost {after:?} after the last answer: {error}")
            }
            Failure::Wrong(what) => {
                self.lost_writes += 1;
                what
            }
        };
        self.failure = Some(why.clone());
        why
    }
}

/// Connects to a server that may still be starting.
pub fn connect(address: SocketAddr) -> Result<TcpStream> {
    let mut stream = None;
    until("the server's start", PATIENCE, || {
        stream = TcpStream::connect_timeout(&address, PATIENCE).ok();
        Ok(stream.is_some())
    })?;
    let stream = stream.with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}
