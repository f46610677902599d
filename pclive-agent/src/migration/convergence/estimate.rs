//! How long the container would stand still if it were stopped now.
//!
//! The stop is a sum: finding the last written pages (as long as the last scan took, and comparing shared memory),
//! sending them (their count over the rounds' throughput, both ends and the link in it), putting in place what waits at
//! the destination (by experience, or by its own word), the small state (by the number of its parts), and two round
//! trips. The pages are counted after each round while the container runs; where that failed, they follow from the
//! rounds: what round k sends was written while round k-1 ran, so the container writes that much in that time.

use std::time::Duration;

use super::PAGE;
use super::experience::Experience;

/// Rounds of fewer pages say little about the link.
const TELLING_PAGES: u64 = 1024;
/// From the count of the written pages to the stop: the container runs on meanwhile.
const LEAD: Duration = Duration::from_millis(3);
/// Small state: what every stop costs.
const BASE: Duration = Duration::from_micros(9_000);
/// Small state: what each part adds, both ends together.
const PER_PROCESS: Duration = Duration::from_micros(1_000);
const PER_THREAD: Duration = Duration::from_micros(120);
const PER_DESCRIPTOR: Duration = Duration::from_micros(40);

/// A finished round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sample {
    /// Pages that were sent with contents.
    pub data_pages: u64,
    /// Bytes on the wire.
    pub bytes: u64,
    /// From its first scan to the destination's word that it is in place.
    pub duration: Duration,
    /// The part of it spent looking for written pages.
    pub scan: Duration,
    /// How long a stop would have looked.
    pub stop_scan: Duration,
    /// What waits at the destination and is put in place in the stop, bytes.
    pub staged_bytes: u64,
    /// How long the destination takes by its own word for what waits there beside that.
    pub backlog: Duration,
    /// What was written since its scan, counted when it had ended.
    pub pending: Option<Pending>,
    /// What the container is made of.
    pub tasks: Tasks,
}

/// Written pages that were not sent yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pending {
    /// How many.
    pub pages: u64,
    /// The time in which they were written.
    pub age: Duration,
}

/// The parts of the small state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tasks {
    /// Processes.
    pub processes: u64,
    /// Threads of all of them.
    pub threads: u64,
    /// Descriptors of all of them.
    pub descriptors: u64,
}

/// A migration so far.
#[derive(Debug, Clone, Copy)]
pub struct History<'a> {
    /// Finished rounds, oldest first.
    pub rounds: &'a [Sample],
    /// Since the migration began.
    pub elapsed: Duration,
    /// A question to the destination and its answer.
    pub round_trip: Duration,
    /// Rounds that ended before the container was last slowed down, or a limit lifted: they say nothing any more.
    pub outdated: usize,
    /// What earlier migrations to this destination have shown.
    pub experience: Experience,
}

/// What is known after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Estimate {
    /// Pages that the stop would have to send; `None` while nothing is known of the container's writing.
    pub dirty_pages: Option<u64>,
    /// Distinct pages written a second, smoothed over the rounds.
    pub dirty_rate: u64,
    /// Bytes a second, both ends and the link together; 0 if the rounds took no measurable time.
    pub throughput: u64,
    /// Downtime if the container were stopped now.
    pub downtime: Option<Duration>,
    /// The part of it that no round lowers: what the stop would take with no page to send.
    pub floor: Duration,
}

/// Estimates from the rounds so far.
pub fn estimate(history: &History<'_>) -> Estimate {
    let rounds = history.rounds;
    let throughput = throughput(rounds).max(history.experience.throughput);
    let dirty_rate = dirty_rate(rounds.get(history.outdated..).unwrap_or_default());
    let dirty_pages = left(rounds).map(|pages| pages.saturating_add(over(dirty_rate, LEAD)));
    let floor = rounds.last().map_or(Duration::ZERO, |last| {
        last.stop_scan
            .saturating_add(history.experience.small_state(last.tasks))
            .saturating_add(history.round_trip.saturating_mul(2))
    });
    let downtime = rounds.last().zip(dirty_pages).map(|(last, pages)| {
        let staged_pages = if last.staged_bytes == 0 { 0 } else { pages + last.staged_bytes / PAGE };
        floor
            .saturating_add(time_for(pages.saturating_mul(PAGE), throughput))
            .saturating_add(nanoseconds(u128::from(staged_pages) * u128::from(history.experience.fill_ns)))
            .saturating_add(last.backlog)
    });
    Estimate { dirty_pages, dirty_rate, throughput, downtime, floor }
}

/// What the small state of such a container costs on a machine like the one this was measured on.
pub(super) fn small_state(tasks: Tasks) -> Duration {
    let part = |each: Duration, count: u64| nanoseconds(each.as_nanos().saturating_mul(u128::from(count)));
    BASE.saturating_add(part(PER_PROCESS, tasks.processes))
        .saturating_add(part(PER_THREAD, tasks.threads))
        .saturating_add(part(PER_DESCRIPTOR, tasks.descriptors))
}

/// Pages that the rounds leave to be sent.
pub(super) fn left(rounds: &[Sample]) -> Option<u64> {
    match rounds {
        [.., Sample { pending: Some(pending), .. }] => Some(pending.pages),
        [.., before, last] => Some(scale(last.data_pages, last.duration, before.duration)),
        [] | [_] => None,
    }
}

/// Pages a second; a newer round counts as much as all before it together.
fn dirty_rate(rounds: &[Sample]) -> u64 {
    let rates =
        rounds.iter().filter_map(|round| round.pending).map(|pending| per_second(pending.pages, pending.age));
    rates.reduce(|smoothed, rate| smoothed / 2 + rate / 2).unwrap_or(0)
}

/// The better of the last telling round's and the average: a small round says little about the link.
fn throughput(rounds: &[Sample]) -> u64 {
    let moving = |round: &Sample| round.duration.saturating_sub(round.scan);
    let bytes = rounds.iter().fold(0u64, |sum, round| sum.saturating_add(round.bytes));
    let time = rounds.iter().fold(Duration::ZERO, |sum, round| sum.saturating_add(moving(round)));
    let telling = rounds.iter().rev().find(|round| round.data_pages >= TELLING_PAGES);
    let last = telling.map_or(0, |round| per_second(round.bytes, moving(round)));
    last.max(per_second(bytes, time))
}

/// `count / time` in units a second, saturating.
pub(super) fn per_second(count: u64, time: Duration) -> u64 {
    u64::try_from(u128::from(count) * 1_000_000_000 / time.as_nanos().max(1)).unwrap_or(u64::MAX)
}

/// `rate * time`, saturating.
pub(super) fn over(rate: u64, time: Duration) -> u64 {
    u64::try_from(u128::from(rate).saturating_mul(time.as_nanos()) / 1_000_000_000).unwrap_or(u64::MAX)
}

/// `pages * time / reference`, saturating.
fn scale(pages: u64, time: Duration, reference: Duration) -> u64 {
    let scaled = u128::from(pages).saturating_mul(time.as_nanos()) / reference.as_nanos().max(1);
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

/// How long bytes take, saturating.
pub(super) fn time_for(bytes: u64, throughput: u64) -> Duration {
    nanoseconds(u128::from(bytes) * 1_000_000_000 / u128::from(throughput.max(1)))
}

/// A duration, saturating at 584 years.
pub(super) fn nanoseconds(count: u128) -> Duration {
    Duration::from_nanos(u64::try_from(count).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A round of so many MiB that took so many milliseconds.
    fn round(mib: u64, milliseconds: u64) -> Sample {
        let duration = Duration::from_millis(milliseconds);
        Sample { data_pages: mib * 256, bytes: mib << 20, duration, ..Sample::default() }
    }

    fn history(rounds: &[Sample]) -> History<'_> {
        History {
            rounds,
            elapsed: Duration::ZERO,
            round_trip: Duration::ZERO,
            outdated: 0,
            experience: Experience::default(),
        }
    }

    #[test]
    fn uncounted_pages_follow_from_the_rounds() {
        // 100 MiB written in 1 s, the last round took 0.1 s at 1000 MiB/s: 10 MiB are left, 10 ms to send.
        let known = estimate(&history(&[round(1000, 1000), round(100, 100)]));
        assert_eq!(known.dirty_pages, Some(10 * 256));
        assert_eq!(known.downtime, Some(BASE + Duration::from_millis(10)));
        assert_eq!(estimate(&history(&[round(1000, 1000)])).downtime, None);
    }

    #[test]
    fn counted_pages_are_known_after_the_first_round() {
        let pending = Pending { pages: 2560, age: Duration::from_secs(1) };
        let known = estimate(&history(&[Sample { pending: Some(pending), ..round(1000, 1000) }]));
        // Those of the 3 ms until the stop are added.
        assert_eq!((known.dirty_pages, known.dirty_rate), (Some(2567), 2560));
    }

    #[test]
    fn everything_that_the_stop_does_is_in_the_downtime() {
        let tasks = Tasks { processes: 2, threads: 10, descriptors: 50 };
        let pending = Some(Pending { pages: 0, age: Duration::from_secs(1) });
        let last = Sample { pending, tasks, stop_scan: Duration::from_millis(5), ..round(1000, 1000) };
        let plain = History { round_trip: Duration::from_millis(20), ..history(std::slice::from_ref(&last)) };
        let direct = estimate(&plain).downtime.unwrap();
        assert_eq!(direct, Duration::from_millis(5 + 40) + small_state(tasks));
        assert_eq!(estimate(&plain).floor, direct);
        let behind = Sample { backlog: Duration::from_millis(70), ..last };
        let told = estimate(&History { rounds: &[behind], ..plain }).downtime.unwrap();
        assert_eq!(told - direct, Duration::from_millis(70));
        let staged = Sample { staged_bytes: 1 << 30, ..last };
        let waiting = estimate(&History { rounds: &[staged], ..plain }).downtime.unwrap();
        assert_eq!(waiting - direct, Duration::from_nanos(Experience::default().fill_ns * 262_144));
        let written =
            Sample { pending: Some(Pending { pages: 256 * 100, age: Duration::from_secs(1) }), ..last };
        let more = estimate(&History { rounds: &[written], ..plain });
        assert!(
            more.floor == direct && more.downtime.unwrap() > direct + Duration::from_millis(100),
            "{more:?}"
        );
    }

    #[test]
    fn a_tiny_round_does_not_make_the_link_look_slow() {
        let known = estimate(&history(&[round(1000, 1000), round(1, 50)]));
        assert!(known.throughput > 900 << 20, "{known:?}");
    }

    #[test]
    fn rates_from_before_a_throttle_are_forgotten() {
        let writing = |pages| {
            let pending = Some(Pending { pages, age: Duration::from_secs(1) });
            Sample { pending, ..round(100, 1000) }
        };
        let rounds = [writing(100_000), writing(1_000)];
        assert_eq!(estimate(&history(&rounds)).dirty_rate, 50_500);
        assert_eq!(estimate(&History { outdated: 1, ..history(&rounds) }).dirty_rate, 1_000);
    }

    prop_compose! {
        fn any_sample()(
            counts in any::<[u64; 5]>(),
            times in any::<[u64; 5]>(),
            tasks in any::<[u64; 3]>(),
            counted in any::<bool>(),
        ) -> Sample {
            let [data_pages, bytes, staged_bytes, pages, _] = counts;
            let [duration, scan, stop_scan, age, backlog] = times.map(Duration::from_secs);
            Sample {
                data_pages, bytes, duration, scan, stop_scan, staged_bytes, backlog,
                pending: counted.then_some(Pending { pages, age }),
                tasks: Tasks { processes: tasks[0], threads: tasks[1], descriptors: tasks[2] },
            }
        }
    }

    proptest! {
        #[test]
        fn no_measurement_overflows(
            rounds in proptest::collection::vec(any_sample(), 0..6),
            outdated in 0usize..9,
            round_trip in any::<u64>(),
        ) {
            let known = estimate(&History { outdated, round_trip: Duration::from_secs(round_trip), ..history(&rounds) });
            prop_assert_eq!(known.downtime.is_some(), known.dirty_pages.is_some());
        }
    }
}
