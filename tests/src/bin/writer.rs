//! Memory that is written at a set rate, page after page, all over it and again.
//!
//! `writer --mib N --pages-per-second N`, then on TCP port 7000: `PING`, `WRITTEN` (how many pages so far), and `CHECK`:
//! `PASS ...` when every page has what was written to it. Pages are full of what does not compress.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use pclive_tests::answers;
use pclive_tests::random::Random;

/// Words of a page.
const WORDS: usize = 512;
/// From one time that some pages are written to the next.
const TICK: Duration = Duration::from_millis(10);
/// What was not written in time is written later, if it is no more than of this time: not all of a stop.
const LATEST: Duration = Duration::from_millis(100);

/// Writes to its memory for ever.
#[derive(Debug, Parser)]
struct Options {
    /// Its memory, MiB.
    #[arg(long, default_value_t = 64)]
    mib: usize,
    /// Pages that are written in a second.
    #[arg(long, default_value_t = 1000)]
    pages_per_second: u32,
}

/// Pages; the first word of page `i` is `i + 1`, the second counts how often it was written, the others are noise.
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
            words[2..].iter_mut().zip(noise(page)).for_each(|(word, noise)| *word = noise);
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

    /// Pages that were written so far.
    fn written(&self) -> u64 {
        self.turns * (self.words.len() / WORDS) as u64 + self.next as u64
    }

    /// A page that does not have what was written to it.
    fn check(&self) -> Option<usize> {
        let wrong = |(page, words): (usize, &[u64])| {
            let (writes, number) = (self.turns + u64::from(page < self.next), page as u64 + 1);
            words[0] != number || words[1] != writes || !words[2..].iter().copied().eq(noise(number))
        };
        self.words.chunks_exact(WORDS).enumerate().position(wrong)
    }
}

/// The words of a page that stay as they are.
fn noise(page: u64) -> impl Iterator<Item = u64> {
    let mut random = Random::new(page);
    std::iter::repeat_with(move || random.next()).take(WORDS - 2)
}

/// Writes pages at their rate for ever.
fn write(memory: &Mutex<Memory>, rate: u32) {
    let (mut last, mut owed) = (Instant::now(), 0.0);
    loop {
        std::thread::sleep(TICK);
        let elapsed = last.elapsed();
        last += elapsed;
        owed += f64::from(rate) * elapsed.min(LATEST).as_secs_f64();
        memory.lock().unwrap_or_else(PoisonError::into_inner).write(owed as usize);
        owed = owed.fract();
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    anyhow::ensure!(options.mib > 0, "no memory to write to");
    let memory = Arc::new(Mutex::new(Memory::new(options.mib)));
    let (written, rate) = (Arc::clone(&memory), options.pages_per_second);
    let thread = std::thread::Builder::new().name("writer".into());
    thread.spawn(move || write(&written, rate)).context("cannot start a thread")?;
    answers::serve(|question| match question {
        "PING" => "PONG".into(),
        "WRITTEN" => memory.lock().unwrap_or_else(PoisonError::into_inner).written().to_string(),
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
        assert_eq!((memory.turns, memory.next, memory.written(), memory.check()), (1, 3, 259, None));
        assert_eq!([memory.words[2 * WORDS + 1], memory.words[3 * WORDS + 1]], [2, 1]);
    }

    #[test]
    fn page_that_was_not_written_is_found() {
        let mut memory = Memory::new(1);
        memory.write(10);
        memory.words[4 * WORDS + 1] = 0;
        assert_eq!(memory.check(), Some(4));
    }

    #[test]
    fn any_word_that_changes_is_found() {
        let mut memory = Memory::new(1);
        memory.words[7 * WORDS + WORDS - 1] ^= 1;
        assert_eq!(memory.check(), Some(7));
    }
}
