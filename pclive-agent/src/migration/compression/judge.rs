//! Whether compressing pages pays. Pure: what was measured goes in, a yes or no comes out.
//!
//! A byte takes `link` to be sent. Compressed it takes `cost + link / ratio`, one after the other: in the stop there is
//! nothing to do beside it. Compressing pays if that is clearly less. The link is known only while it is what the
//! stream waits for; a stream that does not wait needs no compression.

use std::time::Duration;

/// What is sent between two looks at the link, bytes: some hundredths of a second at 1 Gbit/s.
const WINDOW: u64 = 8 << 20;
/// Batches between two samples of what compressing brings, while it does not pay.
const SAMPLE_EVERY: u32 = 256;
/// It must take less than this part of the time.
const CLEARLY: f64 = 0.9;
/// Weight of what is new in an average.
const NEW: f64 = 0.2;

/// What compressing was found to do.
#[derive(Debug, Clone, Copy)]
struct Effect {
    /// Nanoseconds for each byte that goes in.
    cost: f64,
    /// Bytes in for each that comes out.
    ratio: f64,
}

/// Remembers what was measured.
#[derive(Debug, Default)]
pub(super) struct Judge {
    effect: Option<Effect>,
    /// Nanoseconds that the link takes for a byte; `None` unless it is what the stream waits for.
    link: Option<f64>,
    sent: u64,
    elapsed: Duration,
    blocked: Duration,
    /// Batches since the last one that was compressed.
    unsampled: u32,
}

impl Judge {
    /// Whether to compress the next batch.
    pub(super) fn wants(&mut self) -> bool {
        let Some(link) = self.link else { return false };
        let Some(effect) = self.effect else { return true };
        self.unsampled = self.unsampled.saturating_add(1);
        effect.cost + link / effect.ratio < CLEARLY * link || self.unsampled >= SAMPLE_EVERY
    }

    /// A batch was compressed.
    pub(super) fn compressed(&mut self, before: usize, after: usize, took: Duration) {
        self.unsampled = 0;
        let before = before.max(1) as f64;
        let now = Effect { cost: took.as_nanos() as f64 / before, ratio: before / after.max(1) as f64 };
        let mix = |old: f64, new: f64| old + NEW * (new - old);
        self.effect =
            Some(self.effect.map_or(now, |old| Effect {
                cost: mix(old.cost, now.cost),
                ratio: mix(old.ratio, now.ratio),
            }));
    }

    /// So many bytes were handed over in this time since the last ones, and for part of it the stream was full.
    pub(super) fn sent(&mut self, bytes: u64, elapsed: Duration, blocked: Duration) {
        self.sent = self.sent.saturating_add(bytes);
        self.elapsed = self.elapsed.saturating_add(elapsed);
        self.blocked = self.blocked.saturating_add(blocked);
        if self.sent < WINDOW {
            return;
        }
        let waited = self.blocked.saturating_mul(2) >= self.elapsed;
        self.link = waited.then(|| self.elapsed.as_nanos() as f64 / self.sent as f64);
        (self.sent, self.elapsed, self.blocked) = (0, Duration::ZERO, Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link of so many bytes a second, and what zstd did to a Redis heap on one core: 0.5 GB/s, a third left.
    fn wants_at(link: u64, after: usize) -> bool {
        let mut judge = Judge::default();
        judge.compressed(1 << 20, after, Duration::from_micros(2100));
        fill(&mut judge, link, 100);
        judge.wants()
    }

    /// A window at this rate that was full for so many hundredths of the time.
    fn fill(judge: &mut Judge, link: u64, hundredths: u32) {
        let elapsed = Duration::from_secs_f64(WINDOW as f64 / link as f64);
        judge.sent(WINDOW, elapsed, elapsed * hundredths / 100);
    }

    #[test]
    fn it_pays_on_a_slow_link_and_not_on_a_fast_one() {
        assert!(wants_at(12_500_000, 1 << 18));
        assert!(wants_at(125_000_000, 1 << 18));
        assert!(!wants_at(1_250_000_000, 1 << 18));
    }

    #[test]
    fn it_does_not_pay_for_what_hardly_shrinks() {
        assert!(!wants_at(125_000_000, 1_000_000));
    }

    #[test]
    fn a_stream_that_does_not_wait_is_left_alone() {
        let mut judge = Judge::default();
        assert!(!judge.wants());
        fill(&mut judge, 125_000_000, 30);
        assert!(!judge.wants());
        fill(&mut judge, 125_000_000, 70);
        assert!(judge.wants(), "the first look at what compressing does");
        fill(&mut judge, 125_000_000, 0);
        assert!(!judge.wants());
    }

    #[test]
    fn what_does_not_pay_is_tried_again_now_and_then() {
        let mut judge = Judge::default();
        judge.compressed(1 << 20, 1 << 20, Duration::from_millis(1));
        fill(&mut judge, 125_000_000, 100);
        let tried = (0..1000).filter(|_| {
            let wants = judge.wants();
            if wants {
                judge.compressed(1 << 20, 1 << 20, Duration::from_millis(1));
            }
            wants
        });
        assert_eq!(tried.count(), 3);
    }

    #[test]
    fn it_begins_to_pay_when_contents_change() {
        let mut judge = Judge::default();
        judge.compressed(1 << 20, 1 << 20, Duration::from_millis(1));
        fill(&mut judge, 125_000_000, 100);
        (0..20).for_each(|_| judge.compressed(1 << 20, 1 << 17, Duration::from_millis(1)));
        assert!((0..10).all(|_| judge.wants()));
    }
}
