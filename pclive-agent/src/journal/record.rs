//! What is written down of a migration: what outlives the agent, and who to ask.
//!
//! The names of what a migration makes (firewall tables, host ends of veth pairs) are digests of the container's
//! name, and its freezer and network namespace are found by its init: neither needs to be written down.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Asker;
use crate::config::Strategy;
use crate::error::ErrorCode;

/// Which end this agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The container was here when it began.
    Source,
    /// The container was to come here.
    Destination,
}

/// A process that no other is mistaken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// As the agent sees it.
    pub pid: i32,
    /// Clock ticks since boot.
    pub start_time: u64,
}

/// How far a migration is, as far as a successor must know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Nothing is decided. Source: COMMIT has not been sent. Destination: nothing has been let go.
    Begun,
    /// Source: COMMIT may have been sent. Destination: the copy may have been let go; its init tells, which dies
    /// with the agent until then.
    Committing,
    /// Destination only: it was promised that the copy never runs. It may not be cleaned up yet.
    Discarded,
    /// Destination only: the copy was let go, and pages of it are still at the source.
    Tail,
    /// Destination only: the copy was let go, and pages of it were lost. It was ended, and waits for an operator's decision
    /// about the original.
    Torn,
    /// Source only: the copy runs, and the original is kept for a while.
    Kept(Kept),
    /// Source only: the original is wanted back, and goes on once the destination has ended the copy.
    Undoing(Kept),
    /// Destination only: the copy ran, and ends because the source wants the original back.
    Withdrawn,
    /// Nothing is left to be done.
    Ended(Ending),
}

/// An original that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// `CLOCK_BOOTTIME` of the record's boot, milliseconds.
    pub until_boottime_ms: u64,
    /// When the container was stopped: Unix time, milliseconds, to be shown; 0: not known.
    pub stopped_ms: u64,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// It runs, or ran, at the destination.
    Done,
    /// It does not run at the destination.
    Failed(Reason),
}

/// Why a migration failed, as users saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// [`ErrorCode::as_str`].
    pub code: String,
    /// In words.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// The other end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// As it was named or named itself.
    pub name: String,
    /// `host:port`; empty at the destination, which never asks.
    pub address: String,
}

/// One migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The same at both ends; a UUID, and the name of the file.
    pub id: String,
    /// The client's own, empty if it gave none.
    pub request_id: String,
    /// This end.
    pub role: Role,
    /// Name at the runtime.
    pub container: String,
    /// Configured name of the runtime.
    pub runtime: String,
    /// Directory of `config.json`.
    pub bundle: PathBuf,
    /// The other end.
    pub peer: Peer,
    /// How memory got to its place.
    pub strategy: Strategy,
    /// Unix time, milliseconds.
    pub started_ms: u64,
    /// Unix time, milliseconds; 0: not yet.
    pub ended_ms: u64,
    /// The boot that the processes are of.
    pub boot_id: String,
    /// The container's init; at the destination known once the container is created.
    pub init: Option<Process>,
    /// Destination: the process that fetches the last pages, if they may come later.
    #[serde(default)]
    pub tail: Option<Process>,
    /// Source: who has it may fetch the last pages; empty if they never come later.
    #[serde(default)]
    pub tail_token: String,
    /// Connections end, and the copy shares no address with the original: each end's network is its site's.
    #[serde(default)]
    pub network_stays: bool,
    /// How long the original is kept once the copy runs, milliseconds; 0: not at all.
    #[serde(default)]
    pub keep_source_for_ms: u64,
    /// Who asked for it.
    #[serde(default)]
    pub asked_by: Asker,
    /// How far it is.
    pub phase: Phase,
}

impl Record {
    /// Whether nothing is left to be done.
    pub fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended(_))
    }

    /// Whether the parts fit each other.
    pub(super) fn is_sound(&self) -> bool {
        uuid::Uuid::try_parse(&self.id).is_ok()
            && crate::runtime::ContainerId::parse(&self.container).is_some()
            && !(self.role == Role::Source
                && matches!(self.phase, Phase::Discarded | Phase::Tail | Phase::Torn | Phase::Withdrawn))
            && !(self.role == Role::Destination && matches!(self.phase, Phase::Kept(_) | Phase::Undoing(_)))
            && !(self.role == Role::Source && self.init.is_none())
    }
}

impl Reason {
    /// Longest text that is kept, bytes.
    const MAX_TEXT: usize = 1024;

    /// What is kept of an error.
    pub fn new(code: ErrorCode, message: &str, hint: &str) -> Self {
        let cut = |text: &str| text[..text.floor_char_boundary(Self::MAX_TEXT)].to_owned();
        Self { code: code.as_str().into(), message: cut(message), hint: cut(hint) }
    }
}
