//! After each round: another one, stop, or ask the policy.

use std::fmt;
use std::time::Duration;

use super::estimate::{Estimate, History, Sample, left};
use super::policy::Policy;

/// Rounds that may leave no less than the best before them: writing comes in bursts.
const PATIENCE: usize = 2;

/// The limits of one migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Stop once the predicted downtime is not above this.
    pub max_downtime: Duration,
    /// Most rounds, round 0 included.
    pub max_rounds: u32,
    /// Longest time from the migration's begin to the end of its rounds.
    pub max_time: Option<Duration>,
    /// The rounds go on at least to this one, below `max_rounds`: the destination builds the copy from it on, and before
    /// that a stop would put everything in place while the container stands still.
    pub restore_after: u32,
    /// When the predicted downtime stays above the limit.
    pub policy: Policy,
}

/// What the rounds so far lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Another round.
    Continue,
    /// Stop the container now: the predicted downtime is within the limit.
    Stop,
    /// It does not converge: the policy decides.
    Ask(Obstacle),
}

/// Why another round would not lead to the wanted downtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// The container writes as fast as its pages are sent.
    NotShrinking,
    /// What the stop does beside sending pages takes longer than the limit, and pages add little to it.
    Floor,
    /// As many rounds as allowed.
    MaxRounds,
    /// As much time as allowed.
    MaxTime,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotShrinking => "rounds no longer shrink",
            Self::Floor => "the stop takes longer than the limit even without pages",
            Self::MaxRounds => "limit of rounds reached",
            Self::MaxTime => "limit of time reached",
        })
    }
}

/// Why the rounds ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The predicted downtime is within the limit.
    ShortEnough,
    /// The policy has stopped the container in spite of this.
    InSpiteOf(Obstacle, Policy),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShortEnough => f.write_str("predicted downtime within the limit"),
            Self::InSpiteOf(obstacle, policy) => write!(f, "{obstacle} (policy {policy})"),
        }
    }
}

/// Decides after a round; `known` is what [`super::estimate()`] makes of the same history.
pub fn decide(history: &History<'_>, known: &Estimate, limits: &Limits) -> Verdict {
    let done = u32::try_from(history.rounds.len()).unwrap_or(u32::MAX);
    if done <= limits.restore_after {
        return Verdict::Continue;
    }
    if known.downtime.is_some_and(|downtime| downtime <= limits.max_downtime) {
        return Verdict::Stop;
    }
    let obstacle = if limits.max_time.is_some_and(|limit| history.elapsed >= limit) {
        Obstacle::MaxTime
    } else if done >= limits.max_rounds {
        Obstacle::MaxRounds
    } else if stalled(history.rounds, history.outdated) {
        Obstacle::NotShrinking
    } else {
        return Verdict::Continue;
    };
    let for_pages = known.downtime.map_or(Duration::MAX, |downtime| downtime.saturating_sub(known.floor));
    let in_vain = known.floor > limits.max_downtime && for_pages <= known.floor / 10;
    Verdict::Ask(if in_vain { Obstacle::Floor } else { obstacle })
}

/// True when rounds leave no less than earlier ones did, by at least a tenth: less is not worth their traffic.
fn stalled(rounds: &[Sample], outdated: usize) -> bool {
    let mut best = None;
    let mut idle = 0;
    for end in (outdated + 1)..=rounds.len() {
        let Some(pages) = rounds.get(..end).and_then(left) else { continue };
        if best.is_none_or(|best| pages < best / 10 * 9) {
            (best, idle) = (Some(pages), 0);
        } else {
            idle += 1;
        }
    }
    idle >= PATIENCE
}

#[cfg(test)]
mod tests {
    use super::super::estimate::{Pending, estimate};
    use super::super::experience::Experience;
    use super::*;

    const LIMITS: Limits = Limits {
        max_downtime: Duration::from_millis(300),
        max_rounds: 5,
        max_time: Some(Duration::from_secs(60)),
        restore_after: 0,
        policy: Policy::StopAnyway,
    };

    /// A round at 1 GiB/s that left so many MiB to be sent.
    fn round(mib: u64, left_mib: u64) -> Sample {
        let duration = Duration::from_millis(mib * 1000 / 1024);
        let pending = Some(Pending { pages: left_mib * 256, age: duration });
        Sample { data_pages: mib * 256, bytes: mib << 20, duration, pending, ..Sample::default() }
    }

    /// Rounds that each send what the one before them has left.
    fn rounds(memory_mib: u64, left_mib: &[u64]) -> Vec<Sample> {
        let sizes = std::iter::once(&memory_mib).chain(left_mib);
        sizes.zip(left_mib).map(|(size, left)| round(*size, *left)).collect()
    }

    fn decided(rounds: &[Sample], seconds: u64, outdated: usize, limits: Limits) -> Verdict {
        let history = History {
            rounds,
            elapsed: Duration::from_secs(seconds),
            round_trip: Duration::ZERO,
            outdated,
            experience: Experience::default(),
        };
        decide(&history, &estimate(&history), &limits)
    }

    #[test]
    fn verdicts_by_table() {
        use Obstacle::{MaxRounds, MaxTime, NotShrinking};
        use Verdict::{Ask, Continue, Stop};
        let table: [(&str, u64, &[u64], u64, Verdict); 12] = [
            ("nothing yet", 1024, &[], 0, Continue),
            ("an idle container is stopped after one round", 1024, &[0], 2, Stop),
            ("a busy one goes on", 1024, &[900], 2, Continue),
            ("it shrinks but not enough yet", 4096, &[2048, 1024, 512], 8, Continue),
            ("it shrank enough", 4096, &[1024, 256], 6, Stop),
            ("one round that did not shrink is a burst", 1024, &[1000, 1000], 3, Continue),
            ("two are not", 1024, &[1000, 1000, 1000], 4, Ask(NotShrinking)),
            ("a tenth less is no progress", 1024, &[1000, 950, 920], 4, Ask(NotShrinking)),
            ("a sawtooth is compared with its best", 4096, &[1000, 2000, 1000], 8, Ask(NotShrinking)),
            ("as many rounds as allowed", 9000, &[8000, 7000, 6000, 5000, 4000], 30, Ask(MaxRounds)),
            ("as much time as allowed", 9000, &[8000, 7000], 60, Ask(MaxTime)),
            ("short enough although late", 9000, &[8000, 7000, 6000, 5000, 100], 99, Stop),
        ];
        for (name, memory, left, seconds, expected) in table {
            assert_eq!(decided(&rounds(memory, left), seconds, 0, LIMITS), expected, "{name}");
        }
    }

    #[test]
    fn what_no_round_lowers_is_told_from_pages() {
        let after = |floor_ms, left_mib, seconds| {
            let mut rounds = rounds(1024, &[left_mib; 3]);
            rounds.iter_mut().for_each(|round| round.stop_scan = Duration::from_millis(floor_ms));
            decided(&rounds, seconds, 0, LIMITS)
        };
        let verdict = |floor_ms, left_mib| after(floor_ms, left_mib, 4);
        assert_eq!(verdict(400, 30), Verdict::Ask(Obstacle::Floor));
        assert_eq!(after(400, 30, 60), Verdict::Ask(Obstacle::Floor), "whatever limit is reached");
        assert_eq!(after(400, 60, 60), Verdict::Ask(Obstacle::MaxTime));
        // A tenth of the time and more: slower writing would help, although not enough.
        assert_eq!(verdict(400, 60), Verdict::Ask(Obstacle::NotShrinking));
        assert_eq!(verdict(200, 200), Verdict::Ask(Obstacle::NotShrinking));
        assert_eq!(verdict(200, 30), Verdict::Stop);
    }

    #[test]
    fn without_a_limit_of_time_none_is_reached() {
        let limits = Limits { max_time: None, ..LIMITS };
        assert_eq!(decided(&rounds(9000, &[8000]), u64::MAX / 2, 0, limits), Verdict::Continue);
    }

    #[test]
    fn nothing_ends_the_rounds_before_the_copy_is_built() {
        let limits = Limits { restore_after: 2, ..LIMITS };
        assert_eq!(decided(&rounds(1024, &[0, 0]), 99, 0, limits), Verdict::Continue);
        assert_eq!(decided(&rounds(1024, &[0, 0, 0]), 99, 0, limits), Verdict::Stop);
        let busy = rounds(9000, &[8000, 8000, 8000]);
        assert_eq!(decided(&busy[..2], 99, 0, limits), Verdict::Continue);
        assert_eq!(decided(&busy, 99, 0, limits), Verdict::Ask(Obstacle::MaxTime));
    }

    #[test]
    fn rounds_from_before_a_throttle_are_not_compared() {
        let slowed = rounds(1024, &[1000, 1000, 1000, 990]);
        assert_eq!(decided(&slowed, 9, 0, LIMITS), Verdict::Ask(Obstacle::NotShrinking));
        assert_eq!(decided(&slowed, 9, 3, LIMITS), Verdict::Continue);
        assert_eq!(decided(&slowed, 9, 9, LIMITS), Verdict::Continue);
    }

    #[test]
    fn the_end_of_the_rounds_is_told_in_words() {
        assert_eq!(Reason::ShortEnough.to_string(), "predicted downtime within the limit");
        let stopped = Reason::InSpiteOf(Obstacle::MaxRounds, Policy::Throttle);
        assert_eq!(stopped.to_string(), "limit of rounds reached (policy throttle)");
    }
}
