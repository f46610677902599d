//! One line: who asked for what, and what came of it.

use serde::Serialize;

use crate::config::Strategy;
use crate::journal::{Asker, Ending, Record, Role};

/// What only the agent knows that moved it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// What the rounds came to on the wire.
    pub bytes: u64,
    /// Digest (xxh3, 64 bit) of the final state, once it was sent or had come.
    pub state_digest: Option<u64>,
}

/// How and when it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End<'a> {
    /// What came of it.
    pub ending: &'a Ending,
    /// Unix time, milliseconds.
    pub at_ms: u64,
    /// Who cancelled it, or resolved it; `None` if nobody did.
    pub decided_by: Option<&'a Asker>,
}

/// A migration that has ended, as the audit record keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line<'a> {
    /// The same at both ends.
    pub id: &'a str,
    /// This end.
    pub role: Role,
    /// Name at the runtime.
    pub container: &'a str,
    /// Configured name of the runtime.
    pub runtime: &'a str,
    /// Name of the agent that it was at.
    pub from: &'a str,
    /// Name or address of the agent that it was to go to.
    pub to: &'a str,
    /// Source: who gave the order. Destination: the agent that sent it.
    pub asked_by: &'a Asker,
    /// Who cancelled it, or resolved it; absent if nobody did here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<&'a Asker>,
    /// Unix time, milliseconds; the time in the queue counts.
    pub begun_ms: u64,
    /// Unix time, milliseconds.
    pub ended_ms: u64,
    /// How memory got to its place.
    pub strategy: Strategy,
    /// `done`: it runs at the destination. Otherwise why not, as error codes are written.
    pub outcome: &'a str,
    /// What the rounds came to on the wire; absent if the agent that counted them is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Of the final state that was sent, or has come: 16 hexadecimal digits. Equal at both ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_digest: Option<String>,
}

impl<'a> Line<'a> {
    /// The line of a migration of the agent `agent`.
    pub fn new(agent: &'a str, record: &'a Record, end: End<'a>, moved: Option<Moved>) -> Self {
        let End { ending, at_ms, decided_by } = end;
        let peer = record.peer.name.as_str();
        let (from, to) = match record.role {
            Role::Source => (agent, peer),
            Role::Destination => (peer, agent),
        };
        Self {
            id: &record.id,
            role: record.role,
            container: &record.container,
            runtime: &record.runtime,
            from,
            to,
            asked_by: &record.asked_by,
            decided_by,
            begun_ms: record.started_ms,
            ended_ms: at_ms,
            strategy: record.strategy,
            outcome: match ending {
                Ending::Done => "done",
                Ending::Failed(reason) => &reason.code,
            },
            bytes: moved.map(|moved| moved.bytes),
            state_digest: moved.and_then(|moved| moved.state_digest).map(|digest| format!("{digest:016x}")),
        }
    }
}
