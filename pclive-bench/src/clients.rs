//! What clients of any workload see.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// One request's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    /// When it came, from the clients' start.
    pub(crate) at: Duration,
    /// How long it took; on a schedule, from the time at which the request was due.
    pub(crate) took: Duration,
}

/// Why a client could not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The connection ended, or said nothing for too long.
    Lost(String),
    /// The answer was not what it must be.
    Wrong(String),
}

/// What all clients saw.
#[derive(Debug)]
pub(crate) struct Record {
    /// The instant from which [`Answer`]s are counted.
    pub(crate) start: Instant,
    /// Of all clients, in the order of their arrival.
    pub(crate) answers: Vec<Answer>,
    /// What went wrong, client by client.
    pub(crate) failures: Vec<Failure>,
    /// Acknowledged updates that are not there.
    pub(crate) lost_updates: u64,
}

impl Record {
    /// Of what each client saw.
    pub(crate) fn new(
        start: Instant,
        seen: impl Iterator<Item = (Vec<Answer>, Option<Failure>)>,
        lost_updates: u64,
    ) -> Self {
        let (answers, failures): (Vec<Vec<Answer>>, Vec<Option<Failure>>) = seen.unzip();
        let mut answers = answers.concat();
        answers.sort_unstable_by_key(|answer| answer.at);
        Self { start, answers, failures: failures.into_iter().flatten().collect(), lost_updates }
    }
}

/// Threads of clients at work, each of which has seen an `S` at its end. They end when joined or dropped.
#[derive(Debug)]
pub(crate) struct Crew<S> {
    /// Of all clients.
    pub(crate) start: Instant,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<S>>>,
}

impl<S> Crew<S> {
    /// Starts so many; `client` starts one by its number, which begins to count at the instant, and ends once it is told to.
    pub(crate) fn start(
        clients: u16,
        client: impl Fn(u16, Instant, Arc<AtomicBool>) -> Result<JoinHandle<Result<S>>>,
    ) -> Result<Self> {
        let mut crew = Self { start: Instant::now(), stop: Arc::default(), threads: Vec::new() };
        for number in 0..clients {
            crew.threads.push(client(number, crew.start, Arc::clone(&crew.stop))?);
        }
        Ok(crew)
    }

    /// Ends them; what each has seen, by its number.
    pub(crate) fn join(&mut self) -> Result<Vec<S>> {
        self.stop.store(true, Ordering::Relaxed);
        let ended =
            self.threads.drain(..).map(|thread| thread.join().map_err(|_| anyhow!("a client panicked"))?);
        ended.collect()
    }
}

impl<S> Drop for Crew<S> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
