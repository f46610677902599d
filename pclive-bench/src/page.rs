//! The report of all runs: HTML in one file, which needs no network and runs nothing.

use std::collections::BTreeSet;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::figures::Figure;
use crate::outcome::{Outcome, Run};
use crate::setting::Link;
use crate::table::Table;

const STYLE: &str = include_str!("style.css");

/// The page.
pub(crate) fn page(runs: &[Run], tables: &[Table], figures: &[Figure]) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "PCLive: what migrations cost" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "What migrations cost" }
                @for line in conditions(runs) { p { (line) } }
                @for table in tables { (self::table(table)) }
                @for figure in figures { figure { (PreEscaped(&figure.svg)) } }
                (failures(runs))
                footer { "Written by pclive-bench " (env!("CARGO_PKG_VERSION")) ". Every run is a line of runs.jsonl." }
            }
        }
    };
    page.into_string()
}

/// What was run, where, and what to make of it.
pub(crate) fn conditions(runs: &[Run]) -> Vec<String> {
    let measured = runs.iter().filter(|run| run.measures().is_some());
    let settings: BTreeSet<_> = measured.clone().map(|run| &run.setting).collect();
    let repetitions = measured.clone().map(|run| run.repetition).max().unwrap_or_default();
    let machines: BTreeSet<String> = runs.iter().map(machine).collect();
    let links: BTreeSet<&str> =
        runs.iter().map(|run| if run.tls { "mutual TLS" } else { "plain text" }).collect();
    let is_lab = runs.iter().all(|run| run.setting.link != Link::Own);
    let mut lines = vec![format!(
        "{} migrations of {} settings, up to {repetitions} of each, between two hosts{}, whose agents talk by {}.",
        measured.count(),
        settings.len(),
        if is_lab { " on one machine" } else { "" },
        links.into_iter().collect::<Vec<_>>().join(" and "),
    )];
    lines.extend(machines);
    lines.push(
        "Figures are medians, with the least and the most of the runs in brackets. What differs by less than that is noise."
            .into(),
    );
    if is_lab {
        lines.push(
            "Both hosts, the container and its clients share the CPUs of one machine: clients lose throughput to the \
             agents that they would keep on hosts of their own."
                .into(),
        );
    }
    lines
}

fn machine(run: &Run) -> String {
    let machine = &run.machine;
    format!(
        "{} with {} CPUs, {} MiB of memory, Linux {}; {}.",
        machine.cpu,
        machine.cpus,
        machine.memory_mib,
        machine.kernel,
        machine.versions.join("; ")
    )
}

fn table(table: &Table) -> Markup {
    let class = |column: usize| if column < table.text_columns { "text" } else { "" };
    html! {
        h2 { (table.title) }
        div.wide {
            table {
                tr { @for (column, head) in table.heads.iter().enumerate() { th class=(class(column)) { (head) } } }
                @for row in &table.rows {
                    tr { @for (column, cell) in row.iter().enumerate() { td class=(class(column)) { (cell) } } }
                }
            }
        }
    }
}

/// Runs that failed, and are not measured by another.
fn failures(runs: &[Run]) -> Markup {
    let failed = unmeasured(runs);
    html! {
        @if !failed.is_empty() {
            h2 { "Runs that failed" }
            ul { @for line in failed { li { (line) } } }
        }
    }
}

/// The last word on each run that was not measured.
pub(crate) fn unmeasured(runs: &[Run]) -> Vec<String> {
    let is_measured = |run: &Run| runs.iter().any(|other| same(run, other) && other.measures().is_some());
    let failed = runs.iter().enumerate().filter_map(|(index, run)| match &run.outcome {
        Outcome::Measured(_) => None,
        Outcome::Failed { why } => {
            let is_last = !runs[index + 1..].iter().any(|later| same(run, later));
            (is_last && !is_measured(run)).then(|| format!("{}, run {}: {why}", run.setting, run.repetition))
        }
    });
    failed.collect()
}

fn same(one: &Run, other: &Run) -> bool {
    (&one.setting, one.repetition) == (&other.setting, other.repetition)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{figures, sample, table};

    #[test]
    fn page_tells_what_was_run_and_needs_no_network() {
        let runs = [sample::measured("one-shot", 100, 90), sample::measured("global", 20, 2)];
        let page = page(&runs, &table::tables(&runs), &figures::figures(&runs).unwrap());
        for told in
            ["2 migrations of 2 settings", "A CPU with 2 CPUs", "runc 1.1", "<svg", "What clients saw"]
        {
            assert!(page.contains(told), "no {told}");
        }
        let mine = page.replace("http://www.w3.org/2000/svg", "");
        for network in ["http:", "https:", "src=", "href=", "<script", "url(", "@import"] {
            assert!(!mine.contains(network), "{network}");
        }
    }

    #[test]
    fn failed_run_is_told_until_it_is_measured() {
        let failed =
            |why: &str| Run { outcome: Outcome::Failed { why: why.into() }, ..sample::run("global", 1) };
        let runs = [failed("first <b>"), failed("second <b>"), sample::run("global", 2)];
        assert_eq!(
            unmeasured(&runs),
            ["Redis of 1000 records, 90 % reads by global over 1 Gbit/s, run 1: second <b>"]
        );
        assert!(page(&runs, &[], &[]).contains("second &lt;b&gt;"));
        assert!(unmeasured(&[failed("first"), sample::run("global", 1)]).is_empty());
    }
}
