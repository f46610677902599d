//! Which plots are made of the runs.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use pclive_tests::ctl::Ledger;

use crate::outcome::{Measures, Run};
use crate::plot::{self, Names, Scale, Series};
use crate::setting::{Link, Setting, Workload};
use crate::summary::{Summary, usual};
use crate::view::BUCKET;

/// A plot and what it is called, in a file's name too.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) svg: String,
}

/// A part of the downtime.
type Part = (&'static str, fn(&Ledger) -> u64);
const PARTS: [Part; 8] = [
    ("freeze", |ledger| ledger.freeze_ns),
    ("final scan", |ledger| ledger.final_scan_ns),
    ("capture", |ledger| ledger.capture_ns),
    ("transfer", |ledger| ledger.transfer_ns),
    ("fill", |ledger| ledger.fill_ns),
    ("restore", |ledger| ledger.restore_ns),
    ("commit", |ledger| ledger.commit_ns),
    ("resume", |ledger| ledger.resume_ns),
];
/// A timeline begins so long before the stop, and ends so long after it, seconds.
const AROUND: [f64; 2] = [-6.0, 3.0];
/// Intervals of a timeline that are told as one.
const JOINED: usize = 5;

/// Every plot for which there are runs.
pub(crate) fn figures(runs: &[Run]) -> Result<Vec<Figure>> {
    let summary = Summary::new(runs);
    let mut figures = Vec::new();
    for link in [Link::Gigabit, Link::TenGigabit, Link::Unshaped, Link::Own] {
        figures.extend(split(&summary, link)?);
    }
    figures.extend(by_records(&summary, "restore", "Restore time by records", |measures| {
        measures.report.restore_ns
    })?);
    figures.extend(by_records(&summary, "downtime", "Downtime by records", |measures| {
        measures.report.downtime_ns
    })?);
    figures.extend(by_dirty_rate(&summary)?);
    figures.extend(timeline(runs)?);
    figures.extend(overhead(&summary)?);
    Ok(figures)
}

fn split(summary: &Summary<'_>, link: Link) -> Result<Option<Figure>> {
    let bar = |setting: &Setting| {
        let ycsb = usual(setting).filter(|_| setting.link == link)?;
        let part = |&(_, part): &Part| {
            let ms = |measures: &Measures| Some(part(measures.report.ledger.as_ref()?) as f64 / 1e6);
            Some(summary.figure(setting, ms)?.median)
        };
        let parts = PARTS.iter().map(part).collect::<Option<Vec<f64>>>()?;
        let name = format!("{}k, {} % reads, {}", ycsb.records / 1000, ycsb.reads_percent, setting.strategy);
        Some((name, parts))
    };
    let bars: Vec<_> = summary.settings().filter_map(|(setting, _)| bar(setting)).collect();
    if bars.is_empty() {
        return Ok(None);
    }
    let title = format!("Where the downtime went: Redis over {link}");
    let names = Names { title: &title, x: "ms, median of each part", y: "" };
    let svg = plot::stacked(names, &PARTS.map(|part| part.0), &bars)?;
    let speed = match link {
        Link::Gigabit => "1g",
        Link::TenGigabit => "10g",
        Link::Unshaped => "unshaped",
        Link::Own => "own-link",
    };
    Ok(Some(Figure { name: format!("downtime-split-{speed}"), svg }))
}

/// One line for each strategy, of settings that have an `x`; those that are alone with theirs tell no more than a table.
fn series(
    summary: &Summary<'_>,
    x: impl Fn(&Setting) -> Option<f64>,
    y: impl Fn(&Measures) -> u64,
) -> Vec<Series> {
    let mut lines: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (setting, _) in summary.settings() {
        let figure = summary.figure(setting, |measures| Some(y(measures) as f64 / 1e6));
        if let (Some(x), Some(figure)) = (x(setting), figure) {
            lines.entry(setting.strategy.to_string()).or_default().push((x, figure.median));
        }
    }
    for points in lines.values_mut() {
        points.sort_by(|one, other| one.0.total_cmp(&other.0));
    }
    let places: BTreeSet<u64> = lines.values().flatten().map(|point| point.0.to_bits()).collect();
    if places.len() > 1 { lines.into_iter().collect() } else { Vec::new() }
}

fn by_records(
    summary: &Summary<'_>,
    name: &str,
    title: &str,
    y: impl Fn(&Measures) -> u64,
) -> Result<Option<Figure>> {
    let records = |setting: &Setting| {
        let ycsb =
            usual(setting).filter(|ycsb| ycsb.reads_percent == 90 && setting.link == Link::TenGigabit)?;
        Some(ycsb.records as f64 / 1e6)
    };
    let series = series(summary, records, y);
    if series.is_empty() {
        return Ok(None);
    }
    let title = format!("{title}, 90 % reads over 10 Gbit/s");
    let svg =
        plot::lines(Names { title: &title, x: "million records", y: "ms" }, Scale::Logarithmic, &series)?;
    Ok(Some(Figure { name: format!("{name}-by-records"), svg }))
}

fn by_dirty_rate(summary: &Summary<'_>) -> Result<Option<Figure>> {
    let rate = |setting: &Setting| match setting.workload {
        Workload::Stress { pages_per_second, .. } if setting.link == Link::TenGigabit => {
            Some(pages_per_second as f64 / 1000.0)
        }
        Workload::Stress { .. } | Workload::Ycsb(_) | Workload::Oltp(_) | Workload::Graph { .. } => None,
    };
    let series = series(summary, rate, |measures| measures.report.downtime_ns);
    if series.is_empty() {
        return Ok(None);
    }
    let names = Names {
        title: "Downtime by dirty rate, over 10 Gbit/s",
        x: "thousand pages a second that are to be written",
        y: "ms",
    };
    let svg = plot::lines(names, Scale::Logarithmic, &series)?;
    Ok(Some(Figure { name: "downtime-by-dirty-rate".into(), svg }))
}

/// Throughput around the stop: one run of each strategy, of the setting with most records and most writes.
fn timeline(runs: &[Run]) -> Result<Option<Figure>> {
    let weight = |setting: &Setting| {
        let ycsb = usual(setting)?;
        Some((setting.link == Link::TenGigabit, 100 - ycsb.reads_percent, ycsb.records))
    };
    let measured = || runs.iter().filter(|run| run.measures().is_some());
    let Some(most) = measured().filter_map(|run| weight(&run.setting)).max() else { return Ok(None) };
    let mut lines: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for run in measured().filter(|run| weight(&run.setting) == Some(most)) {
        let view = run.measures().and_then(|measures| measures.clients.as_ref());
        let Some(view) = view else { continue };
        let stop = view.rounds_ms[1] as f64 / 1e3;
        let width = BUCKET.as_secs_f64() * JOINED as f64;
        let rate = |(index, answers): (usize, &[u32])| {
            (index as f64 * width - stop, f64::from(answers.iter().sum::<u32>()) / width / 1e3)
        };
        let points = view.answers.chunks_exact(JOINED).enumerate().map(rate);
        let shown = points.filter(|point| (AROUND[0]..AROUND[1]).contains(&point.0)).collect();
        lines.entry(run.setting.strategy.to_string()).or_insert(shown);
    }
    let series: Vec<Series> = lines.into_iter().collect();
    if series.is_empty() {
        return Ok(None);
    }
    let title = format!("Throughput around the stop: {} k records, {} % reads", most.2 / 1000, 100 - most.1);
    let names = Names { title: &title, x: "seconds from the stop", y: "thousand answers/s" };
    Ok(Some(Figure { name: "timeline".into(), svg: plot::lines(names, Scale::Linear, &series)? }))
}

/// CPU time of both agents, by strategy, of the settings with clients.
fn overhead(summary: &Summary<'_>) -> Result<Option<Figure>> {
    let bar = |setting: &Setting| {
        let ycsb = usual(setting)?;
        let end = |index: usize| {
            Some(summary.figure(setting, |measures| Some(measures.cpu_per_gib()?[index]))?.median)
        };
        let name = format!(
            "{}k, {} % reads, {}, {}",
            ycsb.records / 1000,
            ycsb.reads_percent,
            setting.link,
            setting.strategy
        );
        Some((name, vec![end(0)?, end(1)?]))
    };
    let bars: Vec<_> = summary.settings().filter_map(|(setting, _)| bar(setting)).collect();
    if bars.is_empty() {
        return Ok(None);
    }
    let names = Names {
        title: "CPU time of moving, beside the container's own",
        x: "CPU seconds for each GiB",
        y: "",
    };
    Ok(Some(Figure { name: "cpu".into(), svg: plot::stacked(names, &["source", "destination"], &bars)? }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use crate::setting::Ycsb;

    #[test]
    fn every_plot_is_made_of_runs_that_have_what_it_shows() {
        let redis = |records, strategy: &str| {
            let workload = Workload::Ycsb(Ycsb { records, reads_percent: 90, clients: 4, rate: None });
            let run = sample::run_of(workload, strategy, 30, 3);
            Run { setting: Setting { link: Link::TenGigabit, ..run.setting.clone() }, ..run }
        };
        let stress = |pages_per_second| {
            let run = sample::run_of(Workload::Stress { mib: 64, pages_per_second }, "global", 12, 1);
            Run { setting: Setting { link: Link::TenGigabit, ..run.setting.clone() }, ..run }
        };
        let runs = [
            redis(250_000, "global"),
            redis(500_000, "global"),
            redis(250_000, "one-shot"),
            sample::measured("global", 20, 2),
            stress(1000),
            stress(5000),
        ];
        let names: Vec<String> = figures(&runs).unwrap().into_iter().map(|figure| figure.name).collect();
        assert_eq!(
            names,
            [
                "downtime-split-1g",
                "downtime-split-10g",
                "restore-by-records",
                "downtime-by-records",
                "downtime-by-dirty-rate",
                "timeline",
                "cpu"
            ]
        );
    }

    #[test]
    fn one_point_makes_no_line_and_no_run_no_plot() {
        let names: Vec<String> = figures(&[sample::measured("global", 20, 2)])
            .unwrap()
            .into_iter()
            .map(|figure| figure.name)
            .collect();
        assert_eq!(names, ["downtime-split-1g", "timeline", "cpu"]);
        assert!(figures(&[]).unwrap().is_empty());
    }
}
