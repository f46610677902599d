//! The demo: a Redis with a gigabyte and eight clients moves from one host to another, by both strategies.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use pclive_tests::ctl::Ledger;
use pclive_tests::host::Links;
use pclive_tests::measure::{Measurement, Setting, migrate_redis, warm_memory};
use pclive_tests::needs;
use serde_json::json;

/// One entry of the ledger.
type Part = fn(&Ledger) -> u64;
/// Both strategies, the one that PCLive is compared with first.
const STRATEGIES: [&str; 2] = ["one-shot", "global"];

/// Moves a Redis with clients between two hosts on this machine, by both strategies, and compares them.
#[derive(Debug, Parser)]
struct Options {
    /// Redis's data set, MiB.
    #[arg(long, default_value_t = 1024)]
    size_mib: u64,
    /// Clients that write and read back all the time.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// What a client waits between an answer and its next request, microseconds.
    #[arg(long, default_value_t = 1000)]
    pause_us: u64,
    /// Agents talk in plain text, to see what TLS costs.
    #[arg(long)]
    plain: bool,
    /// Where the results go as JSON.
    #[arg(long, default_value = "target/demo.json")]
    output: PathBuf,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    needs::check(&["redis-server"])?;
    let mut results = Vec::new();
    for strategy in STRATEGIES {
        println!(
            "{strategy}: two hosts, a 10 Gbit/s link, a Redis with {} MiB, {} clients ...",
            options.size_mib, options.clients
        );
        let data_bytes = options.size_mib << 20;
        warm_memory(data_bytes * 3);
        let links = if options.plain { Links::Plain } else { Links::Tls };
        let pause = Duration::from_micros(options.pause_us);
        let setting = Setting { strategy, data_bytes, clients: options.clients, pause, links };
        results.push((strategy, migrate_redis(setting).with_context(|| format!("by {strategy}"))?));
    }
    print(&results);
    write(&options.output, &results)?;
    println!("\nThe same as JSON: {}", options.output.display());
    let lost = results.iter().any(|(_, result)| result.clients.nothing_lost().is_err());
    if lost {
        println!("\nFAILED: clients lost something.");
        results.iter().for_each(|(strategy, result)| println!("{strategy}: {:?}", result.clients));
    }
    Ok(if lost { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn ms(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

fn write(path: &PathBuf, results: &[(&str, Measurement)]) -> Result<()> {
    let object = |(strategy, result): &(&str, Measurement)| {
        json!({
            "strategy": strategy,
            "downtime_ms": ms(result.report.downtime_ns),
            "restore_ms": ms(result.report.restore_ns),
            "client_gap_ms": result.clients.longest_gap.as_secs_f64() * 1e3,
            "bytes": result.report.bytes,
            "rounds": result.report.rounds.len(),
            "lost_connections": result.clients.lost_connections,
            "lost_writes": result.clients.lost_writes,
        })
    };
    let list: Vec<_> = results.iter().map(object).collect();
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let text = format!("{}\n", serde_json::to_string_pretty(&list)?);
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// One line of the table: a name, a unit, and the value of each strategy.
fn line(results: &[(&str, Measurement)], name: &str, value: impl Fn(&Measurement) -> String) {
    let columns: String = results.iter().map(|(_, result)| format!("{:>14}", value(result))).collect();
    println!("{name:<34}{columns}");
}

fn print(results: &[(&str, Measurement)]) {
    let heads: String = results.iter().map(|(strategy, _)| format!("{strategy:>14}")).collect();
    println!("\n{:<34}{heads}", "");
    let time = |name: &str, value: fn(&Measurement) -> f64| {
        line(results, &format!("{name}, ms"), |result| format!("{:.1}", value(result)));
    };
    time("downtime", |result| ms(result.report.downtime_ns));
    time("restore time", |result| ms(result.report.restore_ns));
    time("longest client gap", |result| result.clients.longest_gap.as_secs_f64() * 1e3);
    time("whole migration", |result| ms(result.report.total_ns));
    line(results, "sent, MiB", |result| format!("{:.1}", result.report.bytes as f64 / f64::from(1 << 20)));
    line(results, "rounds", |result| result.report.rounds.len().to_string());
    line(results, "most staged, MiB", |result| (result.report.staging_peak_bytes >> 20).to_string());
    line(results, "answers to clients", |result| result.clients.answers.to_string());
    line(results, "lost connections", |result| result.clients.lost_connections.to_string());
    line(results, "lost writes", |result| result.clients.lost_writes.to_string());
    println!("\nWhere the downtime went, ms:");
    let parts: [(&str, Part); 8] = [
        ("  stop every task", |ledger| ledger.freeze_ns),
        ("  find the last written pages", |ledger| ledger.final_scan_ns),
        ("  read the kernel's state", |ledger| ledger.capture_ns),
        ("  send both", |ledger| ledger.transfer_ns),
        ("  write the pages at the destination", |ledger| ledger.fill_ns),
        ("  rebuild the kernel's state", |ledger| ledger.restore_ns),
        ("  commit", |ledger| ledger.commit_ns),
        ("  let it run", |ledger| ledger.resume_ns),
    ];
    for (name, part) in parts {
        line(results, name, |result| {
            result.report.ledger.as_ref().map_or("-".into(), |ledger| format!("{:.2}", ms(part(ledger))))
        });
    }
    println!("\nWhy the rounds ended:");
    results.iter().for_each(|(strategy, result)| println!("  {strategy}: {}", result.report.verdict));
    println!("{}", how_to_read(results));
}

fn how_to_read(results: &[(&str, Measurement)]) -> String {
    let ratio = match results {
        [(_, one_shot), (_, global)] if global.report.restore_ns > 0 => {
            one_shot.report.restore_ns as f64 / global.report.restore_ns as f64
        }
        _ => f64::NAN,
    };
    format!(
        "
How to read it: both columns move the same container in the same way, except for one thing. With one-shot all
memory waits at the destination and is put in place after the container has stopped, as checkpoint/restore tools
do. With global the container is rebuilt while it still runs at the source, so that only the last written pages
and the small state of the kernel are left for the stop: its restore was {ratio:.0} times shorter.

  downtime            from the begin of the stop at the source until the destination says that it runs
  restore time        the destination's part of it: from the last byte received until it runs
  longest client gap  the longest time that any client waited between two answers, over the whole run
  lost ...            must be 0: every connection survived, every acknowledged write was read back"
    )
}
