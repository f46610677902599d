//! Threads that count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use pclive_tests::wait::until;

/// How long a thread sleeps between two steps of its counter: all of them together leave the processor to others.
const STEP: Duration = Duration::from_millis(500);
/// How long all of them may take for a step.
const LIMIT: Duration = Duration::from_secs(20);
/// Bytes of a thread's stack.
const STACK_BYTES: usize = 64 << 10;

/// Threads, each with a counter of its own.
#[derive(Debug)]
pub(crate) struct Threads {
    counters: Arc<Vec<AtomicU64>>,
}

impl Threads {
    pub(crate) fn start(count: usize) -> Result<Self> {
        let counters: Arc<Vec<AtomicU64>> = Arc::new((0..count).map(|_| AtomicU64::new(0)).collect());
        for index in 0..count {
            let counters = Arc::clone(&counters);
            let builder = std::thread::Builder::new().name(format!("crowd-{index}")).stack_size(STACK_BYTES);
            builder.spawn(move || {
                loop {
                    counters[index].fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(STEP);
                }
            })?;
        }
        Ok(Self { counters })
    }

    /// Every thread takes a step from now on.
    pub(crate) fn check(&self) -> Result<()> {
        let before = self.read();
        let mut late = None;
        let all = until("a step of every thread", LIMIT, || {
            late = self.read().iter().zip(&before).position(|(now, before)| now <= before);
            Ok(late.is_none())
        });
        all.with_context(|| format!("thread {late:?} does not count"))
    }

    fn read(&self) -> Vec<u64> {
        self.counters.iter().map(|counter| counter.load(Ordering::Relaxed)).collect()
    }
}
