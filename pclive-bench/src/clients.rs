//! What clients of any workload see.

use std::time::{Duration, Instant};

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
