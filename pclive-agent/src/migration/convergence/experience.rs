//! What migrations have really cost, for the estimates of later ones.

use std::time::Duration;

use super::estimate::{Tasks, nanoseconds, small_state};

/// Putting a page in place that waited at the destination, until a migration has shown what it takes there.
const FILL_NS: u64 = 4_000;
/// How far experience may move the small state's cost, in percent: one odd migration must not spoil the rest.
const SMALL_STATE_PERCENT: (u64, u64) = (20, 1_000);

/// What is known of migrations to one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experience {
    /// The small state's real cost, in percent of what its parts suggest.
    small_percent: u64,
    /// Bytes a second without a bandwidth limit; 0: not known.
    pub throughput: u64,
    /// Time to put a page in place that waited, nanoseconds.
    pub fill_ns: u64,
}

impl Default for Experience {
    fn default() -> Self {
        Self { small_percent: 100, throughput: 0, fill_ns: FILL_NS }
    }
}

/// What one stop has cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// What the container is made of.
    pub tasks: Tasks,
    /// The stop without its pages and round trips.
    pub small_state: Duration,
    /// Bytes a second of the rounds, if nothing limited them.
    pub throughput: Option<u64>,
    /// Pages that had waited, and the time to put them in place.
    pub filled: Option<(u64, Duration)>,
}

impl Experience {
    /// Without what is known of the link: this migration's own rounds show it.
    #[must_use]
    pub fn without_link(self) -> Self {
        self.with_link(0)
    }

    /// With a link that carries so many bytes a second.
    #[must_use]
    pub fn with_link(self, throughput: u64) -> Self {
        Self { throughput, ..self }
    }

    /// What the small state of a container should cost.
    pub fn small_state(&self, tasks: Tasks) -> Duration {
        nanoseconds(small_state(tasks).as_nanos().saturating_mul(u128::from(self.small_percent)) / 100)
    }

    /// With one migration more; it counts as much as all before it.
    #[must_use]
    pub fn with(self, measured: Measured) -> Self {
        let expected = small_state(measured.tasks).as_nanos().max(1);
        let percent = u64::try_from(measured.small_state.as_nanos() * 100 / expected).unwrap_or(u64::MAX);
        let (low, high) = SMALL_STATE_PERCENT;
        let fill_ns =
            measured.filled.filter(|(pages, _)| *pages > 0).map_or(self.fill_ns, |(pages, time)| {
                u64::try_from(time.as_nanos() / u128::from(pages)).unwrap_or(u64::MAX) / 2 + self.fill_ns / 2
            });
        let throughput = match (measured.throughput, self.throughput) {
            (None, known) => known,
            (Some(seen), 0) => seen,
            (Some(seen), known) => seen / 2 + known / 2,
        };
        Self { small_percent: percent.clamp(low, high) / 2 + self.small_percent / 2, throughput, fill_ns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_destination_is_expected_to_be_slow_again_and_no_worse_than_it_was() {
        let tasks = Tasks { processes: 1, threads: 5, descriptors: 20 };
        let usual = Experience::default().small_state(tasks);
        let measured = Measured { tasks, small_state: usual * 3, throughput: Some(1000), filled: None };
        let mut known = Experience::default();
        for _ in 0..10 {
            known = known.with(measured);
        }
        let expected = known.small_state(tasks);
        assert!(expected > usual * 29 / 10 && expected <= usual * 3, "{expected:?} of {usual:?}");
        assert!((990..=1000).contains(&known.throughput));
    }

    #[test]
    fn what_was_not_measured_stays_as_it_was() {
        let tasks = Tasks::default();
        let small_state = Experience::default().small_state(tasks);
        let measured = Measured { tasks, small_state, throughput: None, filled: Some((0, Duration::MAX)) };
        assert_eq!(Experience::default().with(measured), Experience::default());
    }

    #[test]
    fn absurd_measurements_are_bounded() {
        let tasks = Tasks::default();
        let measured = Measured {
            tasks,
            small_state: Duration::MAX,
            throughput: None,
            filled: Some((1, Duration::MAX)),
        };
        let known = Experience::default().with(measured).with(measured);
        assert!(known.small_state(tasks) < Duration::from_secs(1));
    }
}
