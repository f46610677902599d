//! The report at the end of a migration.

use std::fmt::Write;

use pclive_proto::control::{EndUsage, Ledger, Report, Round, Tail, Verification};

use super::table::{Align, table};
use super::text::printable;
use super::unit;

/// The whole report, indented by two.
pub(crate) fn report(report: &Report) -> String {
    let predicted = match report.predicted_downtime_ns {
        0 => String::new(),
        predicted => format!("  (predicted {})", unit::duration(predicted)),
    };
    let mut text = format!("  downtime        {}{predicted}\n", unit::duration(report.downtime_ns));
    if let Some(ledger) = &report.ledger {
        text.push_str(&self::ledger(ledger));
    }
    let _ = writeln!(text, "  restore time    {}", unit::duration(report.restore_ns));
    if !report.rounds.is_empty() {
        let _ = write!(text, "\n{}\n", rounds(&report.rounds));
    }
    let _ = writeln!(
        text,
        "  total           {} in {}",
        unit::bytes(report.bytes),
        unit::duration(report.total_ns)
    );
    for (end, usage) in [("source", &report.source), ("destination", &report.destination)] {
        if let Some(usage) = usage {
            let _ = writeln!(text, "  {end:<15} {}", self::usage(usage));
        }
    }
    if let Some(verification) = report.verification {
        let _ = writeln!(text, "  compared        {}", compared(verification));
    }
    if let Some(tail) = &report.tail {
        for (line, (what, value)) in self::tail(tail).into_iter().enumerate() {
            let indent = if line == 0 { 2 } else { 4 };
            let _ = writeln!(text, "{:indent$}{what:<15} {value}", "");
        }
    }
    if let Some(kept) = report.kept {
        let _ = writeln!(
            text,
            "  original        kept until {}; pclivectl undo goes back",
            unit::timestamp(kept.until_ms)
        );
    }
    if report.staging_peak_bytes > 0 {
        let _ = writeln!(text, "  staged at most  {}", unit::bytes(report.staging_peak_bytes));
    }
    if !report.verdict.is_empty() {
        let _ = writeln!(text, "  rounds ended    {}", printable(&report.verdict));
    }
    text
}

/// Parts of the downtime in their order, each with who measured it. They overlap where both ends work at once, so they
/// need not add up.
pub(crate) fn parts(ledger: &Ledger) -> impl Iterator<Item = (&'static str, u64, &'static str)> {
    let parts = [
        ("freeze", ledger.freeze_ns, "source"),
        ("final scan", ledger.final_scan_ns, "source"),
        ("capture", ledger.capture_ns, "source"),
        ("transfer", ledger.transfer_ns, "source"),
        ("fill", ledger.fill_ns, "destination"),
        ("restore", ledger.restore_ns, "destination"),
        ("verify", ledger.verify_ns, "both"),
        ("commit", ledger.commit_ns, "source"),
        ("resume", ledger.resume_ns, "destination"),
    ];
    // Without a comparison there is none to tell of.
    parts.into_iter().filter(|(part, ns, _)| *part != "verify" || *ns > 0)
}

/// Where the downtime went.
fn ledger(ledger: &Ledger) -> String {
    let mut text = String::new();
    for (part, ns, clock) in parts(ledger) {
        let _ = writeln!(text, "    {part:<12}  {:>8}  {clock}", unit::duration(ns));
    }
    text
}

/// What was compared before the commit.
pub(crate) fn compared(verification: Verification) -> String {
    let Verification { mappings, objects, bytes } = verification;
    let (mappings, objects, bytes) = (unit::count(mappings), unit::count(objects), unit::bytes(bytes));
    format!("{bytes} in {mappings} mappings and {objects} shared objects")
}

/// What came after the container ran, in lines with a name each.
pub(crate) fn tail(tail: &Tail) -> Vec<(&'static str, String)> {
    let mut lines = vec![(
        "tail",
        format!(
            "{} pages in {}: {} on demand, {} pushed",
            unit::count(tail.pages),
            unit::duration(tail.duration_ns),
            unit::count(tail.demand_pages),
            unit::count(tail.pushed_pages),
        ),
    )];
    if tail.faults > 0 {
        let waited = format!(
            "{} times, {} in the median, {} at the 99th percentile",
            unit::count(tail.faults),
            unit::duration(tail.fault_median_ns),
            unit::duration(tail.fault_p99_ns),
        );
        lines.push(("waited for", waited));
    }
    if tail.reconnects > 0 {
        lines.push(("link opened", format!("{} times again", tail.reconnects)));
    }
    lines
}

/// What an end spent.
pub(crate) fn usage(usage: &EndUsage) -> String {
    format!("{}, at most {} of extra memory", unit::cpu(usage.cpu_ns), unit::bytes(usage.peak_memory_bytes))
}

/// What is told of a round.
pub(crate) const ROUND: [&str; 8] =
    ["round", "data pages", "zero", "dropped", "bytes", "time", "rate", "dirty after"];

/// The rounds, one a line.
pub(crate) fn rounds(rounds: &[Round]) -> String {
    let mut head = ROUND.map(|name| (name, Align::Right));
    head[0].1 = Align::Left;
    let rows: Vec<_> = rounds.iter().map(cells).collect();
    table(2, head, &rows)
}

/// A round, as [`ROUND`] says.
pub(crate) fn cells(round: &Round) -> [String; 8] {
    [
        if round.r#final { "final".to_owned() } else { round.number.to_string() },
        unit::count(round.data_pages),
        unit::count(round.zero_pages),
        unit::count(round.hole_pages),
        unit::bytes(round.bytes),
        unit::duration(round.duration_ns),
        unit::rate(round.bytes_per_second),
        if round.r#final { "-".to_owned() } else { unit::count(round.dirty_pages) },
    ]
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A migration of 1 GiB in two rounds and the final one.
    pub(crate) fn sample() -> Report {
        Report {
            downtime_ns: 42_149_000,
            ledger: Some(Ledger {
                freeze_ns: 1_210_000,
                final_scan_ns: 812_000,
                capture_ns: 3_140_000,
                transfer_ns: 21_900_000,
                fill_ns: 2_040_000,
                restore_ns: 7_420_000,
                commit_ns: 2_310_000,
                resume_ns: 1_090_000,
                verify_ns: 0,
                round_trips: 2,
            }),
            restore_ns: 8_510_000,
            rounds: rounds_sample(),
            total_ns: 2_730_000_000,
            bytes: 1_103_101_952,
            source: Some(EndUsage { cpu_ns: 700_000_000, peak_memory_bytes: 12 << 20 }),
            destination: Some(EndUsage { cpu_ns: 1_220_000_000, peak_memory_bytes: 38 << 20 }),
            staging_peak_bytes: 0,
            verdict: "predicted downtime below 300 ms".into(),
            predicted_downtime_ns: 38_000_000,
            tail: None,
            verification: None,
            kept: None,
        }
    }

    pub(crate) fn rounds_sample() -> Vec<Round> {
        let round = |number, data_pages, duration_ns, bytes_per_second, dirty_pages| Round {
            number,
            data_pages,
            bytes: data_pages * 4096,
            duration_ns,
            dirty_pages,
            bytes_per_second,
            ..Round::default()
        };
        vec![
            Round { zero_pages: 120, ..round(0, 262_144, 1_100_000_000, 976_128_930, 6_100) },
            Round {
                hole_pages: 3,
                predicted_downtime_ns: 38_000_000,
                ..round(1, 6_100, 40_000_000, 624_640_000, 1_024)
            },
            Round { r#final: true, ..round(2, 1_068, 21_900_000, 199_747_000, 0) },
        ]
    }

    #[test]
    fn a_report_tells_downtime_ledger_rounds_and_cost() {
        let expected = [
            "  downtime        42.1 ms  (predicted 38.0 ms)",
            "    freeze         1.21 ms  source",
            "    final scan      812 µs  source",
            "    capture        3.14 ms  source",
            "    transfer       21.9 ms  source",
            "    fill           2.04 ms  destination",
            "    restore        7.42 ms  destination",
            "    commit         2.31 ms  source",
            "    resume         1.09 ms  destination",
            "  restore time    8.51 ms",
            "",
            "  round  data pages  zero  dropped     bytes     time       rate  dirty after",
            "  0         262,144   120        0  1.00 GiB   1.10 s  931 MiB/s        6,100",
            "  1           6,100     0        3  23.8 MiB  40.0 ms  596 MiB/s        1,024",
            "  final       1,068     0        0  4.17 MiB  21.9 ms  190 MiB/s            -",
            "",
            "  total           1.03 GiB in 2.73 s",
            "  source          0.70 CPU-s, at most 12.0 MiB of extra memory",
            "  destination     1.22 CPU-s, at most 38.0 MiB of extra memory",
            "  rounds ended    predicted downtime below 300 ms",
            "",
        ];
        assert_eq!(report(&sample()), expected.join("\n"));
    }

    #[test]
    fn what_an_agent_does_not_tell_is_left_out() {
        let expected = "  downtime        0 ns\n  restore time    0 ns\n  total           0 B in 0 ns\n";
        assert_eq!(report(&Report::default()), expected);
    }

    #[test]
    fn tail_is_told_where_there_was_one() {
        let tail = Tail {
            pages: 12_345,
            demand_pages: 45,
            pushed_pages: 12_300,
            faults: 46,
            fault_median_ns: 210_000,
            fault_p99_ns: 900_000,
            duration_ns: 81_000_000,
            reconnects: 1,
            ..Tail::default()
        };
        let report = report(&Report { tail: Some(tail), ..Report::default() });
        let expected = "  tail            12,345 pages in 81.0 ms: 45 on demand, 12,300 pushed\n    \
                        waited for      46 times, 210 µs in the median, 900 µs at the 99th percentile\n    \
                        link opened     1 times again\n";
        assert!(report.contains(expected), "{report}");
    }

    #[test]
    fn a_comparison_is_told_with_its_part_of_the_downtime() {
        let ledger = Ledger { verify_ns: 412_000_000, ..Ledger::default() };
        let verification = Some(Verification { mappings: 1_245, objects: 3, bytes: 3 << 29 });
        let report = report(&Report { ledger: Some(ledger), verification, ..Report::default() });
        assert!(report.contains("    verify          412 ms  both\n"), "{report}");
        let expected = "  compared        1.50 GiB in 1,245 mappings and 3 shared objects\n";
        assert!(report.contains(expected), "{report}");
    }

    #[test]
    fn staging_is_told_where_there_was_any() {
        let report = report(&Report { staging_peak_bytes: 1 << 30, ..Report::default() });
        assert!(report.contains("  staged at most  1.00 GiB\n"), "{report}");
    }
}
