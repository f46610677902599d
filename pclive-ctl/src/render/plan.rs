//! How a migration would go.

use std::fmt::Write;

use pclive_proto::control::{Plan, PlanMigrationResponse};

use super::table::{Align, table};
use super::text::printable;
use super::{name, unit};

/// The strategies side by side, and which of them is recommended.
pub(crate) fn plan(container: &str, to: Option<&str>, found: &PlanMigrationResponse) -> String {
    let container = printable(container);
    let to = to.map(|peer| format!(" to {}", printable(peer))).unwrap_or_default();
    let mut text = format!(
        "{container}{to}: {} in {}, {} a second\n",
        unit::bytes(found.memory_pages.saturating_mul(4096)),
        unit::pages(found.memory_pages),
        unit::bytes(found.bandwidth_bytes_per_second),
    );
    if let Some(last) = found.written.last() {
        let (pages, time) =
            (unit::pages(last.pages), unit::duration(last.after_ms.saturating_mul(1_000_000)));
        let _ = writeln!(text, "{pages} written in {time}");
    }
    let head = [
        ("STRATEGY", Align::Left),
        ("DOWNTIME", Align::Right),
        ("TOTAL", Align::Right),
        ("ROUNDS", Align::Right),
        ("BYTES", Align::Right),
        ("MEMORY THERE", Align::Right),
        ("ROUNDS END", Align::Left),
    ];
    let rows: Vec<_> = found.plans.iter().map(cells).collect();
    let _ = write!(text, "\n{}\n", table(0, head, &rows));
    let _ =
        writeln!(text, "recommended: {} ({})", name::strategy(found.recommended()), printable(&found.reason));
    text
}

fn cells(plan: &Plan) -> [String; 7] {
    [
        name::strategy(plan.strategy()).to_owned(),
        unit::duration(plan.downtime_ns),
        unit::duration(plan.total_ns),
        plan.rounds.to_string(),
        unit::bytes(plan.bytes),
        unit::bytes(plan.destination_memory_bytes),
        printable(&plan.verdict).into_owned(),
    ]
}

#[cfg(test)]
pub(crate) mod tests {
    use pclive_proto::control::{Strategy, WrittenPages};

    use super::*;

    pub(crate) fn sample() -> PlanMigrationResponse {
        let plan = |strategy: Strategy, downtime_ns, destination_memory_bytes| Plan {
            strategy: strategy.into(),
            rounds: 2,
            bytes: 1_103_101_952,
            total_ns: 2_100_000_000,
            downtime_ns,
            tail_bytes: 0,
            destination_memory_bytes,
            converges: downtime_ns < 300_000_000,
            verdict: "predicted downtime within the limit".into(),
        };
        PlanMigrationResponse {
            memory_pages: 262_144,
            written: vec![WrittenPages { after_ms: 3_000, pages: 6_100 }],
            bandwidth_bytes_per_second: 1_048_576_000,
            plans: vec![
                plan(Strategy::Global, 24_000_000, 1 << 30),
                plan(Strategy::OneShot, 1_200_000_000, 2 << 30),
            ],
            recommended: Strategy::Global.into(),
            reason: "no strategy has a notably shorter downtime; it is within the limit".into(),
        }
    }

    #[test]
    fn strategies_are_shown_side_by_side() {
        let expected = "\
redis-1 to host-b: 1.00 GiB in 262,144 pages, 1000 MiB a second
6,100 pages written in 3.00 s

STRATEGY  DOWNTIME   TOTAL  ROUNDS     BYTES  MEMORY THERE  ROUNDS END
global     24.0 ms  2.10 s       2  1.03 GiB      1.00 GiB  predicted downtime within the limit
one-shot    1.20 s  2.10 s       2  1.03 GiB      2.00 GiB  predicted downtime within the limit

recommended: global (no strategy has a notably shorter downtime; it is within the limit)
";
        assert_eq!(plan("redis-1", Some("host-b"), &sample()), expected);
    }
}
