//! The rounds while the container runs: one after the other, until stopping is worth it or the policy ends them.

use std::time::{Duration, Instant};

use pclive_proto::peer::destination_message::Message as Answered;
use tracing::{Instrument, info, info_span};

use super::engine::Moved;
use super::rounds::{Backlog, Done};
use super::session::Expectation;
use super::state::Event;
use super::{Driver, out_of_turn};
use crate::error::MigrationError;
use crate::fault::{self, Point};
use crate::migration::convergence::{Estimate, Limits, Obstacle, Pending, Policy, Reason};
use crate::migration::report;

impl Driver<'_> {
    /// The rounds; a migration that is to be given up when it takes too long is, in the middle of one.
    pub(super) async fn rounds_in_time(&mut self, memory_bytes: u64) -> Result<Reason, MigrationError> {
        self.rounds.prepare()?;
        let Limits { policy, max_time, .. } = self.order.limits;
        let Some(max_time) = max_time.filter(|_| policy == Policy::Cancel) else {
            return self.pre_copy(memory_bytes).await;
        };
        let left = max_time.saturating_sub(self.session.entry.began().elapsed());
        let ended = tokio::time::timeout(left, self.pre_copy(memory_bytes)).await;
        ended.unwrap_or_else(|_| Err(self.rounds.given_up(Obstacle::MaxTime)))
    }

    /// Rounds until stopping is worth it, or the policy ends them.
    async fn pre_copy(&mut self, memory_bytes: u64) -> Result<Reason, MigrationError> {
        let mut expected = memory_bytes;
        loop {
            let number = self.rounds.next();
            let known = self.round(number, expected).instrument(info_span!("round", n = number)).await?;
            if let Some(reason) = self.rounds.end(&self.session.entry, &self.order.log).await? {
                return Ok(reason);
            }
            expected = known.dirty_pages.map_or(memory_bytes, |pages| pages.saturating_mul(4096));
        }
    }

    async fn round(&mut self, number: u32, total_bytes: u64) -> Result<Estimate, MigrationError> {
        self.session.advance(Event::RoundBegun(number))?;
        let began = Instant::now();
        let patience = self.agent.config.migration.progress_timeout();
        let expected = Expectation { round: number, total_bytes, counter: self.outlet.counter(), patience };
        let moved =
            self.session.moving(self.engine.round(number, self.rounds.bandwidth()), &expected).await?;
        let backlog = self.applied(number).await?;
        fault::reached(Point::SourceRound);
        self.ended(number, &moved, began.elapsed(), backlog).await
    }

    /// Waits until the destination has a round; what it has not put in place yet.
    pub(super) async fn applied(&mut self, number: u32) -> Result<Backlog, MigrationError> {
        let patience = self.agent.config.migration.progress_timeout();
        match self.session.answer("put a round in place", patience).await? {
            Answered::RoundApplied(applied) if applied.round == number => {
                Ok(Backlog::told(self.order.strategy, &applied))
            }
            other => Err(out_of_turn(&other)),
        }
    }

    /// A round has ended, and the container runs: counts what it has written meanwhile.
    pub(super) async fn ended(
        &mut self,
        number: u32,
        moved: &Moved,
        duration: Duration,
        backlog: Backlog,
    ) -> Result<Estimate, MigrationError> {
        let patience = self.agent.config.migration.progress_timeout();
        let counted = self.session.step(self.engine.pending(), patience).await?;
        fault::reached(Point::SourceCounted);
        let pending = counted.map(|pages| Pending { pages, age: moved.began.elapsed() });
        Ok(self.record(number, false, moved, Done { duration, backlog, pending }))
    }

    pub(super) fn record(&mut self, number: u32, is_final: bool, moved: &Moved, done: Done) -> Estimate {
        let known = self.rounds.add(moved, done, self.session.entry.began());
        let round = report::round(number, is_final, &moved.stats, (moved.bytes, done.duration), &known);
        info!(
            round = number,
            last = is_final,
            bytes = round.bytes,
            data_pages = round.data_pages,
            zero_pages = round.zero_pages,
            hole_pages = round.hole_pages,
            processes = moved.stats.processes,
            threads = moved.stats.threads,
            ms = round.duration_ns / 1_000_000,
            bytes_per_second = round.bytes_per_second,
            dirty_pages = round.dirty_pages,
            dirty_pages_per_second = known.dirty_rate,
            predicted_downtime_ms = round.predicted_downtime_ns / 1_000_000,
            "round"
        );
        self.session.entry.round(round);
        self.rounds.told.push(round);
        known
    }
}
