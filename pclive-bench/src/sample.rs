//! Runs for tests.

use pclive_tests::ctl::{Ledger, Report, Round, Usage};
use pclive_tests::footprint::Footprint;
use tempfile::TempDir;

use crate::machine::Machine;
use crate::outcome::{ContainerCost, Measures, Outcome, Run};
use crate::setting::{Channel, Link, Setting, Workload, Ycsb};
use crate::view::{ClientView, Part};

pub(crate) fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A run of Redis over 1 Gbit/s that took 20 ms, 2 of them at the destination.
pub(crate) fn run(strategy: &str, repetition: u32) -> Run {
    Run { repetition, ..measured(strategy, 20, 2) }
}

/// A run of Redis over 1 Gbit/s.
pub(crate) fn measured(strategy: &str, downtime_ms: u64, restore_ms: u64) -> Run {
    let workload = Workload::Ycsb(Ycsb { records: 1000, reads_percent: 90, clients: 4, rate: None });
    run_of(workload, strategy, downtime_ms, restore_ms)
}

pub(crate) fn run_of(workload: Workload, strategy: &str, downtime_ms: u64, restore_ms: u64) -> Run {
    let has_clients = workload.has_clients();
    let measures = Measures {
        report: report(downtime_ms * 1_000_000, restore_ms * 1_000_000),
        clients: has_clients.then(|| view(downtime_ms)),
        container: Some(ContainerCost {
            at_rest: Footprint::default(),
            afterwards: Footprint::default(),
            cpu_at_rest: 0.5,
            cpu_in_rounds: Some(0.4),
        }),
    };
    Run {
        setting: Setting {
            workload,
            strategy: strategy.parse().unwrap(),
            link: Link::Gigabit,
            channel: Channel::Tls,
            bandwidth: None,
        },
        repetition: 1,
        seed: 1,
        began_unix_ms: 1_700_000_000_000,
        machine: Machine {
            cpu: "A CPU".into(),
            cpus: 2,
            memory_mib: 24_000,
            kernel: "6.12".into(),
            versions: vec!["runc 1.1".into()],
        },
        outcome: Outcome::Measured(Box::new(measures)),
    }
}

fn report(downtime_ns: u64, restore_ns: u64) -> Report {
    let round = Round {
        number: 0,
        r#final: false,
        data_pages: 1000,
        bytes: 4_096_000,
        duration_ns: 1_000_000,
        bytes_per_second: 4_096_000_000,
    };
    let usage = Usage { cpu_ns: 500_000_000, peak_memory_bytes: 10 << 20 };
    Report {
        downtime_ns,
        ledger: Some(Ledger {
            freeze_ns: 1_000_000,
            final_scan_ns: 2_000_000,
            capture_ns: 3_000_000,
            transfer_ns: 4_000_000,
            fill_ns: 500_000,
            restore_ns: 1_500_000,
            commit_ns: 100_000,
            resume_ns: 200_000,
            verify_ns: 0,
            round_trips: 0,
        }),
        restore_ns,
        rounds: vec![round],
        total_ns: 3_000_000_000,
        bytes: 1 << 30,
        source: Some(usage.clone()),
        destination: Some(usage),
        staging_peak_bytes: 0,
        verdict: "converged".into(),
        predicted_downtime_ns: Some(downtime_ns / 2 * 3),
        verification: None,
        tail: None,
    }
}

fn view(downtime_ms: u64) -> ClientView {
    let part =
        Part { length_ns: 1_000_000_000, answers: 1000, p50_ns: 100_000, p99_ns: 200_000, p999_ns: 300_000 };
    ClientView {
        before: part,
        rounds: Part { answers: 950, ..part },
        stop: part,
        after: part,
        longest_wait_ns: downtime_ms * 1_000_000 + 1_000_000,
        failures: Vec::new(),
        lost_updates: 0,
        answers: vec![10; 400],
        rounds_ms: [2000, 2500],
    }
}
