//! A page about one migration: HTML in one file, which needs no network and runs nothing.

mod waterfall;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use pclive_proto::control::{Migration, Report, Role, Round};

use super::text::{or_dash, printable};
use super::{migration, name, problem, report, unit};

const STYLE: &str = include_str!("style.css");

/// The page. `now_ms` is Unix time. What others have named is text in it, never markup.
pub(crate) fn page(migration: &Migration, now_ms: u64) -> String {
    let title = format!("{} {}", printable(&migration.container), migration::direction(migration));
    let rounds = migration.report.as_ref().map_or(&migration.rounds, |report| &report.rounds);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Migration of " (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "Migration of " (title) }
                (facts(migration, now_ms))
                @if let Some(error) = &migration.error {
                    div.failed { (problem::text(error)) }
                }
                @if let Some(known) = &migration.doubt {
                    div.failed { (migration::doubt(migration, known)) }
                }
                @if let Some(report) = &migration.report {
                    (figures(report))
                    (downtime(report, migration.role()))
                }
                @if !rounds.is_empty() {
                    (self::rounds(rounds))
                }
                @if let Some(report) = &migration.report {
                    (cost(report))
                }
                footer {
                    "Written by pclivectl " (env!("CARGO_PKG_VERSION")) " at " (unit::timestamp(now_ms))
                    " from what the agent of " (side(migration.role())) " knows."
                }
            }
        }
    };
    page.into_string()
}

/// Whose agent it is.
fn side(role: Role) -> String {
    name::role(role).map_or("this host".to_owned(), |role| format!("the {role}"))
}

fn facts(migration: &Migration, now_ms: u64) -> Markup {
    let mut facts = vec![
        ("migration", or_dash(&migration.id).into_owned()),
        ("container", format!("{} ({})", printable(&migration.container), or_dash(&migration.runtime))),
        ("strategy", name::strategy(migration.strategy()).to_owned()),
        ("phase", name::phase(migration.phase()).to_owned()),
        ("started", unit::timestamp(migration.started_ms)),
        ("took", migration::took(migration, now_ms)),
    ];
    if let Some(kept) = migration.kept {
        facts.push(("original", format!("kept here, frozen, until {}", unit::timestamp(kept.until_ms))));
    }
    html! {
        dl { @for (fact, value) in facts { dt { (fact) } dd { (value) } } }
    }
}

/// What everybody asks first.
fn figures(report: &Report) -> Markup {
    let figures = [
        ("downtime", report.downtime_ns, unit::duration(report.downtime_ns)),
        ("predicted", report.predicted_downtime_ns, unit::duration(report.predicted_downtime_ns)),
        ("restore time", report.restore_ns, unit::duration(report.restore_ns)),
        ("total time", report.total_ns, unit::duration(report.total_ns)),
        ("moved", report.bytes, unit::bytes(report.bytes)),
    ];
    html! {
        div.figures {
            // What is not known is zero.
            @for (figure, _, value) in figures.iter().filter(|(_, known, _)| *known > 0) {
                div { b { (value) } (figure) }
            }
        }
    }
}

fn downtime(report: &Report, role: Role) -> Markup {
    let Some(ledger) = &report.ledger else { return html! {} };
    html! {
        h2 { "Where the downtime went" }
        @if role == Role::Destination {
            p { "The source's agent knows the whole of it; these are the parts that the destination has measured." }
        }
        (waterfall::waterfall(ledger, report.downtime_ns))
    }
}

/// A table, and how long each round took beside the longest one.
fn rounds(rounds: &[Round]) -> Markup {
    let longest = rounds.iter().map(|round| round.duration_ns).max().unwrap_or_default();
    html! {
        h2 { "Rounds" }
        table {
            tr {
                @for name in report::ROUND { th { (name) } }
                th { "downtime predicted" }
                th { "time" }
            }
            @for round in rounds {
                tr.round {
                    @for cell in report::cells(round) { td { (cell) } }
                    td { (predicted(round)) }
                    td { div.bar.source style=(waterfall::place(0, round.duration_ns, longest)) {} }
                }
            }
        }
    }
}

fn predicted(round: &Round) -> String {
    match round.predicted_downtime_ns {
        0 => "-".to_owned(),
        ns => unit::duration(ns),
    }
}

/// What it took beside time, and how it ended.
fn cost(report: &Report) -> Markup {
    let mut lines = Vec::new();
    for (end, usage) in [("source", &report.source), ("destination", &report.destination)] {
        lines.extend(usage.as_ref().map(|usage| (end, report::usage(usage))));
    }
    if report.staging_peak_bytes > 0 {
        lines.push(("staged at most", unit::bytes(report.staging_peak_bytes)));
    }
    if let Some(compared) = report.verification {
        lines.push(("compared", report::compared(compared)));
    }
    if let Some(tail) = &report.tail {
        lines.extend(report::tail(tail));
    }
    if !report.verdict.is_empty() {
        lines.push(("rounds ended", printable(&report.verdict).into_owned()));
    }
    html! {
        h2 { "What it took" }
        dl { @for (what, value) in lines { dt { (what) } dd { (value) } } }
    }
}

#[cfg(test)]
mod tests {
    use pclive_proto::control::{Doubt, Error, Kept, Phase};

    use super::super::report::tests::{rounds_sample, sample};
    use super::*;

    fn migration() -> Migration {
        Migration {
            id: "m-1".into(),
            container: "redis-1".into(),
            runtime: "runc".into(),
            role: Role::Source.into(),
            peer: "host-b".into(),
            phase: Phase::Done.into(),
            started_ms: 1_700_000_000_000,
            ended_ms: 1_700_000_002_730,
            report: Some(sample()),
            ..Migration::default()
        }
    }

    #[test]
    fn page_tells_the_figures_the_ledger_and_every_round() {
        let page = page(&migration(), 1_700_000_003_000);
        for told in [
            "<title>Migration of redis-1 to host-b</title>",
            "<b>42.1 ms</b>downtime",
            "<b>8.51 ms</b>restore time",
            "<td>final scan</td>",
            "<td>262,144</td>",
            "<td>38.0 ms</td>",
            "<dd>1.22 CPU-s, at most 38.0 MiB of extra memory</dd>",
            "<dd>predicted downtime below 300 ms</dd>",
        ] {
            assert!(page.contains(told), "no {told} in {page}");
        }
        for network in ["http:", "https:", "src=", "href=", "<script", "url(", "@import"] {
            assert!(!page.contains(network), "{network} in {page}");
        }
    }

    #[test]
    fn names_of_others_are_no_markup() {
        let evil = "<script>\u{202e}alert(1)</script>";
        let error = Error { message: evil.into(), ..Error::default() };
        let page = page(
            &Migration { container: evil.into(), peer: evil.into(), error: Some(error), ..migration() },
            0,
        );
        assert!(!page.contains("<script") && !page.contains('\u{202e}'), "{page}");
        assert!(page.contains("&lt;script&gt;"), "{page}");
    }

    #[test]
    fn failed_migration_tells_its_error_and_its_rounds() {
        let error = Error { code: "cancelled".into(), message: "told to".into(), ..Error::default() };
        let failed = Migration {
            phase: Phase::Failed.into(),
            report: None,
            rounds: rounds_sample(),
            error: Some(error),
            ..migration()
        };
        let page = page(&failed, 0);
        assert!(page.contains("error: told to") && page.contains("<td>262,144</td>"), "{page}");
        assert!(!page.contains("Where the downtime went"), "{page}");
    }

    #[test]
    fn page_about_a_migration_in_doubt_tells_both_sides_and_what_to_do() {
        let doubt = Doubt { here: "frozen".into(), there: "no answer".into(), questions: 3, asked_ms: 0 };
        let unknown = Migration {
            phase: Phase::Unknown.into(),
            report: None,
            doubt: Some(doubt),
            kept: Some(Kept { until_ms: 1_700_000_600_000, ..Kept::default() }),
            ..migration()
        };
        let page = page(&unknown, 0);
        for told in ["no answer", "pclivectl resolve m-1 --run-here", "until 2023-11-14T22:23:20Z"] {
            assert!(page.contains(told), "no {told} in {page}");
        }
    }

    #[test]
    fn destination_says_whose_parts_it_knows() {
        let page = page(&Migration { role: Role::Destination.into(), ..migration() }, 0);
        assert!(page.contains("The source's agent knows the whole of it"), "{page}");
    }
}
