//! Containers under load that move back and forth for as long as it is asked for, while agents are killed, links cut and
//! slowed, migrations cancelled and containers ended at random moments. After each step exactly one copy of every
//! container runs, with its data and its connections, and nothing is left anywhere else.
//!
//! `soak --seconds N --seed S`. The same seed asks for the same faults at the same times; what they meet differs.
#![forbid(unsafe_code)]

mod arena;
mod fault;
mod tally;

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use clap::Parser;
use pclive_tests::needs;
use pclive_tests::random::Random;

use arena::Arena;
use fault::Step;
use tally::Tally;

/// Moves containers to and fro under random faults.
#[derive(Debug, Parser)]
struct Options {
    /// How long.
    #[arg(long, env = "SOAK_SECONDS", default_value_t = 300)]
    seconds: u64,
    /// What makes one run differ from another; by default the time.
    #[arg(long, env = "SOAK_SEED")]
    seed: Option<u64>,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    needs::check(&["redis-server", "nft"])?;
    let seed = options.seed.unwrap_or_else(now);
    println!("seed {seed}, {} s", options.seconds);
    let (mut random, mut tally, begun) = (Random::new(seed), Tally::default(), Instant::now());
    let mut arena = Arena::new()?;
    while begun.elapsed() < Duration::from_secs(options.seconds) {
        let step = Step::choose(&mut random);
        let outcome = arena.take(&step, &mut tally);
        let at = begun.elapsed().as_secs_f64();
        match &outcome {
            Ok(what) => println!("[{at:>7.1} s] {step}: {what}"),
            Err(wrong) => {
                println!("[{at:>7.1} s] {step}: {}: {:#}\n{}", wrong.kind, wrong.error, arena.last_words());
                tally.wrong(wrong.kind);
                arena = Arena::new().context("cannot begin anew")?;
            }
        }
    }
    if let Err(wrong) = arena.finish() {
        println!("at the end: {}: {:#}", wrong.kind, wrong.error);
        tally.wrong(wrong.kind);
    }
    println!("{tally}");
    println!("seed {seed}");
    Ok(if tally.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
