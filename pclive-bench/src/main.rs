//! The benchmark: published workloads in containers that move between two hosts, measured from the agents' side and
//! from the clients', by every strategy in one session.
//!
//! Invariants: every run fills its container anew, and has a lab of its own unless the hosts are the user's; a run that
//! has ended is on disk before the next one begins; a session that is interrupted goes on where it was. The order of runs
//! is random, but repeats with its seed.
#![forbid(unsafe_code)]

mod clients;
mod criu;
mod figures;
mod hosts;
mod load;
mod machine;
mod measure;
mod oltp;
mod outcome;
mod page;
mod picture;
mod plot;
mod report;
#[cfg(test)]
mod sample;
mod selection;
mod setting;
mod store;
mod summary;
mod table;
mod view;
mod ycsb;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use pclive_tests::needs;

use criu::Criu;
use hosts::{Hosts, HostsOptions};
use measure::{Session, Site, seed_of};
use outcome::{Outcome, Run};
use selection::{Axes, Selection, order};
use setting::{CLIENTS, Channel, Link, Setting, Strategy, Workload, Ycsb};
use store::Store;

/// Measures what migrations cost.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure, and write the report. What was measured before, in the same directory, is not measured again.
    Run(Box<RunOptions>),
    /// Write the report of what was measured.
    Report {
        /// Where `runs.jsonl` is, and the report goes.
        #[arg(long, default_value = "target/bench")]
        out: PathBuf,
    },
}

#[derive(Debug, Args)]
struct RunOptions {
    /// Ready-made settings.
    #[arg(long, value_enum, default_value = "quick", conflicts_with_all = ["strategies", "records", "reads", "links", "clients", "rate", "bandwidth", "source"])]
    selection: Selection,
    /// Of these, only those with this text in their names (`--dry-run` shows them): "graph", "PostgreSQL", "by global".
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, conflicts_with_all = ["strategies", "records", "reads", "links", "clients", "rate", "bandwidth", "source"])]
    only: String,
    /// Instead of ready-made settings, all combinations of these, with Redis: one-shot, pipelined,
    /// pipelined+restore-after-N, global, global+post-copy.
    #[arg(long, value_delimiter = ',')]
    strategies: Vec<Strategy>,
    /// Records of 1000 bytes. [default: 250000]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..=MOST_RECORDS))]
    records: Vec<u64>,
    /// Of 100 requests, those that read. [default: 90]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u8).range(..=100))]
    reads: Vec<u8>,
    /// Between each host and the switch. [default: 10g]
    #[arg(long, value_enum, value_delimiter = ',', conflicts_with = "source")]
    links: Vec<Link>,
    /// Client threads; none: Redis idles. [default: 4]
    #[arg(long)]
    clients: Option<u16>,
    /// Requests a second of all clients together, on a schedule; without it each asks when it has its answer.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=MOST_REQUESTS))]
    rate: Option<u32>,
    /// Runs of each setting.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,
    /// Measure this CRIU too (version 4 or later), with runc: every workload over every link.
    #[arg(long, value_name = "PATH", conflicts_with = "source")]
    criu: Option<PathBuf>,
    /// Limit of the rounds' bandwidth, Mbit/s, as `pclivectl migrate --bandwidth` sets it; CRIU has none.
    #[arg(long, value_name = "MBIT", value_parser = clap::value_parser!(u32).range(1..))]
    bandwidth: Option<u32>,
    /// Agents talk in plain text, to see what TLS costs.
    #[arg(long)]
    plain: bool,
    /// Of the order of runs, of contents and of the clients' choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    hosts: Option<HostsOptions>,
    /// Where `runs.jsonl` and the report go: a directory for each pair of hosts, and for each version that is measured.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Say what would be measured, and measure nothing.
    #[arg(long)]
    dry_run: bool,
}

impl RunOptions {
    fn channel(&self) -> Channel {
        if self.plain { Channel::Plain } else { Channel::Tls }
    }

    fn settings(&self, criu: Option<&Criu>) -> Result<BTreeSet<Setting>> {
        let Self { strategies, records, reads, links, clients, rate, bandwidth, .. } = self;
        let chosen = !strategies.is_empty() || !records.is_empty() || !reads.is_empty() || !links.is_empty();
        let limited = rate.is_some() || bandwidth.is_some();
        if !chosen && clients.is_none() && !limited && self.hosts.is_none() {
            let mut settings = self.with_criu(criu, self.selection.settings(self.channel()))?;
            settings.retain(|setting| setting.to_string().contains(&self.only));
            ensure!(!settings.is_empty(), "no setting has {:?} in its name; --dry-run shows all", self.only);
            return Ok(settings);
        }
        ensure!(
            *clients != Some(0) || (rate.is_none() && reads.is_empty()),
            "no clients, but --reads or --rate"
        );
        let or = |given: &[u64], default| if given.is_empty() { vec![default] } else { given.to_vec() };
        let reads = if reads.is_empty() { &[90] } else { reads.as_slice() };
        let workload = |records| {
            reads.iter().map(move |&reads_percent| {
                let clients = clients.unwrap_or(CLIENTS);
                Workload::Ycsb(Ycsb { records, reads_percent, clients, rate: *rate })
            })
        };
        let axes = Axes {
            strategies: if strategies.is_empty() {
                vec![Strategy::OneShot, Strategy::Global]
            } else {
                strategies.clone()
            },
            workloads: or(records, 250_000).into_iter().flat_map(workload).collect(),
            links: match &self.hosts {
                Some(_) => vec![Link::Own],
                None if links.is_empty() => vec![Link::TenGigabit],
                None => links.clone(),
            },
            bandwidth: *bandwidth,
        };
        self.with_criu(criu, axes.settings(self.channel()))
    }

    /// With CRIU beside every other strategy, if there is one, of what it can move here.
    fn with_criu(&self, criu: Option<&Criu>, mut settings: BTreeSet<Setting>) -> Result<BTreeSet<Setting>> {
        ensure!(!self.strategies.contains(&Strategy::Criu), "CRIU is measured by `--criu PATH`");
        if let Some(criu) = criu {
            let others = settings.iter().filter(|setting| criu.obstacle(&setting.workload).is_none());
            let beside =
                |setting: &Setting| Setting { strategy: Strategy::Criu, bandwidth: None, ..setting.clone() };
            settings.extend(others.map(beside).collect::<Vec<_>>());
        }
        Ok(settings)
    }
}

/// More than fit any machine, and less than would overflow.
const MOST_RECORDS: u64 = 1_000_000_000;
/// More than any Redis answers in a second.
const MOST_REQUESTS: i64 = 10_000_000;

/// The file of runs in the directory.
fn runs_of(directory: &Path) -> PathBuf {
    directory.join("runs.jsonl")
}

fn main() -> Result<ExitCode> {
    match Options::parse().command {
        Command::Run(options) => run(&options),
        Command::Report { out } => {
            let runs = store::read(&runs_of(&out))?;
            if runs.is_empty() {
                bail!("nothing was measured in {}: `pclive-bench run --out DIR` does", out.display());
            }
            told(&out, &runs)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn run(options: &RunOptions) -> Result<ExitCode> {
    let criu = options.criu.as_deref().map(Criu::at).transpose()?;
    let settings = options.settings(criu.as_ref())?;
    let wanted = order(&settings, options.repetitions, options.seed);
    if let Some(criu) = &criu {
        let workloads: BTreeSet<&Workload> = settings.iter().map(|setting| &setting.workload).collect();
        let skipped = workloads.iter().filter_map(|workload| Some((workload, criu.obstacle(workload)?)));
        skipped.for_each(|(workload, why)| println!("not measured by CRIU: {workload}: {why}"));
    }
    if options.dry_run {
        let known = store::read(&runs_of(&options.out))?;
        for (setting, repetition) in &wanted {
            let done = if is_measured(&known, options, setting, *repetition) { " (measured)" } else { "" };
            println!("{setting}, run {repetition}{done}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut machine = machine::Machine::this();
    let site = match &options.hosts {
        Some(hosts) => Site::Hosts(Hosts::new(hosts)),
        None => {
            fits(&wanted)?;
            needs::check(&["redis-server"])?;
            machine.versions.extend(criu.as_ref().map(Criu::described));
            Site::Lab(criu)
        }
    };
    let mut store = Store::open(&runs_of(&options.out))?;
    let mut session = Session { site, seed: options.seed, machine };
    let unmeasured = |store: &Store| -> Vec<(Setting, u32)> {
        let left = wanted
            .iter()
            .filter(|(setting, repetition)| !is_measured(store.runs(), options, setting, *repetition));
        left.cloned().collect()
    };
    let left = unmeasured(&store);
    if left.len() < wanted.len() {
        let (done, all, runs) = (wanted.len() - left.len(), wanted.len(), runs_of(&options.out));
        println!("{done} of {all} runs were measured before; they are in {}", runs.display());
    }
    let bar = progress(left.len());
    for (setting, repetition) in left {
        bar.set_message(format!("{setting}, run {repetition}"));
        let run = session.run(&setting, repetition);
        bar.suspend(|| println!("{}", in_a_line(&run)));
        let goes_on = run.measures().is_some() || matches!(session.site, Site::Lab(_));
        store.add(run)?;
        bar.inc(1);
        if !goes_on {
            // The container is the user's: they look where it is first.
            break;
        }
    }
    bar.finish_and_clear();
    told(&options.out, store.runs())?;
    let failed = unmeasured(&store);
    failed.iter().for_each(|(setting, repetition)| println!("NOT MEASURED: {setting}, run {repetition}"));
    session.leave()?;
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether there is a measurement of this run, made in the same way.
fn is_measured(runs: &[Run], options: &RunOptions, setting: &Setting, repetition: u32) -> bool {
    let seed = seed_of(options.seed, repetition);
    let is_it = |run: &Run| run.setting == *setting && run.repetition == repetition && run.seed == seed;
    runs.iter().any(|run| is_it(run) && run.measures().is_some())
}

/// Both copies must fit this machine, with what waits for one of them.
fn fits(wanted: &[(Setting, u32)]) -> Result<()> {
    let memory = machine::Machine::available_bytes();
    let largest = wanted.iter().max_by_key(|(setting, _)| setting.workload.memory_bytes());
    let (setting, _) = largest.context("nothing to measure")?;
    let needed = setting.workload.memory_bytes().saturating_mul(3);
    ensure!(
        needed <= memory,
        "{} needs about {} MiB, free are {}",
        setting.workload,
        needed >> 20,
        memory >> 20
    );
    Ok(())
}

/// With the time that is left, on a terminal.
fn progress(runs: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("[{pos}/{len}] {wide_msg} (left: {eta})");
    ProgressBar::new(runs as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn in_a_line(run: &Run) -> String {
    let end = match &run.outcome {
        Outcome::Measured(measures) => {
            let wait = measures.clients.as_ref().map(|view| view.longest_wait_ns as f64 / 1e6);
            let wait = wait.map(|wait| format!(", longest wait {wait:.1} ms")).unwrap_or_default();
            let (downtime, restore) = (measures.downtime(), measures.restore());
            format!(
                "downtime {:.1} ms, restore {:.1} ms{wait}",
                downtime.as_secs_f64() * 1e3,
                restore.as_secs_f64() * 1e3
            )
        }
        Outcome::Failed { why } => format!("FAILED: {why}"),
    };
    format!("{}, run {}: {end}", run.setting, run.repetition)
}

/// Writes the report, and says where it is and what matters most.
fn told(directory: &Path, runs: &[Run]) -> Result<()> {
    report::write(directory, runs)?;
    println!();
    for headline in summary::headlines(runs) {
        let met = if headline.met { "met" } else { "NOT MET" };
        println!("{}: {} (aim: {}; {met})", headline.what, headline.value, headline.aim);
    }
    println!("\nThe report: {} (tables: {})", directory.join(report::PAGE).display(), report::TABLES);
    runs.iter().filter_map(|run| page::failure(runs, run)).for_each(|line| println!("FAILED: {line}"));
    Ok(())
}
