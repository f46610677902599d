//! The benchmark: the figures that PCLive aims at, as ratios of measurements made in one run.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use pclive_tests::host::Links;
use pclive_tests::measure::{Measurement, Setting, migrate_redis, warm_memory};
use pclive_tests::needs;

/// Payload that TCP can carry over the 10 Gbit/s link, bytes per second.
const LINK: f64 = 10e9 / 8.0;
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
        }
    }
    Ok(())
}

fn restore(options: &Options) -> Result<()> {
    let (small, large) = (options.small_mib << 20, options.large());
    let time = |strategy, data_bytes| -> Result<f64> {
        let setting = Setting { strategy, data_bytes, clients: 8, pause: LIGHT, links: options.links() };
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
    let setting = Setting { strategy: "global", data_bytes, clients: 0, pause: LIGHT, links };
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
    let setting = Setting { strategy: "global", data_bytes, clients: 2, pause: Duration::ZERO, links };
    let kept = median(options, setting, |result| Some(result.rate_in_rounds? / result.rate_before))?;
    println!("throughput of busy clients while rounds run, median");
    println!("  of what it was before         {:>7.0} %   (aim: 85 % or more)", 100.0 * kept);
    Ok(())
}

/// The median of a figure over the runs.
fn median(
    options: &Options,
    setting: Setting<'_>,
    figure: impl Fn(&Measurement) -> Option<f64>,
) -> Result<f64> {
    let mut figures = Vec::new();
    for run in 0..options.runs {
        eprintln!("{setting:?}, run {} of {}", run + 1, options.runs);
        warm_memory(setting.data_bytes * 3);
        let result = migrate_redis(setting)?;
        result.clients.nothing_lost()?;
        let found = figure(&result);
        eprintln!("  {found:?}");
        figures.extend(found);
    }
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().context("nothing could be measured")
}
