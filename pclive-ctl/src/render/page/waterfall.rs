//! The parts of a downtime, one below the other, each where the ones before it end. What both ends do at once is told
//! as the part of one of them, so that this is nearly how it went.

use maud::{Markup, html};
use pclive_proto::control::Ledger;

use super::super::report;
use super::super::unit;

/// A part and its place.
struct Bar {
    part: &'static str,
    clock: &'static str,
    ns: u64,
    starts_at: u64,
}

/// The parts, and what is left of the downtime between them.
pub(super) fn waterfall(ledger: &Ledger, downtime_ns: u64) -> Markup {
    let mut bars = Vec::new();
    let mut ends_at = 0_u64;
    for (part, ns, clock) in report::parts(ledger).filter(|(_, ns, _)| *ns > 0) {
        bars.push(Bar { part, clock, ns, starts_at: ends_at });
        ends_at = ends_at.saturating_add(ns);
    }
    let rest = downtime_ns.saturating_sub(ends_at);
    if rest > 0 {
        bars.push(Bar { part: "between them", clock: "neither", ns: rest, starts_at: ends_at });
    }
    let whole = ends_at.max(downtime_ns);
    html! {
        p { "One after the other; where both ends worked at the same time, this is nearly how it went." }
        table {
            tr { th { "part" } th { "time" } th { "measured by" } th.lane {} }
            @for Bar { part, clock, ns, starts_at } in bars {
                tr {
                    td { (part) }
                    td { (unit::duration(ns)) }
                    td { (clock) }
                    td.lane { div class={ "bar " (clock) } style=(place(starts_at, ns, whole)) {} }
                }
            }
        }
    }
}

/// Where a bar of `length` is that begins at `start` of a `whole`.
pub(super) fn place(start: u64, length: u64, whole: u64) -> String {
    let percent = |part: u64| if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 };
    format!("margin-left:{:.2}%;width:{:.2}%", percent(start), percent(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(ledger: &Ledger, downtime_ns: u64) -> String {
        waterfall(ledger, downtime_ns).into_string()
    }

    #[test]
    fn every_part_begins_where_the_one_before_it_ends() {
        let ledger = Ledger { freeze_ns: 10, capture_ns: 30, restore_ns: 40, ..Ledger::default() };
        let text = drawn(&ledger, 100);
        for place in [
            "margin-left:0.00%;width:10.00%",
            "margin-left:10.00%;width:30.00%",
            "margin-left:40.00%;width:40.00%",
            "margin-left:80.00%;width:20.00%",
        ] {
            assert!(text.contains(place), "no {place} in {text}");
        }
        assert!(text.contains("between them") && !text.contains("commit"), "{text}");
    }

    #[test]
    fn parts_that_overlap_stay_within_the_page() {
        let ledger = Ledger { capture_ns: 150, restore_ns: 50, ..Ledger::default() };
        let text = drawn(&ledger, 100);
        assert!(text.contains("margin-left:75.00%;width:25.00%") && !text.contains("between them"), "{text}");
    }

    #[test]
    fn nothing_is_divided_by_zero() {
        assert_eq!(place(0, 0, 0), "margin-left:0.00%;width:0.00%");
    }
}
