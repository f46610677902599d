//! A migration's rounds: what they have shown, what follows from it, and what the policy does about it.
//!
//! The decisions are [`convergence`]'s. What is done to the container for a policy is a guard that this keeps: the
//! throttle ends when this is dropped, or just before the stop ([`Rounds::take_throttle`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use pclive_proto::control::{self, Ledger, PolicyApplied, Report};
use pclive_proto::peer::RoundApplied;

use super::engine::Moved;
use crate::config::Strategy;
use crate::error::{ErrorCode, MigrationError, chain};
use crate::fault::{self, Point};
use crate::journal;
use crate::migration::convergence::{
    self, Action, Estimate, Experience, History, Limits, Measured, Obstacle, Pending, Policy, Reason, Sample,
    Step, Tasks, Verdict,
};
use crate::migration::report::ns;
use crate::migration::throttle::Throttle;
use crate::migration::{SharedLog, wire};
use crate::registry::Entry;

/// Bytes in a page.
const PAGE: u64 = 4096;

/// The rounds of one migration.
#[derive(Debug)]
pub(super) struct Rounds {
    limits: Limits,
    /// Init of the container, for its CPU limit.
    pid: i32,
    round_trip: Duration,
    experience: Experience,
    /// The stream was slower than the link: the rounds do not show what the stop will see.
    limited: bool,
    /// Most bytes a second of the next round.
    bandwidth: Option<u64>,
    pub(super) samples: Vec<Sample>,
    /// As users see them.
    pub(super) told: Vec<control::Round>,
    throttle: Option<Throttle>,
    step: Option<Step>,
    outdated: usize,
    /// What the last round said.
    known: Estimate,
}

impl Rounds {
    /// No rounds yet. `experience` is what earlier migrations to the destination have shown.
    pub(super) fn new(limits: Limits, bandwidth: Option<u64>, pid: i32, experience: Experience) -> Self {
        let limited = bandwidth.is_some();
        let experience = if limited { experience } else { experience.without_link() };
        Self {
            limits,
            pid,
            round_trip: Duration::ZERO,
            experience,
            limited,
            bandwidth,
            samples: Vec::new(),
            told: Vec::new(),
            throttle: None,
            step: None,
            outdated: 0,
            known: Estimate::default(),
        }
    }

    /// How long a question to the destination and its answer take.
    pub(super) fn set_round_trip(&mut self, round_trip: Duration) {
        self.round_trip = round_trip;
    }

    /// Looks for what a throttle will need, before the rounds begin: the container's use of CPU time is measured from
    /// here on. A policy that cannot be kept is refused while there is time to choose another.
    pub(super) fn prepare(&mut self) -> Result<(), MigrationError> {
        if self.limits.policy == Policy::Throttle {
            let found = Throttle::find(self.pid);
            let found = found.map_err(|error| {
                MigrationError::caused(ErrorCode::InvalidRequest, &error).hint("choose another policy")
            })?;
            self.throttle = Some(found);
        }
        Ok(())
    }

    /// Most bytes a second of the next round.
    pub(super) fn bandwidth(&self) -> Option<u64> {
        self.bandwidth
    }

    /// Number of the next round.
    pub(super) fn next(&self) -> u32 {
        u32::try_from(self.samples.len()).unwrap_or(u32::MAX)
    }

    /// A round has ended; what is known now.
    pub(super) fn add(&mut self, moved: &Moved, done: Done, began: Instant) -> Estimate {
        let stats = &moved.stats;
        let tasks = Tasks {
            processes: stats.processes.into(),
            threads: stats.threads.into(),
            descriptors: stats.descriptors.into(),
        };
        self.samples.push(Sample {
            data_pages: stats.data_pages,
            bytes: moved.bytes.saturating_add(moved.saved),
            duration: done.duration,
            scan: stats.scan,
            stop_scan: stats.scan.saturating_add(stats.stop_scan),
            staged_bytes: done.backlog.staged_bytes,
            backlog: done.backlog.time,
            pending: done.pending,
            tasks,
        });
        self.known = convergence::estimate(&self.history(began));
        self.known
    }

    fn history(&self, began: Instant) -> History<'_> {
        History {
            rounds: &self.samples,
            elapsed: began.elapsed(),
            round_trip: self.round_trip,
            outdated: self.outdated,
            experience: self.experience,
        }
    }

    /// Why the rounds end, if they do. A policy is told to users before it is applied.
    pub(super) async fn end(
        &mut self,
        entry: &Entry,
        log: &SharedLog,
    ) -> Result<Option<Reason>, MigrationError> {
        let obstacle = match convergence::decide(&self.history(entry.began()), &self.known, &self.limits) {
            Verdict::Continue => return Ok(None),
            Verdict::Stop => return Ok(Some(Reason::ShortEnough)),
            Verdict::Ask(obstacle) => obstacle,
        };
        match self.limits.policy.answer(obstacle, self.step, self.bandwidth.is_some()) {
            Action::Stop => {
                self.tell(entry, obstacle, "the container is stopped all the same");
                Ok(Some(Reason::InSpiteOf(obstacle, self.limits.policy)))
            }
            Action::Cancel => {
                self.tell(entry, obstacle, "the migration is given up");
                Err(self.given_up(obstacle))
            }
            Action::Hurry => {
                self.bandwidth = None;
                self.outdated = self.samples.len();
                self.tell(entry, obstacle, "the bandwidth limit is lifted");
                Ok(None)
            }
            Action::Throttle(step) => {
                self.slow_down(entry, log, (obstacle, step)).await;
                Ok(None)
            }
        }
    }

    /// Why a migration is given up that did not converge in time.
    pub(super) fn given_up(&self, obstacle: Obstacle) -> MigrationError {
        let message = format!("the migration does not converge: {}", self.figures(obstacle));
        MigrationError::new(ErrorCode::NotConverging, message)
    }

    async fn slow_down(&mut self, entry: &Entry, log: &SharedLog, (obstacle, step): (Obstacle, Step)) {
        self.step = Some(step);
        self.outdated = self.samples.len();
        self.tell(entry, obstacle, &format!("the container keeps {} % of its CPU time", step.percent()));
        let Some(mut throttle) = self.throttle.take() else { return };
        let log = Arc::clone(log);
        let limited = tokio::task::spawn_blocking(move || {
            let limited = throttle.limit(step, |slowed| {
                let kept = journal::guard(&log).keep_slowed(slowed);
                fault::reached(Point::SourceSlowingWritten);
                kept
            });
            fault::reached(Point::SourceSlowed);
            (throttle, limited)
        });
        let Ok((throttle, limited)) = limited.await else { return };
        self.throttle = Some(throttle);
        match limited {
            Ok(cpus) => tracing::info!(cpus, percent = step.percent(), "container slowed down"),
            Err(error) => entry.warn(format!("the container could not be slowed down: {}", chain(&error))),
        }
    }

    fn tell(&self, entry: &Entry, obstacle: Obstacle, what: &str) {
        entry.policy(PolicyApplied {
            policy: wire::control_policy(self.limits.policy).into(),
            message: format!("policy {}: {what}, because {}", self.limits.policy, self.figures(obstacle)),
            predicted_downtime_ns: self.known.downtime.map_or(0, ns),
            max_downtime_ns: ns(self.limits.max_downtime),
            cpu_percent: self.step.map_or(100, Step::percent),
        });
    }

    /// The state of the rounds in figures.
    fn figures(&self, obstacle: Obstacle) -> String {
        let mib_per_second = |bytes: u64| bytes >> 20;
        let rounds = self.samples.len();
        let downtime =
            self.known.downtime.map_or("unknown".into(), |time| format!("{} ms", time.as_millis()));
        format!(
            "{obstacle} after {rounds} round{}: predicted downtime {downtime}, limit {} ms, the container writes {} MiB/s \
             and {} MiB/s are sent",
            if rounds == 1 { "" } else { "s" },
            self.limits.max_downtime.as_millis(),
            mib_per_second(self.known.dirty_rate.saturating_mul(PAGE)),
            mib_per_second(self.known.throughput),
        )
    }

    /// What slows the container down: to be ended just before the stop.
    pub(super) fn take_throttle(&mut self) -> Option<Throttle> {
        self.throttle.take()
    }

    /// What the last round said.
    pub(super) fn known(&self) -> Estimate {
        self.known
    }

    /// What the migration has shown, for later ones. `report` is the finished one's.
    pub(super) fn measured(&self, report: &Report) -> Option<Measured> {
        // The last one is the stop's own.
        let (_, running) = self.samples.split_last()?;
        let last = running.last()?;
        let Ledger { final_scan_ns, transfer_ns, fill_ns, verify_ns, .. } = report.ledger.unwrap_or_default();
        let pages_ns = final_scan_ns.saturating_add(transfer_ns).saturating_add(fill_ns);
        // Like them, comparing depends on memory and not on what is learned here.
        let pages_ns = pages_ns.saturating_add(verify_ns);
        let rest =
            report.downtime_ns.saturating_sub(pages_ns).saturating_sub(ns(self.round_trip.saturating_mul(2)));
        let history = self.history(Instant::now());
        let plain = History { rounds: running, experience: Experience::default(), ..history };
        let throughput = convergence::estimate(&plain).throughput;
        // With restorers that live the stop puts only a part in place of what has waited.
        let staged_pages = if last.staged_bytes > 0 { report.staging_peak_bytes / PAGE } else { 0 };
        Some(Measured {
            tasks: last.tasks,
            small_state: Duration::from_nanos(rest),
            throughput: (!self.limited && throughput > 0).then_some(throughput),
            filled: (staged_pages > 0).then_some((staged_pages, Duration::from_nanos(fill_ns))),
        })
    }
}

/// What the destination has not put in place yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Backlog {
    /// What is put in place in the stop, all of it, bytes.
    staged_bytes: u64,
    /// How long the destination will take for the rest.
    time: Duration,
}

impl Backlog {
    /// What the destination says after a round. Where restorers live it knows how fast they take pages; by one-shot
    /// nobody knows before the stop.
    pub(super) fn told(strategy: Strategy, applied: &RoundApplied) -> Self {
        match strategy {
            Strategy::OneShot => Self { staged_bytes: applied.staged_bytes, time: Duration::ZERO },
            Strategy::Global | Strategy::Pipelined => {
                Self { staged_bytes: 0, time: Duration::from_nanos(applied.backlog_ns) }
            }
        }
    }
}

/// How a round ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    /// From its begin to the destination's word.
    pub(super) duration: Duration,
    /// What waits at the destination.
    pub(super) backlog: Backlog,
    /// What was written meanwhile.
    pub(super) pending: Option<Pending>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_counted_once_by_experience_or_by_the_destinations_word() {
        let applied = RoundApplied { round: 3, staged_bytes: 1 << 30, apply_ns: 5, backlog_ns: 7_000 };
        let told = |strategy| Backlog::told(strategy, &applied);
        assert_eq!(told(Strategy::OneShot), Backlog { staged_bytes: 1 << 30, time: Duration::ZERO });
        let by_its_word = Backlog { staged_bytes: 0, time: Duration::from_micros(7) };
        assert_eq!([Strategy::Global, Strategy::Pipelined].map(told), [by_its_word; 2]);
    }
}
