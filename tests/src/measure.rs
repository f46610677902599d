//! One migration of a program under load, measured: what the demo and the benchmark are made of.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::ctl::{Following, Report};
use crate::host::Links;
use crate::lab::Lab;
use crate::workload::clients::{Clients, Record};
use crate::workload::redis::{Redis, bundle};
use crate::workload::verifier::Verifier;
use crate::workload::writer;

/// How often the clients' answers are counted.
const TICK: Duration = Duration::from_millis(20);
/// How long the clients' rate is watched before the migration.
const BEFORE: Duration = Duration::from_secs(2);
/// Answers that must come after the migration.
const AFTER: u64 = 1000;

/// What is to be measured.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    /// What is to follow `--strategy`: `one-shot`, `pipelined --restore-after 2` ...
    pub strategy: &'a str,
    /// Redis's data set.
    pub data_bytes: u64,
    /// What clients do meanwhile.
    pub load: Load,
    /// How the agents talk.
    pub links: Links,
}

/// Clients, each on one connection.
#[derive(Debug, Clone, Copy)]
pub enum Load {
    /// None: the container idles.
    Idle,
    /// Each writes increasing numbers and reads them back, and pauses between an answer and its next request.
    Sequences {
        /// How many.
        clients: usize,
        /// How long.
        pause: Duration,
    },
    /// Each reads and overwrites the data set all over, as fast as it can.
    Mixed {
        /// How many.
        clients: usize,
        /// Of 100 requests, those that write.
        writes_percent: u64,
    },
}

impl Load {
    fn start(self, redis: &Redis<'_>, keys: u64) -> Result<Clients> {
        match self {
            Self::Idle => redis.clients(0, Duration::ZERO),
            Self::Sequences { clients, pause } => redis.clients(clients, pause),
            Self::Mixed { clients, writes_percent } => redis.mixed(clients, keys, writes_percent),
        }
    }

    fn is_idle(self) -> bool {
        matches!(self, Self::Idle | Self::Sequences { clients: 0, .. })
    }

    /// Whether the data set is another one afterwards.
    fn changes_data(self) -> bool {
        matches!(self, Self::Mixed { .. })
    }
}

/// What came out.
#[derive(Debug, Clone)]
pub struct Measurement {
    /// The agent's report.
    pub report: Report,
    /// What the clients saw.
    pub clients: Record,
    /// Answers per second, median of short intervals: before the migration, and while rounds ran.
    pub rate_before: f64,
    /// See [`Measurement::rate_before`]; `None` when the rounds were too short to tell.
    pub rate_in_rounds: Option<f64>,
}

impl Measurement {
    /// Bytes per second of round 0, which sends everything.
    pub fn first_round_rate(&self) -> Option<u64> {
        self.report.rounds.iter().find(|round| round.number == 0).map(|round| round.bytes_per_second)
    }
}

/// Counts of the clients' answers over time.
type Samples = Vec<(Instant, u64)>;

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
    let clients = setting.load.start(&redis, keys)?;
    let (moved, samples) = sampled(&clients, || follow(&lab, &container.name, setting.strategy))?;
    let moved = moved?;
    if !setting.load.is_idle() {
        clients.wait_for_answers(AFTER)?;
    }
    let record = clients.stop()?;
    ensure!(setting.load.changes_data() || redis.digest(keys)? == digest, "the data set has changed");
    let rate = |from, to| median_rate(&samples, from, to);
    Ok(Measurement {
        rate_before: rate(samples.first().context("no samples")?.0, moved.asked).unwrap_or_default(),
        rate_in_rounds: rate(moved.rounds_began, moved.rounds_ended),
        report: moved.report,
        clients: record,
    })
}

/// Moves a program once whose memory is written in part all the time; see [`writer::bundle`].
///
/// # Errors
/// When the migration fails, or a page differs afterwards.
pub fn migrate_writer(links: Links, mib: u64, percent: u64) -> Result<Report> {
    let lab = Lab::with_links(links)?;
    let container = lab.start(&writer::bundle("writer", mib, percent))?;
    let verifier = Verifier::new(&lab.client, container.v4);
    verifier.check()?;
    let report = lab.a.migrate(&container.name, &lab.b, &["--strategy", "global"])?;
    verifier.check()?;
    Ok(report)
}

/// A migration and its instants, by this process's clock.
#[derive(Debug)]
struct Moved {
    report: Report,
    asked: Instant,
    rounds_began: Instant,
    rounds_ended: Instant,
}

fn follow(lab: &Lab, container: &str, strategy: &str) -> Result<Moved> {
    std::thread::sleep(BEFORE);
    let asked = Instant::now();
    let options: Vec<&str> = ["--strategy"].into_iter().chain(strategy.split(' ')).collect();
    let mut following = Following::start(&lab.a, container, lab.b.name(), &options)?;
    let mut reached = |phase: &str| {
        let found = following.wait_for(phase, |line| line["phase"] == phase).map(|_| Instant::now());
        found.with_context(|| format!("{}{}", lab.a.last_words(), lab.b.last_words()))
    };
    let (rounds_began, rounds_ended) = (reached("pre_copy")?, reached("frozen")?);
    match following.finish()? {
        Ok(report) => Ok(Moved { report, asked, rounds_began, rounds_ended }),
        Err(refusal) => {
            bail!("the migration failed: {refusal:?}\n{}{}", lab.a.last_words(), lab.b.last_words())
        }
    }
}

/// Counts the clients' answers while `work` runs.
fn sampled<T: Send>(clients: &Clients, work: impl FnOnce() -> T + Send) -> Result<(T, Samples)> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut samples = Samples::new();
            while !done.load(Ordering::Relaxed) {
                samples.push((Instant::now(), clients.answers()));
                std::thread::sleep(TICK);
            }
            samples
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        Ok((result, sampler.join().map_err(|_| anyhow::anyhow!("the sampler panicked"))?))
    })
}

/// The median of the rates between neighbouring samples of `from..to`, answers per second.
fn median_rate(samples: &Samples, from: Instant, to: Instant) -> Option<f64> {
    let inside: Vec<_> = samples.iter().filter(|(at, _)| (from..to).contains(at)).collect();
    let rate =
        |pair: &[&(Instant, u64)]| (pair[1].1 - pair[0].1) as f64 / (pair[1].0 - pair[0].0).as_secs_f64();
    let mut rates: Vec<f64> = inside.windows(2).map(rate).collect();
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied()
}

/// Touches and frees memory, so that a first touch does not cost what a virtual machine's host takes to find it.
pub fn warm_memory(bytes: u64) {
    let mut memory = vec![0_u8; usize::try_from(bytes).unwrap_or(0)];
    memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    std::hint::black_box(&memory);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_rate_looks_at_its_interval_only() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let samples =
            vec![(at(0), 0), (at(100), 10), (at(200), 30), (at(300), 130), (at(400), 150), (at(500), 150)];
        let rate = median_rate(&samples, at(100), at(450)).unwrap();
        assert!((rate - 200.0).abs() < 1e-6, "{rate}");
        assert_eq!(median_rate(&samples, at(100), at(150)), None);
    }
}
