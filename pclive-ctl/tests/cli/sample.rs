//! Messages that the scripts are made of.

use pclive_proto::control::event::Event as Kind;
use pclive_proto::control::*;

use crate::fake::Step;

pub(crate) fn event(at_ms: u64, kind: Kind) -> Event {
    Event { at_ms, event: Some(kind) }
}

pub(crate) fn tell(at_ms: u64, kind: Kind) -> Step {
    Step::Tell(Box::new(event(at_ms, kind)))
}

pub(crate) fn phase(at_ms: u64, phase: Phase) -> Step {
    tell(at_ms, Kind::Phase(PhaseChanged { phase: phase.into() }))
}

pub(crate) fn round(number: u32) -> Round {
    Round {
        number,
        r#final: number == 1,
        data_pages: 256,
        bytes: 1 << 20,
        duration_ns: 1_000_000,
        dirty_pages: 12,
        bytes_per_second: 1 << 30,
        predicted_downtime_ns: 5_000_000,
        ..Round::default()
    }
}

pub(crate) fn tell_round(number: u32) -> Step {
    tell(u64::from(number) * 1_000 + 500, Kind::Round(round(number)))
}

pub(crate) fn progress(at_ms: u64) -> Step {
    let progress = Progress { round: 0, bytes: 1 << 19, total_bytes: 1 << 20, bytes_per_second: 1 << 30 };
    tell(at_ms, Kind::Progress(progress))
}

pub(crate) fn report() -> Report {
    Report {
        downtime_ns: 7_500_000,
        ledger: Some(Ledger { freeze_ns: 400_000, ..Ledger::default() }),
        restore_ns: 3_000_000,
        rounds: vec![round(0), round(1)],
        total_ns: 1_600_000_000,
        bytes: 2 << 20,
        source: Some(EndUsage { cpu_ns: 10_000_000, peak_memory_bytes: 1 << 20 }),
        destination: Some(EndUsage { cpu_ns: 20_000_000, peak_memory_bytes: 2 << 20 }),
        staging_peak_bytes: 0,
        verdict: "predicted downtime below 300 ms".into(),
        predicted_downtime_ns: 5_000_000,
        tail: None,
        verification: None,
        kept: None,
    }
}

pub(crate) fn done(at_ms: u64) -> Step {
    tell(at_ms, Kind::Done(Done { report: Some(report()) }))
}

pub(crate) fn error(code: &str, message: &str, phase: Phase) -> Error {
    Error {
        code: code.into(),
        role: Role::Source.into(),
        phase: phase.into(),
        message: message.into(),
        hint: format!("what to do about {code}"),
        ..Error::default()
    }
}

pub(crate) fn failed(at_ms: u64, error: Error) -> Step {
    tell(at_ms, Kind::Failed(error))
}

pub(crate) fn migration(phase: Phase) -> Migration {
    Migration {
        id: "m-1".into(),
        container: "redis-1".into(),
        runtime: "runc".into(),
        role: Role::Source.into(),
        peer: "host-b".into(),
        strategy: Strategy::Global.into(),
        phase: phase.into(),
        started_ms: 1_795_430_189_000,
        ..Migration::default()
    }
}

pub(crate) fn blocker(what: &str) -> Blocker {
    Blocker {
        pid: 812,
        container_pid: 1,
        comm: "redis-server".into(),
        place: "descriptor 9".into(),
        what: what.into(),
        hint: "close it".into(),
    }
}

/// The usual way to a migrated container.
pub(crate) fn success() -> Vec<Step> {
    vec![
        phase(0, Phase::Negotiating),
        phase(100, Phase::PreCopy),
        progress(300),
        progress(400),
        tell_round(0),
        phase(1_400, Phase::Frozen),
        tell_round(1),
        phase(1_550, Phase::Ready),
        phase(1_560, Phase::Committed),
        phase(1_600, Phase::Done),
        done(1_600),
    ]
}
