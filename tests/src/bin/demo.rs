//! The demo: a Redis with a gigabyte and eight clients moves from one host to another, once by each strategy.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use pclive_tests::ctl::{Ledger, Usage};
use pclive_tests::host::Links;
use pclive_tests::measure::{Measurement, Setting, migrate_redis};
use pclive_tests::needs;
use serde_json::json;

/// One entry of the ledger.
type Part = fn(&Ledger) -> u64;
/// Every strategy.
const STRATEGIES: [&str; 3] = ["one-shot", "pipelined", "global"];

/// Moves a Redis with clients between two hosts on this machine, once by each strategy, and compares them.
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
    /// The columns, in this order.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "one-shot,global",
        value_parser = clap::builder::PossibleValuesParser::new(STRATEGIES)
    )]
    strategies: Vec<String>,
    /// Where the results go as JSON.
    #[arg(long, default_value = "target/demo.json")]
    output: PathBuf,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    needs::check(&["redis-server"])?;
    let mut results = Vec::new();
    for strategy in &options.strategies {
        println!(
            "{strategy}: two hosts, a 10 Gbit/s link, a Redis with {} MiB, {} clients ...",
            options.size_mib, options.clients
        );
        let data_bytes = options.size_mib << 20;
        let links = if options.plain { Links::Plain } else { Links::Tls };
        let pause = Duration::from_micros(options.pause_us);
        let setting = Setting { strategy, data_bytes, clients: options.clients, pause, links };
        results.push((strategy.as_str(), migrate_redis(setting).with_context(|| format!("by {strategy}"))?));
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
            "staging_peak_bytes": result.report.staging_peak_bytes,
            "source_cpu_ms": result.report.source.as_ref().map(|usage| ms(usage.cpu_ns)),
            "destination_cpu_ms": result.report.destination.as_ref().map(|usage| ms(usage.cpu_ns)),
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
    let cpu =
        |usage: &Option<Usage>| usage.as_ref().map_or("-".into(), |usage| format!("{:.0}", ms(usage.cpu_ns)));
    line(results, "CPU at the source, ms", |result| cpu(&result.report.source));
    line(results, "CPU at the destination, ms", |result| cpu(&result.report.destination));
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
    let restore = |wanted: &str| {
        let found = results.iter().find(|(strategy, _)| *strategy == wanted);
        found.map(|(_, result)| result.report.restore_ns as f64).filter(|time| *time > 0.0)
    };
    let shorter = |strategy: &str| match (restore("one-shot"), restore(strategy)) {
        (Some(one_shot), Some(this)) => format!(": its restore was {:.0} times shorter", one_shot / this),
        (None, _) | (_, None) => String::new(),
    };
    let global = shorter("global");
    let pipelined = match results.iter().any(|(strategy, _)| *strategy == "pipelined") {
        true => format!(
            "\nWith pipelined a round waits until it is whole, and is put in place while the next one is on its way{}.",
            shorter("pipelined")
        ),
        false => String::new(),
    };
    format!(
        "
How to read it: all columns move the same container in the same way, except for one thing. With one-shot all
memory waits at the destination and is put in place after the container has stopped, as checkpoint/restore tools
do. With global the container is rebuilt while it still runs at the source, so that only the last written pages
and the small state of the kernel are left for the stop{global}.{pipelined}

  downtime            from the begin of the stop at the source until the destination says that it runs
  restore time        the destination's part of it: from the last byte received until it runs
  longest client gap  the longest time that any client waited between two answers, over the whole run
  lost ...            must be 0: every connection survived, every acknowledged write was read back"
    )
}
