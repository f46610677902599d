//! The benchmark: the figures that PCLive aims at, as ratios of measurements made in one run.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
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
}

fn main() -> Result<()> {
    let options = Options::parse();
    needs::check(&["redis-server"])?;
    let [small, large] = [options.small_mib << 20, options.large_mib << 20];
    let links = if options.plain { Links::Plain } else { Links::Tls };
    let restore = |strategy, data_bytes| -> Result<f64> {
        let setting = Setting { strategy, data_bytes, clients: 8, pause: LIGHT, links };
        median(&options, setting, |result| Some(result.report.restore_ns as f64 / 1e6))
    };
    let one_shot = restore("one-shot", large)?;
    let global = restore("global", large)?;
    let global_small = restore("global", small)?;
    println!(
        "\nrestore time, {} MiB, light writes: one-shot {one_shot:.1} ms, global {global:.1} ms",
        large >> 20
    );
    println!("  one-shot / global             {:>8.1}   (aim: 20 or more)", one_shot / global);
    println!(
        "restore time by global: {} MiB {global_small:.1} ms, {} MiB {global:.1} ms",
        small >> 20,
        large >> 20
    );
    println!("  large / small                 {:>8.2}   (aim: about 1)", global / global_small);

    let idle = Setting { strategy: "global", data_bytes: large, clients: 0, pause: LIGHT, links };
    let rate = median(&options, idle, |result| result.first_round_rate().map(|rate| rate as f64))?;
    println!("round 0 of an idle container: {:.2} Gbit/s", rate * 8.0 / 1e9);
    println!("  of the link                   {:>7.0} %   (aim: 80 % or more)", 100.0 * rate / LINK);
    let rest = median(&options, idle, |result| {
        let report = &result.report;
        let transfer = report.ledger.as_ref()?.transfer_ns + report.ledger.as_ref()?.fill_ns;
        Some(report.downtime_ns.saturating_sub(transfer) as f64 / 1e6)
    })?;
    println!("downtime without the last pages: {rest:.1} ms   (aim: below 20 ms)");

    let busy = Setting { strategy: "global", data_bytes: large, clients: 2, pause: Duration::ZERO, links };
    let kept = median(&options, busy, |result| Some(result.rate_in_rounds? / result.rate_before))?;
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
        figures.extend(figure(&result));
    }
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().context("nothing could be measured")
}
