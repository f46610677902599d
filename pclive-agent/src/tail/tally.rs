//! What a tail took, in figures.

use std::time::{Duration, Instant};

use pclive_proto::control;
use pclive_proto::peer::FetchComplete;

/// Most times that are kept for the median.
const MOST_TIMES: usize = 1 << 20;

/// Counts while pages arrive.
#[derive(Debug)]
pub(super) struct Tally {
    begun: Instant,
    pages: u64,
    pub(super) demand_pages: u64,
    pub(super) pushed_pages: u64,
    pub(super) reconnects: u32,
    faults: u64,
    times: Vec<Duration>,
}

impl Tally {
    /// So many pages are missing.
    pub(super) fn new(pages: u64) -> Self {
        Self {
            begun: Instant::now(),
            pages,
            demand_pages: 0,
            pushed_pages: 0,
            reconnects: 0,
            faults: 0,
            times: Vec::new(),
        }
    }

    /// The copy was let go: the time begins.
    pub(super) fn go(&mut self) {
        self.begun = Instant::now();
    }

    /// A task has waited for so long.
    pub(super) fn waited(&mut self, time: Duration) {
        self.faults += 1;
        if self.times.len() < MOST_TIMES {
            self.times.push(time);
        }
    }

    /// The figures; `round_trip` is the shortest that was seen.
    pub(super) fn complete(&mut self, round_trip: Duration) -> FetchComplete {
        self.times.sort_unstable();
        let at = |percent: usize| {
            let index = self.times.len().saturating_sub(1) * percent / 100;
            self.times.get(index).copied().map_or(0, ns)
        };
        FetchComplete {
            pages: self.pages,
            demand_pages: self.demand_pages,
            pushed_pages: self.pushed_pages,
            faults: self.faults,
            fault_median_ns: at(50),
            fault_p99_ns: at(99),
            round_trip_ns: ns(round_trip),
            duration_ns: ns(self.begun.elapsed()),
            reconnects: self.reconnects,
        }
    }
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The figures as users see them.
pub(crate) fn tail(complete: &FetchComplete) -> control::Tail {
    control::Tail {
        pages: complete.pages,
        demand_pages: complete.demand_pages,
        pushed_pages: complete.pushed_pages,
        faults: complete.faults,
        fault_median_ns: complete.fault_median_ns,
        fault_p99_ns: complete.fault_p99_ns,
        round_trip_ns: complete.round_trip_ns,
        duration_ns: complete.duration_ns,
        reconnects: complete.reconnects,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_and_no_fault_takes_no_time() {
        let mut tally = Tally::new(7);
        assert_eq!(tally.complete(Duration::ZERO).fault_median_ns, 0);
        [9, 1, 5].into_iter().for_each(|ms| tally.waited(Duration::from_millis(ms)));
        let complete = tally.complete(Duration::from_micros(3));
        assert_eq!((complete.fault_median_ns, complete.faults, complete.pages), (5_000_000, 3, 7));
        assert_eq!(tail(&complete).round_trip_ns, 3_000);
    }
}
