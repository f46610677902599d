//! Memory that is written at a set rate, page after page, all over it and again.
//!
//! `writer --mib N --pages-per-second N`, then on TCP port 7000: `PING`, and `CHECK`: `PASS ...` when every page has
//! what was written to it.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use pclive_tests::answers;

/// Words of a page.
const WORDS: usize = 512;
/// Pages are written so often in a second, some at a time.
const TICKS: usize = 100;

/// Writes to its memory for ever.
#[derive(Debug, Parser)]
struct Options {
    /// Its memory, MiB.
    #[arg(long, default_value_t = 64)]
    mib: usize,
    /// Pages that are written in a second, about.
    #[arg(long, default_value_t = 1000)]
    pages_per_second: usize,
}

/// Pages; the first word of page `i` is `i + 1`, the second counts how often it was written.
struct Memory {
    words: Vec<u64>,
    /// How often every page was written.
    turns: u64,
    /// Pages before this one were written once more.
    next: usize,
}

impl Memory {
    fn new(mib: usize) -> Self {
        let mut words = vec![0; mib * (1 << 20) / 8];
        for (page, words) in (1..).zip(words.chunks_exact_mut(WORDS)) {
            words[0] = page;
        }
        Self { words, turns: 0, next: 0 }
    }

    /// Writes the next `pages` pages.
    fn write(&mut self, pages: usize) {
        for _ in 0..pages {
            if self.next * WORDS == self.words.len() {
                self.next = 0;
                self.turns += 1;
            }
            self.words[self.next * WORDS + 1] = self.turns + 1;
            self.next += 1;
        }
    }

    /// A page that does not have what was written to it.
    fn check(&self) -> Option<usize> {
        let wrong = |(page, words): (usize, &[u64])| {
            let writes = self.turns + u64::from(page < self.next);
            words[0] != page as u64 + 1 || words[1] != writes
        };
        self.words.chunks_exact(WORDS).enumerate().position(wrong)
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    anyhow::ensure!(options.mib > 0, "no memory to write to");
    let memory = Arc::new(Mutex::new(Memory::new(options.mib)));
    let (written, pages) = (Arc::clone(&memory), options.pages_per_second / TICKS);
    let write = move || {
        loop {
            written.lock().unwrap_or_else(PoisonError::into_inner).write(pages);
            std::thread::sleep(Duration::from_secs(1) / TICKS as u32);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_written_in_turn() {
        let mut memory = Memory::new(1);
        memory.write(256 + 3);
        assert_eq!((memory.turns, memory.next, memory.check()), (1, 3, None));
        assert_eq!([memory.words[2 * WORDS + 1], memory.words[3 * WORDS + 1]], [2, 1]);
    }

    #[test]
    fn page_that_was_not_written_is_found() {
        let mut memory = Memory::new(1);
        memory.write(10);
        memory.words[4 * WORDS + 1] = 0;
        assert_eq!(memory.check(), Some(4));
    }
}
