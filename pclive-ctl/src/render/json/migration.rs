//! Migrations.

use pclive_proto::control::{
    Doubt as WireDoubt, EndUsage, Kept as WireKept, Ledger as WireLedger, Migration as WireMigration, Phase,
    Report as WireReport, ResolveMigrationResponse, Round as WireRound, Tail as WireTail,
    UndoMigrationResponse, Verification as WireVerification,
};
use serde::Serialize;

use super::{Error, told};
use crate::render::name;

/// `list`.
#[derive(Debug, Serialize)]
pub(crate) struct Migrations<'a> {
    migrations: Vec<Migration<'a>>,
}

impl<'a> From<&'a [WireMigration]> for Migrations<'a> {
    fn from(migrations: &'a [WireMigration]) -> Self {
        Self { migrations: migrations.iter().map(Migration::from).collect() }
    }
}

/// `status`.
#[derive(Debug, Serialize)]
pub(crate) struct Migration<'a> {
    migration_id: &'a str,
    container: &'a str,
    runtime: Option<&'a str>,
    role: Option<&'static str>,
    peer: &'a str,
    strategy: Option<&'static str>,
    phase: Option<&'static str>,
    started_unix_ms: Option<u64>,
    ended_unix_ms: Option<u64>,
    rounds: Vec<Round>,
    report: Option<Report<'a>>,
    error: Option<Error<'a>>,
    doubt: Option<Doubt<'a>>,
    kept: Option<Kept>,
}

/// What is known of a migration in doubt.
#[derive(Debug, Serialize)]
struct Doubt<'a> {
    here: &'a str,
    there: Option<&'a str>,
    questions: u32,
    asked_unix_ms: Option<u64>,
}

impl<'a> From<&'a WireDoubt> for Doubt<'a> {
    fn from(doubt: &'a WireDoubt) -> Self {
        Self {
            here: &doubt.here,
            there: told(&doubt.there),
            questions: doubt.questions,
            asked_unix_ms: some_time(doubt.asked_ms),
        }
    }
}

/// An original that is kept at its source.
#[derive(Debug, Serialize)]
struct Kept {
    until_unix_ms: Option<u64>,
    stopped_unix_ms: Option<u64>,
}

impl From<WireKept> for Kept {
    fn from(kept: WireKept) -> Self {
        Self { until_unix_ms: some_time(kept.until_ms), stopped_unix_ms: some_time(kept.stopped_ms) }
    }
}

/// `undo`.
#[derive(Debug, Serialize)]
pub(crate) struct Undone<'a> {
    migration_id: &'a str,
    undone: bool,
    phase: Option<&'static str>,
    kept: Option<Kept>,
}

impl<'a> Undone<'a> {
    pub(crate) fn new(migration_id: &'a str, undone: &UndoMigrationResponse) -> Self {
        Self {
            migration_id,
            undone: undone.phase() == Phase::Failed,
            phase: name::phase_json(undone.phase()),
            kept: undone.kept.map(Kept::from),
        }
    }
}

/// `resolve`.
#[derive(Debug, Serialize)]
pub(crate) struct Resolved<'a> {
    migration_id: &'a str,
    phase: Option<&'static str>,
    peer: Option<&'a str>,
}

impl<'a> Resolved<'a> {
    pub(crate) fn new(migration_id: &'a str, decided: &'a ResolveMigrationResponse) -> Self {
        Self { migration_id, phase: name::phase_json(decided.phase()), peer: told(&decided.peer) }
    }
}

impl<'a> From<&'a WireMigration> for Migration<'a> {
    fn from(migration: &'a WireMigration) -> Self {
        Self {
            migration_id: &migration.id,
            container: &migration.container,
            runtime: told(&migration.runtime),
            role: name::role(migration.role()),
            peer: &migration.peer,
            strategy: name::strategy_json(migration.strategy()),
            phase: name::phase_json(migration.phase()),
            started_unix_ms: some_time(migration.started_ms),
            ended_unix_ms: some_time(migration.ended_ms),
            rounds: migration.rounds.iter().map(Round::from).collect(),
            report: migration.report.as_ref().map(Report::from),
            error: migration.error.as_ref().map(Error::from),
            doubt: migration.doubt.as_ref().map(Doubt::from),
            kept: migration.kept.map(Kept::from),
        }
    }
}

fn some_time(unix_ms: u64) -> Option<u64> {
    (unix_ms > 0).then_some(unix_ms)
}

/// A finished round.
#[derive(Debug, Serialize)]
pub(crate) struct Round {
    number: u32,
    r#final: bool,
    data_pages: u64,
    zero_pages: u64,
    hole_pages: u64,
    bytes: u64,
    duration_ns: u64,
    dirty_pages: u64,
    bytes_per_second: u64,
    predicted_downtime_ns: u64,
}

impl From<&WireRound> for Round {
    fn from(round: &WireRound) -> Self {
        Self {
            number: round.number,
            r#final: round.r#final,
            data_pages: round.data_pages,
            zero_pages: round.zero_pages,
            hole_pages: round.hole_pages,
            bytes: round.bytes,
            duration_ns: round.duration_ns,
            dirty_pages: round.dirty_pages,
            bytes_per_second: round.bytes_per_second,
            predicted_downtime_ns: round.predicted_downtime_ns,
        }
    }
}

/// The report of a migration that is done.
#[derive(Debug, Serialize)]
pub(crate) struct Report<'a> {
    downtime_ns: u64,
    ledger: Option<Ledger>,
    restore_ns: u64,
    rounds: Vec<Round>,
    total_ns: u64,
    bytes: u64,
    source: Option<Usage>,
    destination: Option<Usage>,
    staging_peak_bytes: u64,
    verdict: &'a str,
    /// What the downtime was expected to be; `None` when that was not known.
    predicted_downtime_ns: Option<u64>,
    /// What came after the container ran; `None` when nothing did.
    tail: Option<Tail>,
    /// What was compared before the commit; `None` when nothing was.
    verification: Option<Verification>,
    /// The original, while it is kept.
    kept: Option<Kept>,
}

impl<'a> From<&'a WireReport> for Report<'a> {
    fn from(report: &'a WireReport) -> Self {
        Self {
            downtime_ns: report.downtime_ns,
            ledger: report.ledger.as_ref().map(Ledger::from),
            restore_ns: report.restore_ns,
            rounds: report.rounds.iter().map(Round::from).collect(),
            total_ns: report.total_ns,
            bytes: report.bytes,
            source: report.source.as_ref().map(Usage::from),
            destination: report.destination.as_ref().map(Usage::from),
            staging_peak_bytes: report.staging_peak_bytes,
            verdict: &report.verdict,
            predicted_downtime_ns: (report.predicted_downtime_ns > 0).then_some(report.predicted_downtime_ns),
            tail: report.tail.as_ref().map(Tail::from),
            verification: report.verification.as_ref().map(Verification::from),
            kept: report.kept.map(Kept::from),
        }
    }
}

#[derive(Debug, Serialize)]
struct Ledger {
    freeze_ns: u64,
    final_scan_ns: u64,
    capture_ns: u64,
    transfer_ns: u64,
    fill_ns: u64,
    restore_ns: u64,
    commit_ns: u64,
    resume_ns: u64,
    verify_ns: u64,
    round_trips: u32,
}

impl From<&WireLedger> for Ledger {
    fn from(ledger: &WireLedger) -> Self {
        Self {
            freeze_ns: ledger.freeze_ns,
            final_scan_ns: ledger.final_scan_ns,
            capture_ns: ledger.capture_ns,
            transfer_ns: ledger.transfer_ns,
            fill_ns: ledger.fill_ns,
            restore_ns: ledger.restore_ns,
            commit_ns: ledger.commit_ns,
            resume_ns: ledger.resume_ns,
            verify_ns: ledger.verify_ns,
            round_trips: ledger.round_trips,
        }
    }
}

#[derive(Debug, Serialize)]
struct Verification {
    mappings: u64,
    objects: u64,
    bytes: u64,
}

impl From<&WireVerification> for Verification {
    fn from(verification: &WireVerification) -> Self {
        let WireVerification { mappings, objects, bytes } = *verification;
        Self { mappings, objects, bytes }
    }
}

#[derive(Debug, Serialize)]
struct Tail {
    pages: u64,
    demand_pages: u64,
    pushed_pages: u64,
    faults: u64,
    fault_median_ns: u64,
    fault_p99_ns: u64,
    round_trip_ns: u64,
    duration_ns: u64,
    reconnects: u32,
}

impl From<&WireTail> for Tail {
    fn from(tail: &WireTail) -> Self {
        Self {
            pages: tail.pages,
            demand_pages: tail.demand_pages,
            pushed_pages: tail.pushed_pages,
            faults: tail.faults,
            fault_median_ns: tail.fault_median_ns,
            fault_p99_ns: tail.fault_p99_ns,
            round_trip_ns: tail.round_trip_ns,
            duration_ns: tail.duration_ns,
            reconnects: tail.reconnects,
        }
    }
}

#[derive(Debug, Serialize)]
struct Usage {
    cpu_ns: u64,
    peak_memory_bytes: u64,
}

impl From<&EndUsage> for Usage {
    fn from(usage: &EndUsage) -> Self {
        Self { cpu_ns: usage.cpu_ns, peak_memory_bytes: usage.peak_memory_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::report::tests::sample;

    #[test]
    fn a_report_keeps_every_number_of_the_api() {
        let report = WireReport { rounds: sample().rounds[1..2].to_vec(), ..sample() };
        let expected = concat!(
            r#"{"downtime_ns":42149000,"ledger":{"freeze_ns":1210000,"final_scan_ns":812000,"capture_ns":3140000,"#,
            r#""transfer_ns":21900000,"fill_ns":2040000,"restore_ns":7420000,"commit_ns":2310000,"resume_ns":1090000,"#,
            r#""verify_ns":0,"round_trips":2},"#,
            r#""restore_ns":8510000,"rounds":[{"number":1,"final":false,"data_pages":6100,"zero_pages":0,"#,
            r#""hole_pages":3,"bytes":24985600,"duration_ns":40000000,"dirty_pages":1024,"#,
            r#""bytes_per_second":624640000,"predicted_downtime_ns":38000000}],"total_ns":2730000000,"#,
            r#""bytes":1103101952,"source":{"cpu_ns":700000000,"peak_memory_bytes":12582912},"#,
            r#""destination":{"cpu_ns":1220000000,"peak_memory_bytes":39845888},"staging_peak_bytes":0,"#,
            r#""verdict":"predicted downtime below 300 ms","predicted_downtime_ns":38000000,"tail":null,"#,
            r#""verification":null,"kept":null}"#
        );
        assert_eq!(serde_json::to_string(&Report::from(&report)).unwrap(), expected);
    }

    #[test]
    fn what_is_not_known_is_null() {
        let text =
            serde_json::to_string(&Migration::from(&WireMigration { id: "x".into(), ..Default::default() }));
        let expected = concat!(
            r#"{"migration_id":"x","container":"","runtime":null,"role":null,"peer":"","strategy":null,"#,
            r#""phase":null,"started_unix_ms":null,"ended_unix_ms":null,"rounds":[],"report":null,"error":null,"doubt":null,"#,
            r#""kept":null}"#
        );
        assert_eq!(text.unwrap(), expected);
    }
}
