//! The report of all runs: HTML in one file, which needs no network and runs nothing.

use std::collections::BTreeSet;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::figures::Figure;
use crate::outcome::{Outcome, Run};
use crate::setting::{Channel, Link, Strategy};
use crate::table::Table;

const STYLE: &str = include_str!("style.css");

/// How CRIU was measured.
const CRIU: &str = "CRIU: `runc checkpoint` and `runc restore`, with rounds before the dump only where the kernel tracks \
    writes for it (soft-dirty; beside its version is whether it does). Pages go over the same link to its page server and \
    the other images by tar, in plain text. Images are in memory at both ends, and are what is told as extra memory. Its CPU \
    time is that of these commands and of the tasks while they put their memory back. Its downtime begins when CRIU began \
    to freeze, and ends when the copy runs and may be reached.";
/// Why it was not.
const NO_CRIU: &str = "CRIU was not measured (`--criu PATH`): one-shot stands for the same rounds with everything restored after the stop.";

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
    let channels: BTreeSet<&str> = runs.iter().map(|run| channel(run.setting.channel)).collect();
    let is_lab = runs.iter().all(|run| run.setting.link != Link::Own);
    let mut lines = vec![format!(
        "{} migrations of {} settings, up to {repetitions} of each, between two hosts{}, whose agents talk by {}.",
        measured.count(),
        settings.len(),
        if is_lab { " on one machine" } else { "" },
        channels.into_iter().collect::<Vec<_>>().join(" and "),
    )];
    lines.extend(machines);
    lines.push(
        "Figures are medians, with the least and the most of the runs in brackets: what differs by no more than that may be \
         noise, and two or three runs do not show all of it."
            .into(),
    );
    let is_criu_there = settings.iter().any(|setting| setting.strategy == Strategy::Criu);
    lines.push(if is_criu_there { CRIU } else { NO_CRIU }.into());
    if is_lab {
        lines.push(
            "Both hosts, the container and its clients share the CPUs of one machine: clients lose throughput to the \
             agents that they would keep on hosts of their own."
                .into(),
        );
    }
    lines
}

fn channel(channel: Channel) -> &'static str {
    match channel {
        Channel::Tls => "mutual TLS",
        Channel::Plain => "plain text",
    }
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

/// Every run that failed: another that did not fail is no reason to forget it.
fn failures(runs: &[Run]) -> Markup {
    let failed: Vec<String> = runs.iter().filter_map(|run| failure(runs, run)).collect();
    html! {
        @if !failed.is_empty() {
            h2 { "Runs that failed" }
            ul { @for line in failed { li { (line) } } }
        }
    }
}

/// Why a run failed, if it did.
pub(crate) fn failure(runs: &[Run], run: &Run) -> Option<String> {
    let Outcome::Failed { why } = &run.outcome else { return None };
    let is_measured = runs.iter().any(|other| run.is_same(other) && other.measures().is_some());
    let then = if is_measured { " (and was measured another time)" } else { "" };
    Some(format!("{}, run {}: {why}{then}", run.setting, run.repetition))
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
    fn failed_run_is_told_even_when_it_was_measured_later() {
        let failed = Run { outcome: Outcome::Failed { why: "no <b>".into() }, ..sample::run("global", 1) };
        let runs = [failed.clone(), sample::run("global", 2)];
        let told = failure(&runs, &runs[0]).unwrap();
        assert_eq!(told, "Redis of 1000 records, 90 % reads by global over 1 Gbit/s, run 1: no <b>");
        assert!(page(&runs, &[], &[]).contains("no &lt;b&gt;"));
        let runs = [failed, sample::run("global", 1)];
        assert!(failure(&runs, &runs[0]).unwrap().ends_with("measured another time)"));
        assert_eq!(failure(&runs, &runs[1]), None);
    }
}
