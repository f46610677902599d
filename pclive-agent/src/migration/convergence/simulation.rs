//! Rounds that have not been run: the same estimate and the same decision over a container's observed writing.

use std::time::Duration;

use super::PAGE;
use super::decision::{Limits, Obstacle, Reason, Verdict, decide};
use super::estimate::{History, Pending, Sample, Tasks, estimate, nanoseconds, time_for};
use super::experience::Experience;
use super::policy::{Action, Policy, Step};

/// A container and the way to its destination.
pub struct Scenario<'a> {
    /// Pages that the first round sends.
    pub memory_pages: u64,
    /// Distinct pages that the container writes from a point in time on, for so long.
    pub written: &'a dyn Fn(Duration, Duration) -> u64,
    /// Bytes a second, both ends and the link together.
    pub throughput: u64,
    /// Most bytes a second of the rounds.
    pub bandwidth: Option<u64>,
    /// What a stop takes to find the last written pages.
    pub stop_scan: Duration,
    /// What a round takes beside its pages: the scan, mostly.
    pub round_cost: Duration,
    /// A question to the destination and its answer.
    pub round_trip: Duration,
    /// What waits at the destination, once the copy is built.
    pub staged: Staged,
    /// What the container is made of.
    pub tasks: Tasks,
    /// What earlier migrations to this destination have shown.
    pub experience: Experience,
}

impl Scenario<'_> {
    /// What a migration knows of the link before its rounds: nothing, unless they are limited; else they show it themselves.
    fn known_link(&self) -> Experience {
        if self.bandwidth.is_some() { self.experience } else { self.experience.without_link() }
    }
}

/// What waits at the destination before it is put in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Staged {
    /// Pages go straight into the copy.
    Nothing,
    /// The last round, while the next one is on its way.
    Round,
    /// Everything, until the stop.
    Everything,
}

/// How a migration would go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Course {
    /// Rounds while the container runs.
    pub rounds: u32,
    /// On the wire, the stop included.
    pub bytes: u64,
    /// From the first round until everything is at the destination.
    pub time: Duration,
    /// The stop.
    pub downtime: Duration,
    /// What comes after it, by policy post-copy.
    pub tail_bytes: u64,
    /// Most memory that waits at the destination, bytes.
    pub staged_bytes: u64,
    /// What was left of the container's CPU time, in percent; 100: it was not slowed down.
    pub cpu_percent: u32,
    /// Why the rounds end; `None` when the policy gives the migration up.
    pub reason: Option<Reason>,
}

/// Runs the rounds on paper. They end, because the limit of rounds ends them.
pub fn simulate(scenario: &Scenario<'_>, limits: &Limits) -> Course {
    let mut run = Run {
        rounds: Vec::new(),
        elapsed: Duration::ZERO,
        bandwidth: scenario.bandwidth,
        step: None,
        outdated: 0,
        waiting_bytes: 0,
        peak_bytes: 0,
    };
    let mut pages = scenario.memory_pages;
    loop {
        run.round(scenario, limits, pages);
        let history = run.history(&run.rounds, scenario.known_link(), scenario);
        let known = estimate(&history);
        let reason = match decide(&history, &known, limits) {
            Verdict::Continue => None,
            Verdict::Stop => Some(Some(Reason::ShortEnough)),
            Verdict::Ask(obstacle) => match limits.policy.answer(obstacle, run.step, run.bandwidth.is_some())
            {
                Action::Stop => Some(Some(Reason::InSpiteOf(obstacle, limits.policy))),
                Action::Cancel => Some(None),
                Action::Hurry => {
                    (run.bandwidth, run.outdated) = (None, run.rounds.len());
                    None
                }
                Action::Throttle(step) => {
                    (run.step, run.outdated) = (Some(step), run.rounds.len());
                    None
                }
            },
        };
        pages = known.dirty_pages.unwrap_or(0);
        if let Some(reason) = reason {
            return run.end(scenario, reason);
        }
    }
}

/// Distinct pages written within `span`, by counts at growing spans (milliseconds, pages): straight lines between
/// them, and the last one's slope behind them.
pub fn interpolate(curve: &[(u64, u64)], span: Duration) -> u64 {
    let span_ns = span.as_nanos();
    let ns = |milliseconds: u64| u128::from(milliseconds) * 1_000_000;
    let mut from = (0, 0);
    for (index, &(ms, pages)) in curve.iter().enumerate() {
        if ns(ms) >= span_ns || index + 1 == curve.len() {
            let (width, gain) =
                (ns(ms).saturating_sub(ns(from.0)).max(1), u128::from(pages.saturating_sub(from.1)));
            let more = gain.saturating_mul(span_ns - ns(from.0)) / width;
            return u64::try_from(u128::from(from.1).saturating_add(more)).unwrap_or(u64::MAX);
        }
        from = (ms, pages);
    }
    0
}

struct Run {
    rounds: Vec<Sample>,
    elapsed: Duration,
    /// Most bytes a second of the next round.
    bandwidth: Option<u64>,
    step: Option<Step>,
    outdated: usize,
    /// What waits at the destination, and the most that has.
    waiting_bytes: u64,
    peak_bytes: u64,
}

impl Run {
    fn round(&mut self, scenario: &Scenario<'_>, limits: &Limits, data_pages: u64) {
        let bytes = data_pages.saturating_mul(PAGE);
        let throughput = self.bandwidth.map_or(scenario.throughput, |most| most.min(scenario.throughput));
        let duration = scenario.round_cost.saturating_add(time_for(bytes, throughput));
        let written = (scenario.written)(self.elapsed, duration);
        let share = u128::from(self.step.map_or(100, Step::percent));
        let pages = u64::try_from(u128::from(written) * share / 100).unwrap_or(u64::MAX);
        let waiting = self.wait(scenario.staged, limits, bytes);
        let fill_ns = u128::from(scenario.experience.fill_ns);
        self.rounds.push(Sample {
            data_pages,
            bytes,
            duration,
            scan: scenario.round_cost,
            stop_scan: scenario.stop_scan,
            staged_bytes: if scenario.staged == Staged::Everything { waiting } else { 0 },
            backlog: match scenario.staged {
                Staged::Round => nanoseconds(u128::from(waiting / PAGE) * fill_ns),
                Staged::Nothing | Staged::Everything => Duration::ZERO,
            },
            pending: Some(Pending { pages, age: duration }),
            tasks: scenario.tasks,
        });
        self.elapsed = self.elapsed.saturating_add(duration);
    }

    /// What waits after a round of so many bytes.
    fn wait(&mut self, staged: Staged, limits: &Limits, bytes: u64) -> u64 {
        let merges = self.rounds.len() < limits.restore_after as usize;
        self.waiting_bytes = match staged {
            // A page that is sent again takes the place of the one that waits.
            Staged::Nothing | Staged::Round if merges => self.waiting_bytes.max(bytes),
            Staged::Everything => self.waiting_bytes.max(bytes),
            Staged::Round => bytes,
            Staged::Nothing => 0,
        };
        self.peak_bytes = self.peak_bytes.max(self.waiting_bytes);
        self.waiting_bytes
    }

    fn history<'a>(
        &self,
        rounds: &'a [Sample],
        experience: Experience,
        scenario: &Scenario<'_>,
    ) -> History<'a> {
        let (elapsed, round_trip, outdated) = (self.elapsed, scenario.round_trip, self.outdated);
        History { rounds, elapsed, round_trip, outdated, experience }
    }

    fn end(self, scenario: &Scenario<'_>, reason: Option<Reason>) -> Course {
        // No limit holds in the stop, whatever was known of the link when it was decided.
        let experience = match scenario.bandwidth {
            Some(_) => scenario.experience.with_link(scenario.throughput),
            None => scenario.known_link(),
        };
        let known = estimate(&self.history(&self.rounds, experience, scenario));
        let whole = known.downtime.unwrap_or_else(|| nanoseconds(u128::MAX));
        let last = known.dirty_pages.unwrap_or(0).saturating_mul(PAGE);
        let later = match reason {
            Some(Reason::InSpiteOf(Obstacle::Floor, Policy::PostCopy)) => false,
            Some(Reason::InSpiteOf(_, Policy::PostCopy)) => true,
            Some(_) | None => false,
        };
        let mut without_last = self.rounds.clone();
        without_last.iter_mut().rev().take(1).for_each(|round| round.pending = Some(Pending::default()));
        let small = estimate(&self.history(&without_last, experience, scenario)).downtime.unwrap_or(whole);
        let sent = self.rounds.iter().fold(0u64, |sum, round| sum.saturating_add(round.bytes));
        Course {
            rounds: u32::try_from(self.rounds.len()).unwrap_or(u32::MAX),
            bytes: sent.saturating_add(last),
            // What comes later takes as long as it would in the stop.
            time: self.elapsed.saturating_add(whole),
            downtime: if later { small } else { whole },
            tail_bytes: if later { last } else { 0 },
            staged_bytes: self.peak_bytes,
            cpu_percent: self.step.map_or(100, Step::percent),
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB_PAGES: u64 = 262_144;
    const LIMITS: Limits = Limits {
        max_downtime: Duration::from_millis(300),
        max_rounds: 15,
        max_time: None,
        restore_after: 0,
        policy: Policy::StopAnyway,
    };

    /// A container of 1 GiB over a link with 1 GiB/s.
    fn run(written: &dyn Fn(Duration, Duration) -> u64, limits: &Limits) -> Course {
        simulate(&scenario(written), limits)
    }

    fn scenario(written: &dyn Fn(Duration, Duration) -> u64) -> Scenario<'_> {
        Scenario {
            memory_pages: GIB_PAGES,
            written,
            throughput: 1 << 30,
            bandwidth: None,
            round_cost: Duration::from_millis(3),
            stop_scan: Duration::from_millis(3),
            round_trip: Duration::from_micros(500),
            staged: Staged::Nothing,
            tasks: Tasks { processes: 1, threads: 5, descriptors: 20 },
            experience: Experience::default(),
        }
    }

    /// So many MiB a second, all of them different pages.
    fn constant(mib: u64) -> impl Fn(Duration, Duration) -> u64 {
        move |_, span| {
            u64::try_from(u128::from(mib * 256) * span.as_nanos() / 1_000_000_000).unwrap().min(GIB_PAGES)
        }
    }

    /// Writing that comes and goes: the rate at `phase` of a period, MiB a second.
    fn periodic(period: Duration, rate: impl Fn(f64) -> f64) -> impl Fn(Duration, Duration) -> u64 {
        move |from, span| {
            let at = |step: u32| (from + span * step / 100).as_secs_f64() / period.as_secs_f64();
            let mean = (0..100).map(|step| rate(at(step).fract())).sum::<f64>() / 100.0;
            ((mean * span.as_secs_f64() * 256.0) as u64).min(GIB_PAGES)
        }
    }

    #[test]
    fn constant_writing_below_the_links_speed_converges() {
        let course = run(&constant(200), &LIMITS);
        assert_eq!((course.reason, course.rounds), (Some(Reason::ShortEnough), 1));
        let course = run(&constant(700), &LIMITS);
        assert_eq!(course.reason, Some(Reason::ShortEnough), "{course:?}");
        assert!(course.downtime <= LIMITS.max_downtime && course.rounds > 2, "{course:?}");
    }

    #[test]
    fn constant_writing_above_the_links_speed_is_noticed_in_three_rounds() {
        let course = run(&constant(1100), &LIMITS);
        let stalled = Reason::InSpiteOf(Obstacle::NotShrinking, Policy::StopAnyway);
        assert_eq!((course.reason, course.rounds), (Some(stalled), 3), "{course:?}");
        let given_up = run(&constant(1100), &Limits { policy: Policy::Cancel, ..LIMITS });
        assert_eq!(given_up.reason, None);
    }

    #[test]
    fn bursts_are_waited_for() {
        // A tenth of the time at four times the link's speed, quiet in between.
        let bursts = periodic(Duration::from_secs(3), |phase| if phase < 0.1 { 4000.0 } else { 20.0 });
        let course = run(&bursts, &LIMITS);
        assert_eq!(course.reason, Some(Reason::ShortEnough), "{course:?}");
    }

    #[test]
    fn a_sawtooth_ends_within_the_limits() {
        for period_ms in [200, 700, 3000, 20_000] {
            let teeth = periodic(Duration::from_millis(period_ms), |phase| phase * 1600.0);
            let course = run(&teeth, &LIMITS);
            assert!(course.rounds <= 15 && course.reason.is_some(), "{period_ms}: {course:?}");
        }
    }

    #[test]
    fn throttling_makes_converge_what_would_not() {
        let limits = Limits { policy: Policy::Throttle, ..LIMITS };
        let course = run(&constant(1500), &limits);
        assert_eq!(course.reason, Some(Reason::ShortEnough), "{course:?}");
        assert!(course.cpu_percent < 100 && course.downtime <= limits.max_downtime, "{course:?}");
        let slow = run(&constant(200), &limits);
        assert_eq!(slow.cpu_percent, 100, "nobody is slowed down without need");
    }

    #[test]
    fn a_bandwidth_limit_is_lifted_where_it_keeps_rounds_from_shrinking() {
        let limited = |mib: u64, policy| {
            let written = constant(mib);
            let scenario = Scenario { bandwidth: Some(100 << 20), ..scenario(&written) };
            simulate(&scenario, &Limits { policy, ..LIMITS })
        };
        let gentle = limited(20, Policy::StopAnyway);
        assert_eq!(gentle.reason, Some(Reason::ShortEnough), "{gentle:?}");
        assert!(gentle.time > Duration::from_secs(10), "all of it at the limit: {gentle:?}");
        let lifted = limited(300, Policy::StopAnyway);
        assert_eq!(lifted.reason, Some(Reason::ShortEnough), "{lifted:?}");
        assert!(lifted.rounds > 3 && lifted.downtime <= LIMITS.max_downtime, "{lifted:?}");
        assert_eq!(limited(300, Policy::Cancel).reason, None, "a limit that was asked for is kept");
    }

    #[test]
    fn by_post_copy_the_stop_does_without_what_comes_later() {
        let limits = Limits { policy: Policy::PostCopy, ..LIMITS };
        let course = run(&constant(1100), &limits);
        assert_eq!(course.reason, Some(Reason::InSpiteOf(Obstacle::NotShrinking, Policy::PostCopy)));
        assert!(course.downtime < Duration::from_millis(50) && course.tail_bytes > 500 << 20, "{course:?}");
        let stopped = run(&constant(1100), &LIMITS);
        assert_eq!((stopped.tail_bytes, stopped.time, stopped.bytes), (0, course.time, course.bytes));
        assert_eq!(run(&constant(200), &limits), run(&constant(200), &LIMITS), "not needed");
        let written = constant(1100);
        let staged = simulate(&Scenario { staged: Staged::Everything, ..scenario(&written) }, &limits);
        assert!(staged.downtime > Duration::from_millis(500), "what waits there is put in place: {staged:?}");
        let floor = Limits { max_downtime: Duration::from_millis(1), ..limits };
        let idle = run(&constant(0), &floor);
        assert_eq!(idle.reason, Some(Reason::InSpiteOf(Obstacle::Floor, Policy::PostCopy)));
        assert_eq!(idle.tail_bytes, 0, "nothing would be won");
    }

    #[test]
    fn what_waits_at_the_destination_is_part_of_the_stop() {
        let idle = constant(0);
        let direct = simulate(&scenario(&idle), &LIMITS);
        let staged = simulate(&Scenario { staged: Staged::Everything, ..scenario(&idle) }, &LIMITS);
        assert_eq!(staged.staged_bytes, 1 << 30);
        assert!(staged.downtime > direct.downtime + Duration::from_millis(500), "{staged:?}");
        let pipelined = simulate(&Scenario { staged: Staged::Round, ..scenario(&idle) }, &LIMITS);
        assert_eq!(
            (pipelined.staged_bytes, pipelined.rounds),
            (1 << 30, 2),
            "round 0 is in place after round 1"
        );
        assert!(pipelined.downtime < direct.downtime + Duration::from_millis(50), "{pipelined:?}");
    }

    #[test]
    fn delayed_restoration_takes_its_rounds_and_the_memory_for_them() {
        let idle = constant(0);
        let course = run(&idle, &Limits { restore_after: 2, ..LIMITS });
        assert_eq!((course.rounds, course.staged_bytes), (3, 1 << 30));
        assert_eq!(course.downtime, run(&idle, &LIMITS).downtime);
    }

    /// Distinct pages over time as they were counted in a real container (`pclivectl plan --json`): milliseconds and
    /// pages a line.
    fn recorded(text: &str) -> Vec<(u64, u64)> {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let number = |word: Option<&str>| word.and_then(|word| word.parse().ok()).expect("a number");
        lines
            .map(|line| line.split(' '))
            .map(|mut words| (number(words.next()), number(words.next())))
            .collect()
    }

    #[test]
    fn recorded_containers_reach_downtimes_that_are_possible_for_them() {
        let [idle, sequences, overwrite, torture] = [
            include_str!("traces/redis-idle.txt"),
            include_str!("traces/redis-sequences.txt"),
            include_str!("traces/redis-overwrite.txt"),
            include_str!("traces/torture.txt"),
        ];
        let table = [
            (idle, 1024, 50, true),
            (sequences, 1024, 50, true),
            (overwrite, 1024, 50, true),
            (overwrite, 256, 50, false),
            (overwrite, 256, 300, false),
            (overwrite, 256, 2000, true),
            (torture, 1024, 300, true),
        ];
        for (trace, mib_per_second, max_downtime_ms, reached) in table {
            let curve = recorded(trace);
            let written = |_: Duration, span: Duration| interpolate(&curve, span).min(GIB_PAGES);
            let max_downtime = Duration::from_millis(max_downtime_ms);
            let scenario = Scenario { throughput: mib_per_second << 20, ..scenario(&written) };
            let course = simulate(&scenario, &Limits { max_downtime, ..LIMITS });
            let title = trace.lines().next().unwrap_or_default();
            assert_eq!(course.downtime <= max_downtime, reached, "{title}, {max_downtime_ms} ms: {course:?}");
            assert_eq!(course.reason == Some(Reason::ShortEnough), reached, "{title}: {course:?}");
        }
    }

    #[test]
    fn a_curve_is_read_between_its_points_and_goes_on_behind_them() {
        let curve = [(100, 1000), (200, 1500), (400, 1700)];
        let at = |ms| interpolate(&curve, Duration::from_millis(ms));
        assert_eq!([0, 50, 100, 150, 400, 800].map(at), [0, 500, 1000, 1250, 1700, 2100]);
        assert_eq!(interpolate(&[], Duration::from_secs(1)), 0);
    }

    proptest! {
        #[test]
        fn every_migration_ends(
            rate in 0u64..100_000, memory in 0u64..1 << 34, throughput in 0u64..1 << 36, max_rounds in 1u32..50,
            policy in 0usize..4, staged in 0usize..3, downtime_ms in 1u64..100_000,
            bandwidth in proptest::option::of(0u64..1 << 36),
        ) {
            let written = constant(rate);
            let limits = Limits {
                max_downtime: Duration::from_millis(downtime_ms),
                max_rounds,
                max_time: None,
                restore_after: 0,
                policy: Policy::ALL[policy],
            };
            let staged = [Staged::Nothing, Staged::Round, Staged::Everything][staged];
            let scenario = Scenario { memory_pages: memory, throughput, bandwidth, staged, ..scenario(&written) };
            let course = simulate(&scenario, &limits);
            prop_assert!(course.rounds <= max_rounds);
            let is_short = course.downtime <= limits.max_downtime;
            prop_assert!(course.reason != Some(Reason::ShortEnough) || is_short);
            if limits.policy != Policy::PostCopy && bandwidth.is_none() {
                prop_assert_eq!(course.reason == Some(Reason::ShortEnough), is_short);
            }
            prop_assert!(course.tail_bytes == 0 || limits.policy == Policy::PostCopy);
        }
    }
}
