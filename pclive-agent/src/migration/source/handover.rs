//! The stop, the final dump and the two-phase handover: until COMMIT is sent the container can go on here, unchanged.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pclive_engine::capture::LastPages;
use pclive_proto::peer::destination_message::Message as Answered;
use pclive_proto::peer::source_message::Message;
use pclive_proto::peer::{Commit, Running};
use tokio::sync::oneshot;

use super::engine::{self, Dump, Moved, Stopped};
use super::rounds::{Backlog, Done};
use super::state::Event;
use super::{Driver, out_of_turn};
use crate::error::{ErrorCode, MigrationError};
use crate::fault::{self, Point};
use crate::hooks::{self, Hook};
use crate::journal;
use crate::migration::convergence::{Obstacle, Pending, Policy, Reason};
use crate::migration::report::{Handover, ns};
use crate::recovery::doubt;

/// How often a container is stopped before a migration is given up because of what should pass by itself.
const MOST_STOPS: u32 = 20;
/// How often pages are dropped before the stop, and how many are not worth another time.
const MOST_PREPARATIONS: u32 = 5;
const FEW_PAGES: u64 = 512;
/// How long the container runs on after a stop that was put off, times the number of stops so far, but not longer than
/// after so many.
const BREATH: Duration = Duration::from_millis(10);
const LONGEST_BREATH: u32 = 10;

impl Driver<'_> {
    /// Stop and final dump, until it is whole. The container runs in between.
    ///
    /// Beside it how many of the destination's messages had been waited for when it began.
    async fn stop(&mut self, last: LastPages) -> Result<(u32, Stopped, Moved, usize, u32), MigrationError> {
        let migration = &self.agent.config.migration;
        // Freezing has its own deadline in the engine; this one is for an engine that does not keep it.
        let patience = migration.handover_timeout() + migration.stop_timeout();
        let mut stops = 0;
        loop {
            stops += 1;
            let told = self.session.round_trips();
            let throttle = self.rounds.take_throttle();
            let stopped = self.session.step(self.engine.freeze(throttle), patience).await?;
            self.session.advance(Event::Stopped)?;
            fault::reached(Point::SourceFrozen);
            let number = self.rounds.next();
            let Dump { moved, obstacles, state_digest, places } =
                self.session.step(self.engine.dump(number, last), patience).await?;
            if obstacles.is_empty() {
                if let Some(digest) = state_digest {
                    self.session.entry.state_moved(digest);
                }
                self.session.advance(Event::FinalHandedOver)?;
                fault::reached(Point::SourceDumped);
                return Ok((number, stopped, moved, places, told));
            }
            self.put_off(number, &moved).await?;
            let error = MigrationError::not_now(self.order.located.id.as_str(), stops, obstacles);
            if stops >= MOST_STOPS {
                return Err(error);
            }
            self.session.entry.warn(error.message);
            self.session.pause(BREATH * stops.min(LONGEST_BREATH)).await?;
        }
    }

    /// The container runs again: what was dumped is a round like any other.
    async fn put_off(&mut self, number: u32, moved: &Moved) -> Result<(), MigrationError> {
        self.session.advance(Event::PutOff(number))?;
        let backlog = self.applied(number).await?;
        self.ended(number, moved, moved.elapsed, backlog).await.map(drop)
    }

    /// Stop, final dump, and the two-phase handover.
    pub(super) async fn stop_and_commit(
        &mut self,
        reason: Reason,
    ) -> Result<(Handover, Running), MigrationError> {
        self.before_freeze().await?;
        let last = last_pages(reason);
        if last == LastPages::Later {
            self.drop_outdated().await?;
        }
        // Beside the stop, the dump and the restore: it must be durable before COMMIT is sent, and no sooner.
        let committing = self.write_committing();
        let (number, stop, moved, places, told) = self.stop(last).await?;
        let Stopped { began: stopped, elapsed: freeze } = stop;
        self.stopped_ms = doubt::now_ms().saturating_sub(ns(stopped.elapsed()) / 1_000_000);
        // It was predicted for a stop in which every page is sent.
        let predicted = self.rounds.known().downtime.filter(|_| last == LastPages::Now);
        let dumped = Instant::now();
        // Beside the restore: the destination's own follows that.
        let own = self.order.verify.then(|| self.engine.contents());
        let theirs = self.ready(places).await?;
        let ready = Instant::now();
        if let Some(own) = own {
            self.verification = Some(self.compare(own, &theirs).await?);
        }
        let compared = Instant::now();
        fault::reached(Point::SourceOffered);
        let running = self.commit(committing).await?;
        let now = Instant::now();
        let (backlog, pending) = (Backlog::default(), Some(Pending::default()));
        let done = Done { duration: now - stopped, backlog, pending };
        self.record(number, true, &moved, done);
        let handover = Handover {
            began: self.session.entry.began(),
            stopped,
            freeze,
            dump: moved.elapsed,
            stats: moved.stats,
            until_ready: ready - dumped,
            comparison: compared - ready,
            commit: now - compared,
            running: now,
            predicted,
            round_trips: self.session.round_trips() - told,
        };
        Ok((handover, running))
    }

    /// The site's last word before the stop: the container runs meanwhile, and goes on if it fails.
    async fn before_freeze(&mut self) -> Result<(), MigrationError> {
        let record = journal::guard(&self.order.log).record().clone();
        self.session.beside(hooks::run(self.agent, &record, Hook::BeforeFreeze)).await
    }

    /// The pages that come later are dropped at the destination before the stop, as far as they are known by then: that
    /// takes as long as there are many, and the container runs. What it writes meanwhile is left for the stop.
    async fn drop_outdated(&mut self) -> Result<(), MigrationError> {
        let patience = self.agent.config.migration.progress_timeout();
        for _ in 0..MOST_PREPARATIONS {
            let pages = self.session.step(self.engine.outdated(), patience).await?;
            match self.session.answer("drop pages", patience).await? {
                Answered::Settled(_) => {}
                other => return Err(out_of_turn(&other)),
            }
            fault::reached(Point::SourceOutdatedDropped);
            if pages < FEW_PAGES {
                break;
            }
        }
        Ok(())
    }

    /// Puts `Committing` in force in the journal: from here on a successor of this agent asks the destination.
    fn write_committing(&self) -> engine::Answer<()> {
        let (written, answer) = oneshot::channel();
        let log = Arc::clone(&self.order.log);
        tokio::task::spawn_blocking(move || {
            let mut log = journal::guard(&log);
            let enacted =
                log.enact().map_err(|error| MigrationError::caused(ErrorCode::JournalFailed, &error));
            let enacted = enacted.and_then(|_| match log.record().phase {
                journal::Phase::Committing => Ok(()),
                journal::Phase::Begun
                | journal::Phase::Discarded
                | journal::Phase::Tail
                | journal::Phase::Torn
                | journal::Phase::Kept(_)
                | journal::Phase::Undoing(_)
                | journal::Phase::Withdrawn
                | journal::Phase::Ended(_) => Err(MigrationError::new(
                    ErrorCode::Internal,
                    "the journal had nothing written in advance",
                )),
            });
            // A driver that is gone has given up.
            let _ = written.send(enacted);
        });
        answer
    }

    /// The point of no return is the message that this sends.
    async fn commit(&mut self, committing: engine::Answer<()>) -> Result<Running, MigrationError> {
        let patience = self.agent.config.migration.handover_timeout();
        self.session.step(self.engine.hold(), patience).await?;
        self.session.step(committing, patience).await?;
        fault::reached(Point::SourceHeld);
        self.session.entry.begin_commit()?;
        self.session.send(Message::Commit(Commit {}), patience).await?;
        // ==> Nothing below may let the container go.
        self.engine.committed();
        self.session.advance(Event::CommitHandedOver)?;
        fault::reached(Point::SourceCommitSent);
        let running = match self.session.answer("say that the container runs", patience).await? {
            Answered::Running(running) => running,
            other => return Err(out_of_turn(&other)),
        };
        Ok(running)
    }
}

/// What the stop does with the last pages. A tail would win nothing where they are few.
fn last_pages(reason: Reason) -> LastPages {
    match reason {
        Reason::InSpiteOf(Obstacle::Floor, Policy::PostCopy) => LastPages::Now,
        Reason::InSpiteOf(_, Policy::PostCopy) => LastPages::Later,
        Reason::ShortEnough
        | Reason::InSpiteOf(_, Policy::StopAnyway | Policy::Throttle | Policy::Cancel) => LastPages::Now,
    }
}
