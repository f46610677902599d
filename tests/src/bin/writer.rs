//! Memory of which a fixed part is written again and again, all over it.
//!
//! `writer --mib N --percent P`, then on TCP port 7000: `PING`, and `CHECK`: `PASS ...` when every page has what was
//! written to it.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use pclive_tests::answers;

/// Words of a page.
const WORDS: usize = 512;

/// Writes to its memory for ever.
#[derive(Debug, Parser)]
struct Options {
    /// Its memory, MiB.
    #[arg(long, default_value_t = 64)]
    mib: usize,
    /// Of a hundred pages, those that are written.
    #[arg(long, default_value_t = 1)]
    percent: usize,
    /// Milliseconds between two times that all of them are written.
    #[arg(long, default_value_t = 20)]
    pause_ms: u64,
}

/// Pages; the first word of page `i` is `i + 1`, the second counts how often it was written.
struct Memory {
    words: Vec<u64>,
    every: usize,
    round: u64,
}

impl Memory {
    fn new(options: &Options) -> Self {
        let mut words = vec![0; options.mib * (1 << 20) / 8];
        for (page, words) in (1..).zip(words.chunks_exact_mut(WORDS)) {
            words[0] = page;
        }
        Self { words, every: 100_usize.checked_div(options.percent).unwrap_or(usize::MAX), round: 0 }
    }

    fn write(&mut self) {
        self.round += 1;
        let round = self.round;
        self.words.chunks_exact_mut(WORDS).step_by(self.every).for_each(|words| words[1] = round);
    }

    fn check(&self) -> Option<usize> {
        let wrong = |(page, words): (usize, &[u64])| {
            let round = if page.is_multiple_of(self.every) { self.round } else { 0 };
            words[0] != page as u64 + 1 || words[1] != round
        };
        self.words.chunks_exact(WORDS).enumerate().position(wrong)
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let memory = Arc::new(Mutex::new(Memory::new(&options)));
    let (written, pause) = (Arc::clone(&memory), Duration::from_millis(options.pause_ms));
    let write = move || {
        loop {
            written.lock().unwrap_or_else(PoisonError::into_inner).write();
            std::thread::sleep(pause);
        }
    };
    std::thread::Builder::new().name("writer".into()).spawn(write).context("cannot start a thread")?;
    answers::serve(|question| match question {
        "PING" => "PONG".into(),
        "CHECK" => match memory.lock().unwrap_or_else(PoisonError::into_inner).check() {
            None => "PASS every page".into(),
            Some(page) => format!("FAIL page {page} differs"),
        },
        other => format!("FAIL unknown question {other}"),
    })
}
