//! The benchmark: the figures that PCLive aims at, as ratios of measurements made in one run.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use pclive_tests::ctl::{Ledger, Usage};
use pclive_tests::host::Links;
use pclive_tests::measure::{Load, Measurement, Setting, migrate_redis, migrate_writer, warm_memory};
use pclive_tests::needs;

/// Payload that TCP can carry over the 10 Gbit/s link, bytes per second.
const LINK: f64 = 10e9 / 8.0;
const MIB: f64 = 1024.0 * 1024.0;
/// Light writes: what a client waits between an answer and its next request.
const LIGHT: Duration = Duration::from_millis(1);

/// Measures migrations of Redis between two hosts on this machine.
#[derive(Debug, Parser)]
struct Options {
    /// The small data set, MiB.
    #[arg(long, default_value_t = 64)]
    small_mib: u64,
    /// The large data set, MiB.
    #[arg(long, default_value_t = 1024)]
    large_mib: u64,
    /// Agents talk in plain text, to see what TLS costs.
    #[arg(long)]
    plain: bool,
    /// Runs of each measurement; the median counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// The figures to measure.
    #[arg(long, value_delimiter = ',', default_value = "restore,idle,busy")]
    only: Vec<Figures>,
}

/// A group of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Figures {
    /// Restore time by strategy and by size.
    Restore,
    /// Rate of round 0, and the downtime, of an idle container.
    Idle,
    /// What busy clients keep of their throughput.
    Busy,
    /// A table of all strategies, for readers and for writers.
    Strategies,
    /// Restore time by size, and by how much is written.
    Scale,
    /// What the stop spends at the source beside the transfer.
    Scan,
}

impl Options {
    fn links(&self) -> Links {
        if self.plain { Links::Plain } else { Links::Tls }
    }

    fn large(&self) -> u64 {
        self.large_mib << 20
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    needs::check(&["redis-server"])?;
    for figures in &options.only {
        match figures {
            Figures::Restore => restore(&options)?,
            Figures::Idle => idle(&options)?,
            Figures::Busy => busy(&options)?,
            Figures::Strategies => strategies(&options)?,
            Figures::Scale => scale(&options)?,
            Figures::Scan => scan(&options)?,
        }
    }
    Ok(())
}

fn restore(options: &Options) -> Result<()> {
    let (small, large) = (options.small_mib << 20, options.large());
    let time = |strategy, data_bytes| -> Result<f64> {
        let load = Load::Sequences { clients: 8, pause: LIGHT };
        let setting = Setting { strategy, data_bytes, load, links: options.links() };
        median(options, setting, |result| Some(result.report.restore_ns as f64 / 1e6))
    };
    let one_shot = time("one-shot", large)?;
    let global = time("global", large)?;
    let global_small = time("global", small)?;
    let (small, large) = (options.small_mib, options.large_mib);
    println!("restore time, {large} MiB, light writes: one-shot {one_shot:.1} ms, global {global:.1} ms");
    println!("  one-shot / global             {:>8.1}   (aim: 20 or more)", one_shot / global);
    println!("restore time by global: {small} MiB {global_small:.1} ms, {large} MiB {global:.1} ms");
    println!("  large / small                 {:>8.2}   (aim: about 1)", global / global_small);
    Ok(())
}

fn idle(options: &Options) -> Result<()> {
    let (data_bytes, links) = (options.large(), options.links());
    let setting = Setting { strategy: "global", data_bytes, load: Load::Idle, links };
    let rate = median(options, setting, |result| result.first_round_rate().map(|rate| rate as f64))?;
    println!("round 0 of an idle container: {:.2} Gbit/s", rate * 8.0 / 1e9);
    println!("  of the link                   {:>7.0} %   (aim: 80 % or more)", 100.0 * rate / LINK);
    let rest = median(options, setting, |result| {
        let report = &result.report;
        let transfer = report.ledger.as_ref()?.transfer_ns + report.ledger.as_ref()?.fill_ns;
        Some(report.downtime_ns.saturating_sub(transfer) as f64 / 1e6)
    })?;
    println!("downtime without the last pages: {rest:.1} ms   (aim: below 20 ms)");
    Ok(())
}

fn busy(options: &Options) -> Result<()> {
    let (data_bytes, links) = (options.large(), options.links());
    let load = Load::Sequences { clients: 2, pause: Duration::ZERO };
    let setting = Setting { strategy: "global", data_bytes, load, links };
    let kept = median(options, setting, |result| Some(result.rate_in_rounds? / result.rate_before))?;
    println!("throughput of busy clients while rounds run, median");
    println!("  of what it was before         {:>7.0} %   (aim: 85 % or more)", 100.0 * kept);
    Ok(())
}

/// Clients of the tables; two keep Redis busy.
fn mixed(writes_percent: u64) -> Load {
    Load::Mixed { clients: 4, writes_percent }
}

fn strategies(options: &Options) -> Result<()> {
    println!(
        "| Redis of {} MiB | writes | downtime, ms | restore, ms | client gap, ms | sent, MiB | staged, MiB | CPU, s |",
        options.large_mib
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|");
    for writes_percent in [10, 90] {
        for strategy in ["one-shot", "pipelined", "pipelined --restore-after 2", "global"] {
            let (data_bytes, links) = (options.large(), options.links());
            let setting = Setting { strategy, data_bytes, load: mixed(writes_percent), links };
            let runs = runs(options, setting)?;
            let figure = |figure: fn(&Measurement) -> f64| middle(runs.iter().map(figure).collect());
            let cpu = |usage: &Option<Usage>| usage.as_ref().map_or(0.0, |usage| usage.cpu_ns as f64 / 1e9);
            let used = middle(
                runs.iter().map(|run| cpu(&run.report.source) + cpu(&run.report.destination)).collect(),
            );
            println!(
                "| `{strategy}` | {writes_percent} % | {:.1} | {:.1} | {:.1} | {:.0} | {:.0} | {used:.1} |",
                figure(|run| run.report.downtime_ns as f64 / 1e6),
                figure(|run| run.report.restore_ns as f64 / 1e6),
                figure(|run| run.clients.longest_gap.as_secs_f64() * 1e3),
                figure(|run| run.report.bytes as f64 / MIB),
                figure(|run| run.report.staging_peak_bytes as f64 / MIB),
            );
        }
    }
    Ok(())
}

fn scale(options: &Options) -> Result<()> {
    println!("| Redis, MiB | writes | restore time by global, ms | downtime, ms |");
    println!("|--:|--:|--:|--:|");
    for mib in [256_u64, 1024, 4096] {
        for writes_percent in [10, 50, 90] {
            let links = options.links();
            let load = mixed(writes_percent);
            let runs = runs(options, Setting { strategy: "global", data_bytes: mib << 20, load, links })?;
            let figure = |figure: fn(&Measurement) -> f64| middle(runs.iter().map(figure).collect());
            println!(
                "| {mib} | {writes_percent} % | {:.1} | {:.1} |",
                figure(|run| run.report.restore_ns as f64 / 1e6),
                figure(|run| run.report.downtime_ns as f64 / 1e6),
            );
        }
    }
    Ok(())
}

/// Pages of a hundred that the program always writes.
const WRITTEN_PERCENT: u64 = 1;
/// Memory of the program, MiB.
const WRITER_MIB: u64 = 4096;

fn scan(options: &Options) -> Result<()> {
    let mut reports = Vec::new();
    for run in 1..=options.runs {
        eprintln!("scan, run {run} of {}", options.runs);
        warm_memory((WRITER_MIB << 20) * 5 / 2);
        reports.push(migrate_writer(options.links(), WRITER_MIB, WRITTEN_PERCENT)?);
    }
    let part = |part: fn(&Ledger) -> u64| {
        middle(reports.iter().filter_map(|report| Some(part(report.ledger.as_ref()?) as f64 / 1e6)).collect())
    };
    let (scan, capture) = (part(|ledger| ledger.final_scan_ns), part(|ledger| ledger.capture_ns));
    println!(
        "{WRITER_MIB} MiB of which {WRITTEN_PERCENT} % is always written: find the last written pages {scan:.1} ms,"
    );
    println!("read the kernel's state {capture:.1} ms, transfer {:.1} ms", part(|ledger| ledger.transfer_ns));
    println!("  find and read                 {:>8.1} ms   (aim: below 10 ms)", scan + capture);
    Ok(())
}

fn runs(options: &Options, setting: Setting<'_>) -> Result<Vec<Measurement>> {
    let run = |run| {
        eprintln!("{setting:?}, run {} of {}", run + 1, options.runs);
        warm_memory(setting.data_bytes * 3);
        let result = migrate_redis(setting)?;
        result.clients.nothing_lost()?;
        Ok(result)
    };
    (0..options.runs).map(run).collect()
}

fn middle(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The median of a figure over the runs.
fn median(
    options: &Options,
    setting: Setting<'_>,
    figure: impl FnMut(&Measurement) -> Option<f64>,
) -> Result<f64> {
    let figures: Vec<f64> = runs(options, setting)?.iter().filter_map(figure).collect();
    ensure!(!figures.is_empty(), "nothing could be measured");
    Ok(middle(figures))
}
