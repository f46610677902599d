//! The memory torture: threads that write, map, unmap, move, discard, protect and fork, each with a model of what
//! every byte must be. Whatever differs is found and told; nothing is repaired.
//!
//! `torture --seed N --threads N --pages N`, then on TCP port 7000: `PING`, `STATS` and `CHECK` (every thread
//! compares every byte and the answer is `PASS ...` or `FAIL ...`); `CORRUPT` changes a byte, which `CHECK` must find. The same seed makes each thread do the same
//! things in the same order.

mod child;
mod memory;
mod page;
mod region;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use pclive_tests::answers;

use worker::{Board, Worker};

/// Writes and checks memory for ever.
#[derive(Debug, Clone, Parser)]
struct Options {
    /// What makes one run differ from another.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads, each with memory of its own.
    #[arg(long, default_value_t = 3)]
    threads: usize,
    /// Pages a thread has mapped at most.
    #[arg(long, default_value_t = 2048)]
    pages: usize,
    /// Microseconds between two steps of a thread.
    #[arg(long, default_value_t = 0)]
    pause_us: u64,
    /// Uses huge pages of hugetlbfs too.
    #[arg(long)]
    huge: bool,
    /// Kinds of steps to leave out, to find out which one matters.
    #[arg(long, value_delimiter = ',')]
    without: Vec<worker::Step>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let file = page::make_file().context("cannot make the file to map")?;
    let board = Arc::new(Board::new(options.threads));
    for index in 0..options.threads {
        let mut worker = Worker::new(index, &options, Arc::clone(&board), file.try_clone()?);
        let pause = Duration::from_micros(options.pause_us);
        std::thread::Builder::new().name(format!("torture-{index}")).spawn(move || worker.run(pause))?;
    }
    answers::serve(|question| match question {
        "PING" => "PONG".into(),
        "STATS" => board.stats(),
        "CORRUPT" => board.corrupt(),
        "CHECK" => board.check_everything(),
        other => format!("FAIL unknown question {other}"),
    })
}
