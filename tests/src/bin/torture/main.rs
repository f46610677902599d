//! The memory torture: threads that write, map, unmap, move, discard, protect, fork, start threads and programs, and open
//! and close, each with a model of what every byte must be. Whatever differs is found and told; nothing is repaired.
//!
//! `torture --seed N --threads N --pages N`, then on TCP port 7000: `PING`, `STATS` and `CHECK` (every thread
//! compares every byte and the answer is `PASS ...` or `FAIL ...`); `CORRUPT` changes a byte, which `CHECK` must find. The same seed makes each thread do the same
//! things in the same order.

mod child;
mod descriptor;
mod helper;
mod memory;
mod object;
mod page;
mod program;
mod region;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
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
    /// Starts programs too, which execute themselves again amid their threads.
    #[arg(long)]
    programs: bool,
    /// Steps after which it ends, with 0 if nothing was wrong, instead of answering.
    #[arg(long)]
    turns: Option<u64>,
    /// How often it executes itself again at its end.
    #[arg(long, default_value_t = 0)]
    generations: u32,
    /// Kinds of steps to leave out, to find out which one matters.
    #[arg(long, value_delimiter = ',')]
    without: Vec<worker::Step>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let pause = Duration::from_micros(options.pause_us);
    if let Some(turns) = options.turns {
        return once(&options, turns, pause);
    }
    let file = page::make_file().context("cannot make the file to map")?;
    let board = Arc::new(Board::new(options.threads));
    for index in 0..options.threads {
        let mut worker = Worker::new(index, &options, Arc::clone(&board), file.try_clone()?);
        worker.share().map_err(anyhow::Error::msg)?;
        std::thread::Builder::new()
            .name(format!("torture-{index}"))
            .spawn(move || worker.run(u64::MAX, pause))?;
    }
    answers::serve(|question| match question {
        "PING" => "PONG".into(),
        "STATS" => board.stats(),
        "CORRUPT" => board.corrupt(),
        "CHECK" => board.check_everything(),
        other => format!("FAIL unknown question {other}"),
    })
}

/// The life of a program that a torture has started.
fn once(options: &Options, turns: u64, pause: Duration) -> Result<()> {
    let board = Arc::new(Board::new(1));
    let mut worker = Worker::new(0, options, Arc::clone(&board), page::open_file()?);
    worker.run(turns, pause);
    worker.last_check(options.generations == 0);
    ensure!(!board.has_failed(), "something was wrong");
    drop(worker);
    program::go_on(options)
}
