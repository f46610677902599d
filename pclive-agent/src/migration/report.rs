//! What a migration cost, put together from what both ends measured.

use std::time::{Duration, Instant};

use pclive_engine::capture::RoundStats;
use pclive_proto::control::{EndUsage, Ledger, Report, Round};
use pclive_proto::peer::{DestinationLedger, Running};

use super::convergence::{Estimate, Reason};

/// Nanoseconds of a duration, as messages carry them.
pub(super) fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A round as users see it.
pub(super) fn round(
    number: u32,
    is_final: bool,
    stats: &RoundStats,
    (bytes, duration): (u64, Duration),
    known: &Estimate,
) -> Round {
    let rate = u128::from(bytes) * 1_000_000_000 / duration.as_nanos().max(1);
    Round {
        number,
        r#final: is_final,
        data_pages: stats.data_pages,
        zero_pages: stats.zero_pages,
        hole_pages: stats.hole_pages,
        bytes,
        duration_ns: ns(duration),
        dirty_pages: known.dirty_pages.filter(|_| !is_final).unwrap_or(0),
        bytes_per_second: u64::try_from(rate).unwrap_or(u64::MAX),
        predicted_downtime_ns: known.downtime.filter(|_| !is_final).map_or(0, ns),
    }
}

/// The instants and parts of a handover, by the source's clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Handover {
    /// The migration began.
    pub(super) began: Instant,
    /// The freeze began.
    pub(super) stopped: Instant,
    /// How long the freeze took.
    pub(super) freeze: Duration,
    /// The final dump, whole.
    pub(super) dump: Duration,
    /// Its parts.
    pub(super) stats: RoundStats,
    /// From the end of the dump to `Ready`.
    pub(super) until_ready: Duration,
    /// From `Ready` to the end of the comparison of memory.
    pub(super) comparison: Duration,
    /// From there to `Running`.
    pub(super) commit: Duration,
    /// `Running` came.
    pub(super) running: Instant,
    /// What the downtime was expected to be.
    pub(super) predicted: Option<Duration>,
    /// How many of the destination's messages the stop waited for.
    pub(super) round_trips: u32,
}

/// The source's report.
pub(super) fn report(
    handover: &Handover,
    rounds: Vec<Round>,
    reason: Reason,
    answer: &Running,
    source: EndUsage,
) -> Report {
    let ledger = answer.ledger.unwrap_or_default();
    Report {
        downtime_ns: ns(handover.running.saturating_duration_since(handover.stopped)),
        ledger: Some(source_ledger(handover, &ledger)),
        restore_ns: ledger.restore_ns,
        bytes: rounds.iter().map(|round| round.bytes).sum(),
        rounds,
        total_ns: ns(handover.running.saturating_duration_since(handover.began)),
        source: Some(source),
        destination: Some(EndUsage { cpu_ns: answer.cpu_ns, peak_memory_bytes: answer.peak_memory_bytes }),
        staging_peak_bytes: answer.staging_peak_bytes,
        tail: None,
        verification: None,
        kept: None,
        verdict: reason.to_string(),
        predicted_downtime_ns: handover.predicted.map_or(0, ns),
    }
}

/// What the destination says that it did with the state. Its figures may be anything.
fn restore_ns(there: &DestinationLedger) -> u64 {
    there.reconcile_ns.saturating_add(there.files_ns).saturating_add(there.tasks_ns)
}

/// Transfer is what is left of the way from the last page read to `Ready` when the destination's own work is
/// taken off; where both work side by side it is part of the other entries. Commit is what the decision itself takes:
/// the freezer and the network held beyond the agent's life, COMMIT and its answer on their way.
fn source_ledger(handover: &Handover, there: &DestinationLedger) -> Ledger {
    let stats = &handover.stats;
    let restore = restore_ns(there);
    Ledger {
        freeze_ns: ns(handover.freeze),
        final_scan_ns: ns(stats.scan),
        capture_ns: ns(handover.dump.saturating_sub(stats.scan).saturating_sub(stats.read)),
        transfer_ns: ns(stats.read.saturating_add(handover.until_ready))
            .saturating_sub(there.fill_ns.saturating_add(restore).saturating_add(there.verify_ns)),
        fill_ns: there.fill_ns,
        restore_ns: restore,
        commit_ns: ns(handover.commit).saturating_sub(there.resume_ns),
        resume_ns: there.resume_ns,
        verify_ns: there.verify_ns.saturating_add(ns(handover.comparison)),
        round_trips: handover.round_trips,
    }
}

/// The destination's report: what it knows by itself.
pub(super) fn received(rounds: Vec<Round>, answer: &Running, total: Duration) -> Report {
    let there = answer.ledger.unwrap_or_default();
    Report {
        ledger: Some(Ledger {
            fill_ns: there.fill_ns,
            restore_ns: restore_ns(&there),
            resume_ns: there.resume_ns,
            verify_ns: there.verify_ns,
            ..Ledger::default()
        }),
        restore_ns: there.restore_ns,
        bytes: rounds.iter().map(|round| round.bytes).sum(),
        rounds,
        total_ns: ns(total),
        destination: Some(EndUsage { cpu_ns: answer.cpu_ns, peak_memory_bytes: answer.peak_memory_bytes }),
        staging_peak_bytes: answer.staging_peak_bytes,
        ..Report::default()
    }
}
