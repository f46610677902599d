//! Threads that live for a while: each has a region to itself, checks and writes it, and gives it back.

use std::thread::JoinHandle;
use std::time::Duration;

use super::region::{Mismatch, Region};
use pclive_tests::random::Random;

/// Between two turns: a thread sleeps for most of its life, as threads do.
const PAUSE: Duration = Duration::from_micros(500);

/// A thread and the region that it has.
#[derive(Debug)]
pub(crate) struct Helper(JoinHandle<Result<Region, Mismatch>>);

impl Helper {
    /// Begins a life of so many turns.
    pub(crate) fn start(mut region: Region, turns: usize, seed: u64) -> std::io::Result<Self> {
        let work = move || {
            let mut random = Random::new(seed);
            for _ in 0..turns {
                (0..region.len()).try_for_each(|page| region.check(page))?;
                let page = random.below(region.len());
                region.patch(page, &mut random);
                std::thread::sleep(PAUSE);
            }
            Ok(region)
        };
        std::thread::Builder::new().name("torture-helper".into()).spawn(work).map(Self)
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.0.is_finished()
    }

    /// What it has found; its region.
    pub(crate) fn end(self) -> Result<Region, String> {
        let ended = self.0.join().map_err(|_| "a helper panicked".to_owned())?;
        ended.map_err(|mismatch| format!("a helper: {mismatch}"))
    }
}
