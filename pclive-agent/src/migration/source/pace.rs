//! A limit of the stream's bandwidth: when the next message may go. Pure; the clock is an argument.

use std::time::{Duration, Instant};

/// Unused bandwidth that may be caught up on: shorter than what anybody watches, longer than a timer's error.
const BURST: Duration = Duration::from_millis(50);

/// What each connection may send at most, bytes a second: as much faster than the limit as lets a message be gone when
/// the next one may go, with everything that is sent around it.
pub(super) fn spread(bytes_per_second: u64) -> u64 {
    bytes_per_second.saturating_add(bytes_per_second / 5)
}

/// Lets through so many bytes a second.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: u64,
    /// When everything that was let through so far will be paid for.
    paid_at: Option<Instant>,
}

impl Pace {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), paid_at: None }
    }

    /// How long a message of so many bytes has to wait from `now` on; it is taken to be sent then.
    pub(super) fn delay(&mut self, bytes: u64, now: Instant) -> Duration {
        let oldest = now.checked_sub(BURST).unwrap_or(now);
        let begin = self.paid_at.map_or(oldest, |paid_at| paid_at.max(oldest));
        let cost = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(cost).unwrap_or(u64::MAX));
        self.paid_at = begin.checked_add(cost).or(Some(begin));
        begin.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_the_long_run_no_more_than_the_limit_is_let_through() {
        let (mut pace, begin) = (Pace::new(1_000_000), Instant::now());
        let mut now = begin;
        for _ in 0..100 {
            now += pace.delay(100_000, now);
        }
        // 10 MB; the last message and one burst are not waited for.
        assert_eq!(now - begin, Duration::from_millis(10_000 - 100 - 50));
    }

    #[test]
    fn time_without_messages_is_not_saved_up() {
        let (mut pace, begin) = (Pace::new(1_000_000), Instant::now());
        pace.delay(1_000, begin);
        let later = begin + Duration::from_secs(60);
        assert_eq!(pace.delay(100_000, later), Duration::ZERO);
        assert_eq!(pace.delay(1, later), Duration::from_millis(50));
    }
}
