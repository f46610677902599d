//! The source's side of a migration: check, agree, copy, stop, hand over.
//!
//! The driver moves messages; the engine works on a thread of its own ([`engine`]). The driver's promise: when
//! [`run`] has ended, the container either runs here as if nothing had happened, or is gone because it runs at the
//! destination, or stands still because that is not known.

mod engine;
mod opening;
mod outgoing;
mod pace;
mod relay;
mod rounds;
mod session;
mod sink;
mod state;

use std::sync::Arc;
use std::time::{Duration, Instant};

use pclive_proto::control::{self, Role};
use pclive_proto::peer::destination_message::Message as Answered;
use pclive_proto::peer::source_message::Message;
use pclive_proto::peer::{Accepted, Commit, Prepare, Ready, Running};
use pclive_proto::{PROTOCOL_VERSION, peer};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span};

use self::engine::{Dump, Engine, Moved, Opened, Plan, Stopped};
use self::opening::{connect, open};
use self::outgoing::Outgoing;
use self::rounds::{Backlog, Done, Rounds};
use self::session::{Expectation, Session, name_of};
use self::sink::Outlet;
use self::state::{Event, State};
use super::check;
use super::convergence::{Estimate, Limits, Obstacle, Pending, Policy, Reason};
use super::report::{self, Handover};
use super::{SharedLog, wire};
use crate::agent::{Agent, Located};
use crate::config::Strategy;
use crate::error::{ErrorCode, MigrationError, chain};
use crate::fault::{self, Point};
use crate::host::compatibility::{self, Demand};
use crate::host::{self, UsageMeter};
use crate::journal::{self, Ending};
use crate::link::PeerAddress;
use crate::network;
use crate::recovery::decision::Answer;
use crate::recovery::{doubt, inquiry};
use crate::registry::Entry;

/// How often a container is stopped before a migration is given up because of what should pass by itself.
const MOST_STOPS: u32 = 10;
/// How long the container runs on after a stop that was put off, times the number of stops so far.
const BREATH: Duration = Duration::from_millis(10);
/// Pauses between questions to a destination that does not confirm the commit.
const INQUIRY_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_INQUIRY_PAUSE: Duration = Duration::from_secs(2);

/// What is asked for.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) located: Located,
    pub(super) destination: PeerAddress,
    pub(super) strategy: Strategy,
    pub(super) limits: Limits,
    /// Most bytes a second while the container runs.
    pub(super) bandwidth: Option<u64>,
    pub(super) allow_clock_step_back: bool,
    /// Begun, with `Committing` staged.
    pub(super) log: SharedLog,
}

/// How a migration that did not end well ended.
enum Ended {
    /// It runs here.
    RolledBack(MigrationError),
    /// It stands still here; whether it runs there is not known.
    Unknown(MigrationError),
}

/// Migrates a container away, to whatever end, and records that end.
pub(super) async fn run(agent: Arc<Agent>, entry: Arc<Entry>, order: Order) {
    let span = info_span!("migration", id = entry.id(), container = entry.container(), role = "source");
    async {
        info!(to = %order.destination, "migration begins");
        fault::reached(Point::SourceBegun);
        let meter = UsageMeter::start();
        match drive(&agent, &entry, &order, &meter).await {
            Ok(report) => {
                match &report {
                    Some(report) => {
                        info!(downtime_ms = report.downtime_ns / 1_000_000, bytes = report.bytes, "migrated");
                    }
                    None => info!("migrated, as the destination says when asked"),
                }
                fault::reached(Point::SourceDestroyed);
                doubt::write_end(&agent, Arc::clone(&order.log), Ending::Done).await;
                entry.finish(report);
            }
            Err(Ended::RolledBack(error)) => {
                tracing::warn!(
                    code = error.code.as_str(),
                    "migration failed, the container runs on here: {error}"
                );
                doubt::write_end(&agent, Arc::clone(&order.log), doubt::failed(&error)).await;
                entry.fail(error);
            }
            Err(Ended::Unknown(error)) => {
                tracing::error!(
                    code = error.code.as_str(),
                    "the outcome is unknown, the container stands still here: {error}"
                );
                entry.unknown(error);
                doubt::pursue(&agent, &entry);
            }
        }
        agent.registry.ended();
    }
    .instrument(span)
    .await;
}

/// One migration with everything it has open.
struct Driver<'a> {
    agent: &'a Agent,
    order: &'a Order,
    session: Session,
    engine: Engine,
    outlet: Outlet,
    rounds: Rounds,
}

async fn drive(
    agent: &Agent,
    entry: &Arc<Entry>,
    order: &Order,
    meter: &UsageMeter,
) -> Result<Option<control::Report>, Ended> {
    let (stream, sender, last_word) = Outgoing::new(agent.config.migration.messages_in_flight_at_source());
    let abort = CancellationToken::new();
    let outlet = Outlet::new(sender.clone(), abort.clone());
    let plan = Plan {
        container: order.located.id.as_str().into(),
        pid: order.located.container.pid,
        options: check::source_options(agent),
        capture_bytes: agent.config.network.capture_bytes,
        outlet: outlet.clone(),
        bandwidth: order.bandwidth,
    };
    let began = Engine::start(plan);
    let (engine, opened) =
        began.map_err(|error| Ended::RolledBack(MigrationError::caused(ErrorCode::Internal, &error)))?;
    let opened = tokio::select! {
        opened = open(agent, order, opened) => opened,
        why = entry.cancelled() => Err(why),
    };
    let connected = match opened {
        Ok(opened) => connect(agent, order, stream).await.map(|incoming| (opened, incoming)),
        Err(error) => Err(error),
    };
    let (opened, (incoming, round_trip)) = match connected {
        Ok(connected) => connected,
        Err(error) => {
            engine.release().await;
            return Err(Ended::RolledBack(error));
        }
    };
    let session = Session::new(Arc::clone(entry), sender, last_word, incoming);
    let experience = agent.experience(&order.destination);
    let mut rounds = Rounds::new(order.limits, order.bandwidth, order.located.container.pid, experience);
    rounds.set_round_trip(round_trip);
    let driver = Driver { agent, order, session, engine, outlet, rounds };
    driver.migrate(&opened, meter, &abort).await
}

impl Driver<'_> {
    /// From `Prepare` to the end. Whatever happens, the container is in a definite state afterwards.
    async fn migrate(
        mut self,
        opened: &Opened,
        meter: &UsageMeter,
        abort: &CancellationToken,
    ) -> Result<Option<control::Report>, Ended> {
        let handed_over = self.hand_over(opened).await;
        match handed_over {
            Ok((handover, reason, running)) => {
                fault::reached(Point::SourceAnswered);
                self.clean_up().await;
                let told = std::mem::take(&mut self.rounds.told);
                let report = report::report(&handover, told, reason, &running, meter.used());
                if let Some(measured) = self.rounds.measured(&report) {
                    self.agent.learn(&self.order.destination, measured);
                }
                self.session.farewell().await;
                Ok(Some(report))
            }
            Err(error) if self.session.state() == State::Committed => self.inquire(error).await,
            Err(error) => {
                // The destination first, then the network and the tasks here.
                self.session.give_up(&error);
                abort.cancel();
                let (patience, session) = (self.agent.config.migration.stop_timeout(), self.session);
                if tokio::time::timeout(patience, self.engine.release()).await.is_err() {
                    tracing::error!("the engine does not let go of the container");
                }
                session.farewell().await;
                Err(Ended::RolledBack(error))
            }
        }
    }

    async fn hand_over(&mut self, opened: &Opened) -> Result<(Handover, Reason, Running), MigrationError> {
        self.negotiate(opened).instrument(info_span!("phase", name = "negotiating")).await?;
        let reason = self.rounds_in_time(opened.memory_bytes);
        let reason = reason.instrument(info_span!("phase", name = "pre-copy")).await?;
        info!(%reason, "rounds end");
        let (handover, running) =
            self.stop_and_commit().instrument(info_span!("phase", name = "handover")).await?;
        Ok((handover, reason, running))
    }

    async fn negotiate(&mut self, opened: &Opened) -> Result<(), MigrationError> {
        let facts = host::facts().map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?;
        let order = self.order;
        let prepare = Prepare {
            protocol_version: PROTOCOL_VERSION,
            migration_id: self.session.entry.id().into(),
            source_agent: self.agent.name.clone(),
            container_id: order.located.id.as_str().into(),
            runtime: order.located.runtime.name().into(),
            bundle: order.located.container.bundle.to_string_lossy().into_owned(),
            strategy: wire::peer_strategy(order.strategy).into(),
            memory_bytes: opened.memory_bytes,
            host: Some(facts.clone()),
            interfaces: network::encode(&opened.interfaces),
            allow_clock_step_back: order.allow_clock_step_back,
            restore_after: order.limits.restore_after,
        };
        let patience = self.agent.config.migration.prepare_timeout();
        self.session.send(Message::Prepare(prepare), patience).await?;
        match self.session.answer("accept the container", patience).await? {
            Answered::Accepted(accepted) => self.accepted(&facts, &accepted, opened.memory_bytes),
            other => Err(out_of_turn(&other)),
        }
    }

    fn accepted(
        &mut self,
        here: &peer::HostFacts,
        accepted: &Accepted,
        memory_bytes: u64,
    ) -> Result<(), MigrationError> {
        let there = accepted.host.clone().unwrap_or_default();
        // The destination has refused what it must; its memory is in use by now.
        let demand = Demand { memory_bytes: 0, allow_clock_step_back: self.order.allow_clock_step_back };
        for warning in compatibility::compare(here, &there, demand).into_result()? {
            self.session.entry.warn(warning);
        }
        info!(agent = accepted.agent_name, memory_bytes, "accepted");
        self.session.advance(Event::Accepted)
    }

    /// The rounds; a migration that is to be given up when it takes too long is, in the middle of one.
    async fn rounds_in_time(&mut self, memory_bytes: u64) -> Result<Reason, MigrationError> {
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
            if let Some(reason) = self.rounds.end(&self.session.entry)? {
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
        let moved = self.session.moving(self.engine.round(number), &expected).await?;
        let backlog = self.applied(number).await?;
        fault::reached(Point::SourceRound);
        self.ended(number, &moved, began.elapsed(), backlog).await
    }

    /// Waits until the destination has a round; what it has not put in place yet.
    async fn applied(&mut self, number: u32) -> Result<Backlog, MigrationError> {
        let patience = self.agent.config.migration.progress_timeout();
        match self.session.answer("put a round in place", patience).await? {
            Answered::RoundApplied(applied) if applied.round == number => {
                Ok(Backlog::told(self.order.strategy, &applied))
            }
            other => Err(out_of_turn(&other)),
        }
    }

    /// A round has ended, and the container runs: counts what it has written meanwhile.
    async fn ended(
        &mut self,
        number: u32,
        moved: &Moved,
        duration: Duration,
        backlog: Backlog,
    ) -> Result<Estimate, MigrationError> {
        let patience = self.agent.config.migration.progress_timeout();
        let counted = self.session.step(self.engine.pending(), patience).await?;
        let pending = counted.map(|pages| Pending { pages, age: moved.began.elapsed() });
        Ok(self.record(number, false, moved, Done { duration, backlog, pending }))
    }

    fn record(&mut self, number: u32, is_final: bool, moved: &Moved, done: Done) -> Estimate {
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

    /// Stop and final dump, until it is whole. The container runs in between.
    async fn stop(&mut self) -> Result<(u32, Stopped, Moved), MigrationError> {
        let migration = &self.agent.config.migration;
        // Freezing has its own deadline in the engine; this one is for an engine that does not keep it.
        let patience = migration.handover_timeout() + migration.stop_timeout();
        let mut stops = 0;
        loop {
            stops += 1;
            let throttle = self.rounds.take_throttle();
            let stopped = self.session.step(self.engine.freeze(throttle), patience).await?;
            self.session.advance(Event::Stopped)?;
            fault::reached(Point::SourceFrozen);
            let number = self.rounds.next();
            let Dump { moved, obstacles } = self.session.step(self.engine.dump(number), patience).await?;
            if obstacles.is_empty() {
                self.session.advance(Event::FinalHandedOver)?;
                fault::reached(Point::SourceDumped);
                return Ok((number, stopped, moved));
            }
            self.put_off(number, &moved).await?;
            let error = MigrationError::not_now(self.order.located.id.as_str(), stops, obstacles);
            if stops >= MOST_STOPS {
                return Err(error);
            }
            self.session.entry.warn(error.message);
            self.session.pause(BREATH * stops).await?;
        }
    }

    /// The container runs again: what was dumped is a round like any other.
    async fn put_off(&mut self, number: u32, moved: &Moved) -> Result<(), MigrationError> {
        self.session.advance(Event::PutOff(number))?;
        let backlog = self.applied(number).await?;
        self.ended(number, moved, moved.elapsed, backlog).await.map(drop)
    }

    /// Stop, final dump, and the two-phase handover.
    async fn stop_and_commit(&mut self) -> Result<(Handover, Running), MigrationError> {
        // Beside the stop, the dump and the restore: it must be durable before COMMIT is sent, and no sooner.
        let committing = self.write_committing();
        let (number, Stopped { began: stopped, elapsed: freeze }, moved) = self.stop().await?;
        let predicted = self.rounds.known().downtime;
        let dumped = Instant::now();
        self.ready().await?;
        let ready = Instant::now();
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
            commit: now - ready,
            running: now,
            predicted,
        };
        Ok((handover, running))
    }

    async fn ready(&mut self) -> Result<(), MigrationError> {
        let patience = self.agent.config.migration.handover_timeout();
        match self.session.answer("restore the container", patience).await? {
            Answered::Ready(Ready { .. }) => self.session.advance(Event::Ready),
            other => Err(out_of_turn(&other)),
        }
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
                journal::Phase::Begun | journal::Phase::Discarded | journal::Phase::Ended(_) => Err(
                    MigrationError::new(ErrorCode::Internal, "the journal had nothing written in advance"),
                ),
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
        self.session.advance(Event::Running)?;
        Ok(running)
    }

    /// It runs at the destination: nothing of it stays here, or it is told. The network goes last: frames still arrive.
    async fn clean_up(&mut self) {
        self.remove(self.engine.destroy()).await;
        let Located { id, runtime, .. } = &self.order.located;
        if let Err(error) = runtime.delete(id).await {
            let message =
                format!("the container runs at the destination, but is still listed here: {}", chain(&error));
            self.session.entry.warn(message);
        }
        self.remove(self.engine.retire()).await;
    }

    async fn remove(&self, removed: engine::Answer<()>) {
        if let Err(error) = removed.await.unwrap_or_else(|_| Err(session::thread_gone())) {
            self.session.entry.warn(format!("the container runs at the destination, but here: {error}"));
        }
    }

    /// COMMIT was sent and `Running` did not come: asks what became of it, for a while.
    async fn inquire(mut self, cause: MigrationError) -> Result<Option<control::Report>, Ended> {
        tracing::warn!("the commit is not confirmed, asking the destination: {cause}");
        let record = journal::guard(&self.order.log).record().clone();
        let deadline = Instant::now() + self.agent.config.migration.commit_grace();
        let mut pause = INQUIRY_PAUSE;
        let heard = loop {
            let heard = inquiry::ask(self.agent, &record).await;
            let settled = matches!(heard.answer, Answer::Runs | Answer::Discarded);
            if settled || Instant::now() + pause >= deadline {
                break heard;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_INQUIRY_PAUSE);
        };
        match heard.answer {
            Answer::Runs => {
                self.clean_up().await;
                Ok(None)
            }
            Answer::Discarded => {
                self.engine.let_go();
                self.engine.release().await;
                Err(Ended::RolledBack(cause))
            }
            Answer::Pending | Answer::Unknown | Answer::Silent => {
                Err(Ended::Unknown(self.outcome_unknown(&cause, &heard.words).await))
            }
        }
    }

    /// What an administrator has to know when no answer came after the commit.
    async fn outcome_unknown(self, cause: &MigrationError, heard: &str) -> MigrationError {
        let name = self.order.located.id.as_str();
        let message = format!(
            "COMMIT was sent for container {name} and the destination did not confirm that it runs: {}; asked again: {heard}",
            cause.message
        );
        let hint = format!(
            "the container stands still here and may run at {}, which is asked on; `pclivectl status {}` shows what is \
             known, `pclivectl resolve` decides without an answer (docs/RECOVERY.md)",
            self.order.destination,
            self.session.entry.id()
        );
        // The thread keeps the container stopped and its network silent, and ends.
        self.engine.release().await;
        MigrationError::new(ErrorCode::CommitUnknown, message)
            .hint(hint)
            .at(Role::Source, State::Unknown.phase())
    }
}

fn out_of_turn(message: &Answered) -> MigrationError {
    wire::bad(format!("{} out of turn", name_of(message)))
}
