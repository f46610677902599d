//! When to stop copying and stop the container: one pure predicate.
//!
//! The estimate: what round k sends was written while round k-1 ran, so the container writes that much in that
//! time; what it writes while round k runs must be sent in the stop. Throughput is the better of the last round's
//! and the average, because a small round says little about the link.

use std::time::Duration;

/// Bytes in a page.
const PAGE: u64 = 4096;

/// What a stop costs beside its pages: the freeze, the small state, the answers of both ends.
const FIXED_COST: Duration = Duration::from_millis(10);

/// A finished round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Pages that were sent with contents.
    pub data_pages: u64,
    /// Bytes on the wire.
    pub bytes: u64,
    /// From its first scan to the destination's word that it is in place.
    pub duration: Duration,
}

/// The limits of one migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Stop once the predicted downtime is not above this.
    pub max_downtime: Duration,
    /// Most rounds, round 0 included.
    pub max_rounds: u32,
}

/// What the rounds so far lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Another round.
    Continue,
    /// Freeze now.
    Stop(Reason),
}

/// Why the rounds end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The predicted downtime is within the limit.
    ShortEnough,
    /// Another round would not make the next one smaller.
    NotShrinking,
    /// As many rounds as allowed.
    MaxRounds,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ShortEnough => "predicted downtime within the limit",
            Self::NotShrinking => "rounds no longer shrink",
            Self::MaxRounds => "limit of rounds reached",
        })
    }
}

/// What is known after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Estimate {
    /// Pages written while the last round ran; `None` after round 0, which says nothing about writing.
    pub dirty_pages: Option<u64>,
    /// Bytes a second, 0 if the rounds took no measurable time.
    pub throughput: u64,
    /// Downtime if the container were stopped now.
    pub downtime: Option<Duration>,
}

/// Estimates from the rounds so far, oldest first.
pub fn estimate(rounds: &[Sample]) -> Estimate {
    let throughput = throughput(rounds);
    let dirty_pages = match rounds {
        [.., before, last] => Some(scale(last.data_pages, last.duration, before.duration)),
        [] | [_] => None,
    };
    let downtime =
        dirty_pages.map(|pages| FIXED_COST.saturating_add(time_for(pages.saturating_mul(PAGE), throughput)));
    Estimate { dirty_pages, throughput, downtime }
}

/// Decides after a round; `rounds` are all so far, oldest first.
pub fn decide(rounds: &[Sample], limits: Limits) -> Decision {
    let done = u32::try_from(rounds.len()).unwrap_or(u32::MAX);
    if estimate(rounds).downtime.is_some_and(|downtime| downtime <= limits.max_downtime) {
        return Decision::Stop(Reason::ShortEnough);
    }
    if done >= limits.max_rounds {
        return Decision::Stop(Reason::MaxRounds);
    }
    match rounds {
        // Round 0 sends everything: only later rounds can be compared.
        [_, .., before, last] if !shrinks(*before, *last) => Decision::Stop(Reason::NotShrinking),
        _ => Decision::Continue,
    }
}

/// A round that is smaller by less than a tenth is not worth its traffic.
fn shrinks(before: Sample, last: Sample) -> bool {
    last.data_pages < before.data_pages / 10 * 9
}

fn throughput(rounds: &[Sample]) -> u64 {
    let rate = |bytes: u64, time: Duration| -> u64 {
        let nanoseconds = time.as_nanos().max(1);
        u64::try_from(u128::from(bytes) * 1_000_000_000 / nanoseconds).unwrap_or(u64::MAX)
    };
    let bytes = rounds.iter().fold(0u64, |sum, round| sum.saturating_add(round.bytes));
    let time = rounds.iter().fold(Duration::ZERO, |sum, round| sum.saturating_add(round.duration));
    let last = rounds.last().map_or(0, |round| rate(round.bytes, round.duration));
    last.max(rate(bytes, time))
}

/// `pages * time / reference`, saturating.
fn scale(pages: u64, time: Duration, reference: Duration) -> u64 {
    let scaled = u128::from(pages).saturating_mul(time.as_nanos()) / reference.as_nanos().max(1);
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

fn time_for(bytes: u64, throughput: u64) -> Duration {
    if bytes == 0 {
        return Duration::ZERO;
    }
    let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(throughput.max(1));
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { max_downtime: Duration::from_millis(300), max_rounds: 5 };

    /// A round of so many MiB that took so many milliseconds.
    fn round(mib: u64, milliseconds: u64) -> Sample {
        Sample { data_pages: mib * 256, bytes: mib << 20, duration: Duration::from_millis(milliseconds) }
    }

    #[test]
    fn decisions_by_table() {
        let stop = Decision::Stop;
        let table: [(&str, &[Sample], Decision); 9] = [
            ("nothing yet", &[], Decision::Continue),
            ("round 0 says nothing about writing", &[round(1024, 1000)], Decision::Continue),
            ("an idle container", &[round(1024, 1000), round(0, 2)], stop(Reason::ShortEnough)),
            ("a busy one, first comparison", &[round(1024, 1000), round(900, 900)], Decision::Continue),
            (
                "it shrinks but not enough yet",
                &[round(4096, 4000), round(2048, 2000), round(1024, 1000)],
                Decision::Continue,
            ),
            (
                "it shrank enough",
                &[round(4096, 4000), round(1024, 1000), round(256, 250)],
                stop(Reason::ShortEnough),
            ),
            (
                "writes as fast as the link",
                &[round(1024, 1000), round(1000, 1000), round(1000, 1000)],
                stop(Reason::NotShrinking),
            ),
            (
                "as many rounds as allowed",
                &[
                    round(9000, 9000),
                    round(8000, 8000),
                    round(7000, 7000),
                    round(6000, 6000),
                    round(5000, 5000),
                ],
                stop(Reason::MaxRounds),
            ),
            ("a round that took no time", &[round(1024, 0), round(0, 0)], stop(Reason::ShortEnough)),
        ];
        for (name, rounds, expected) in table {
            assert_eq!(decide(rounds, LIMITS), expected, "{name}");
        }
    }

    #[test]
    fn a_single_round_is_all_when_only_one_is_allowed() {
        let limits = Limits { max_rounds: 1, ..LIMITS };
        assert_eq!(decide(&[round(1024, 1000)], limits), Decision::Stop(Reason::MaxRounds));
    }

    #[test]
    fn the_prediction_is_what_the_last_round_leaves_over_the_throughput() {
        // 100 MiB written in 1 s, the last round took 0.1 s at 1000 MiB/s: 10 MiB are left, 10 ms to send.
        let known = estimate(&[round(1000, 1000), round(100, 100)]);
        assert_eq!(known.dirty_pages, Some(10 * 256));
        assert_eq!(known.downtime, Some(FIXED_COST + Duration::from_millis(10)));
    }

    #[test]
    fn a_tiny_round_does_not_make_the_link_look_slow() {
        let known = estimate(&[round(1000, 1000), round(1, 50)]);
        assert!(known.throughput > 900 << 20, "{known:?}");
    }

    #[test]
    fn extreme_numbers_do_not_overflow() {
        let huge = Sample { data_pages: u64::MAX, bytes: u64::MAX, duration: Duration::MAX };
        let none = Sample { data_pages: u64::MAX, bytes: 0, duration: Duration::ZERO };
        assert_eq!(decide(&[none, none, none], LIMITS), Decision::Stop(Reason::ShortEnough));
        assert_eq!(decide(&[huge, huge, huge], LIMITS), Decision::Stop(Reason::NotShrinking));
        assert!(estimate(&[none, huge]).downtime.is_some());
    }
}
