//! The destination's messages, taken apart by the functions that a source calls for them: for fuzzers, and for tests of what
//! they have found.

use std::time::{Duration, Instant};

use pclive_engine::capture::RoundStats;
use pclive_proto::control::EndUsage;
use pclive_proto::peer::DestinationMessage;
use pclive_proto::peer::destination_message::Message;
use prost::Message as _;

use super::engine::Moved;
use super::rounds::{Backlog, Done, Rounds};
use super::session::name_of;
use super::verification;
use crate::config::Strategy;
use crate::error::{ErrorCode, MigrationError, printable, printable_name};
use crate::host;
use crate::host::compatibility::{self, Demand};
use crate::migration::convergence::{Experience, Limits, Policy, Reason};
use crate::migration::report::{self, Handover};
use crate::migration::wire;
use crate::network;

/// Pieces of memory of the container that digests are told of.
const PLACES: usize = 64;

/// A message of the destination.
pub(crate) fn take_apart_answer(bytes: &[u8]) -> Result<(), MigrationError> {
    let message = DestinationMessage::decode(bytes).map_err(|error| wire::bad(error.to_string()))?;
    let message = message.message.ok_or_else(|| wire::bad("an empty message"))?;
    let _ = name_of(&message);
    match message {
        Message::Accepted(accepted) => {
            let here = host::facts().map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?;
            let there = wire::facts(accepted.host.unwrap_or_default());
            let demand = Demand { memory_bytes: 1 << 30, allow_clock_step_back: false };
            let _ = printable_name(&accepted.agent_name);
            let interfaces =
                network::decode(&accepted.interfaces).map_err(|error| wire::bad(error.to_string()))?;
            let _ = network::addresses(&interfaces).count();
            compatibility::compare(&here, &there, demand).into_result().map(drop)
        }
        Message::RoundApplied(applied) => {
            for strategy in Strategy::ALL {
                let _ = after_a_round(Backlog::told(strategy, &applied));
            }
            Ok(())
        }
        Message::Running(running) => {
            let usage = EndUsage::default();
            let report = report::report(&handover(), Vec::new(), Reason::ShortEnough, &running, usage);
            let _ = after_a_round(Backlog::default()).measured(&report);
            Ok(())
        }
        Message::Digests(digests) => {
            let mut told = Vec::new();
            verification::take(&mut told, &digests, PLACES)
        }
        Message::Failure(failure) => Err(MigrationError::from(failure)),
        Message::Warning(warning) => {
            let _ = printable(warning.message);
            Ok(())
        }
        // Nothing is made of these but what the decoder has made.
        Message::Ready(_) | Message::Settled(_) | Message::Received(_) | Message::End(_) => Ok(()),
    }
}

/// A migration of which one round has ended, and left this at the destination.
fn after_a_round(backlog: Backlog) -> Rounds {
    let limits = Limits {
        max_downtime: Duration::from_millis(300),
        max_rounds: 10,
        max_time: None,
        restore_after: 0,
        policy: Policy::Cancel,
    };
    let mut rounds = Rounds::new(limits, None, 0, Experience::default());
    let (began, elapsed) = (Instant::now(), Duration::from_millis(1));
    let stats = RoundStats { data_pages: 1, processes: 1, ..RoundStats::default() };
    let moved = Moved { stats, bytes: 4096, saved: 0, elapsed, began };
    rounds.add(&moved, Done { duration: elapsed, backlog, pending: None }, began);
    rounds
}

/// Some handover: a report is made of one and of what the destination says.
fn handover() -> Handover {
    let now = Instant::now();
    let part = Duration::from_millis(1);
    Handover {
        began: now,
        stopped: now,
        freeze: part,
        dump: part,
        stats: RoundStats::default(),
        until_ready: part,
        comparison: Duration::ZERO,
        commit: part,
        running: now + part,
        predicted: None,
        round_trips: 2,
    }
}
