//! One migration of a program under load, measured: what the demo and the benchmark are made of.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::ctl::{Following, Problem, Refusal, Report};
use crate::host::Links;
use crate::lab::Lab;
use crate::workload::clients::Record;
use crate::workload::redis::{Redis, bundle};

/// How long clients are at work before the migration.
const BEFORE: Duration = Duration::from_secs(2);
/// Answers that must come after the migration.
const AFTER: u64 = 1000;

/// What is to be measured.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    /// What is to follow `--strategy`.
    pub strategy: &'a str,
    /// Redis's data set.
    pub data_bytes: u64,
    /// Clients, each on one connection, that write increasing numbers and read them back.
    pub clients: usize,
    /// How long a client waits between an answer and its next request.
    pub pause: Duration,
    /// How the agents talk.
    pub links: Links,
}

/// What came out.
#[derive(Debug, Clone)]
pub struct Measurement {
    /// The agent's report.
    pub report: Report,
    /// What the clients saw.
    pub clients: Record,
}

/// Builds a lab, fills a Redis, lets clients at it, and moves it once.
///
/// # Errors
/// When the migration fails, or when the data set differs afterwards. What clients lost is in the measurement.
pub fn migrate_redis(setting: Setting<'_>) -> Result<Measurement> {
    let lab = Lab::with_links(setting.links)?;
    let container = lab.start(&bundle("redis-1"))?;
    let redis = Redis::new(&lab.client, container.v4);
    let keys = redis.populate(setting.data_bytes)?;
    let digest = redis.digest(keys)?;
    // The copy, and what may wait for it.
    let warm = WarmMemory::new(setting.data_bytes * 2);
    let clients = redis.clients(setting.clients, setting.pause)?;
    std::thread::sleep(BEFORE);
    drop(warm);
    let moved = migrate(&lab, &container.name, &["--strategy", setting.strategy])?;
    if setting.clients > 0 {
        clients.wait_for_answers(AFTER)?;
    }
    let record = clients.stop()?;
    ensure!(redis.digest(keys)? == digest, "the data set has changed");
    Ok(Measurement { report: moved.report, clients: record })
}

/// A migration and its instants, by this process's clock, as `pclivectl` has told them.
#[derive(Debug)]
pub struct Moved {
    /// The agent's report.
    pub report: Report,
    /// It had just been asked for.
    pub asked: Instant,
    /// The first round began.
    pub rounds_began: Instant,
    /// The container had been stopped, for the last time if that was put off.
    pub stopped: Instant,
    /// All was done, at both ends.
    pub ended: Instant,
}

/// Follows a migration to its end.
///
/// # Errors
/// When it fails.
pub fn follow(following: Following) -> Result<Moved> {
    let asked = Instant::now();
    let (mut rounds_began, mut stopped) = (None, None);
    let ended = following.watch(|line| match line["phase"].as_str() {
        Some("pre_copy") => {
            rounds_began.get_or_insert_with(Instant::now);
        }
        Some("frozen") => stopped = Some(Instant::now()),
        Some(_) | None => {}
    })?;
    match ended {
        Ok(report) => {
            let rounds_began = rounds_began.context("the migration ended without a round")?;
            let stopped = stopped.context("the migration ended without a stop")?;
            Ok(Moved { report, asked, rounds_began, stopped, ended: Instant::now() })
        }
        Err(Refusal { problem: Problem { code, message, hint, blockers }, .. }) => {
            bail!("the migration failed ({code}): {message}; {} {blockers:?}", hint.unwrap_or_default())
        }
    }
}

/// Moves a container from host a to host b of a lab.
///
/// # Errors
/// When it fails; with both agents' last words.
pub fn migrate(lab: &Lab, container: &str, options: &[&str]) -> Result<Moved> {
    let moved = Following::start(&lab.a, container, lab.b.name(), options).and_then(follow);
    moved.map_err(|error| anyhow!("{error:#}\n{}{}", lab.a.last_words(), lab.b.last_words()))
}

/// Memory that was touched. Dropped just before a migration, it is what the copy gets: a virtual machine gives memory that
/// has been free for seconds back to its host, and to find it again costs more than everything else.
#[derive(Debug)]
pub struct WarmMemory {
    _touched: Vec<u8>,
}

impl WarmMemory {
    /// Touches so many bytes.
    pub fn new(bytes: u64) -> Self {
        let mut memory = vec![0_u8; usize::try_from(bytes).unwrap_or(0)];
        memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        Self { _touched: std::hint::black_box(memory) }
    }
}
