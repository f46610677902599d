//! The source's side of a migration: check, agree, copy, stop, hand over.
//!
//! The driver moves messages; the engine works on a thread of its own ([`engine`]). The driver's promise: when
//! [`run`] has ended, the container either runs here as if nothing had happened, or is gone because it runs at the
//! destination, or stands still because that is not known.

mod answers;
mod ending;
mod engine;
mod handover;
mod lines;
mod opening;
mod pace;
mod pre_copy;
mod relay;
mod rounds;
mod session;
mod sink;
mod state;
mod tail;
mod verification;

use std::sync::Arc;

use pclive_engine::capture::{Connections, FilesAhead};
use pclive_proto::control;
use pclive_proto::peer::destination_message::Message as Answered;
use pclive_proto::peer::source_message::Message;
use pclive_proto::peer::{Accepted, Prepare, Running};
use pclive_proto::{PROTOCOL_VERSION, peer};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span};
use uuid::Uuid;

pub(crate) use self::answers::take_apart_answer;
use self::engine::{Engine, Opened, Plan};
use self::lines::Lines;
use self::opening::{connect, open};
use self::rounds::Rounds;
use self::session::{Session, name_of};
use self::sink::Outlet;
use self::state::{Event, State};
use super::check;
use super::convergence::{Limits, Reason};
use super::report::{self, Handover};
use super::{SharedLog, conclude, wire, written};
use crate::agent::{Agent, Located};
use crate::config::{Compression, Strategy};
use crate::conversation;
use crate::error::{ErrorCode, MigrationError, chain, printable_name};
use crate::fault::{self, Point};
use crate::host::compatibility::{self, Demand};
use crate::host::{self, UsageMeter};
use crate::journal::{self, Ending};
use crate::link::{Pacing, PeerAddress};
use crate::migration::compression::Packer;
use crate::network;
use crate::recovery::{doubt, keep, process};
use crate::registry::Entry;

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
    /// Who has it may fetch the last pages; empty if they never come later.
    pub(super) tail_token: String,
    /// Connections that the pages spread over.
    pub(super) streams: u32,
    /// Memory is compared before the commit.
    pub(super) verify: bool,
    /// Connections that leave the container end.
    pub(super) close_connections: bool,
    /// How long the original is kept once the copy runs, milliseconds; 0: not at all.
    pub(super) keep_source_for_ms: u64,
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
        let waited = turn(&entry, &order).await;
        info!(to = %order.destination, "migration begins");
        fault::reached(Point::SourceBegun);
        let meter = UsageMeter::start();
        let driven = match waited {
            Ok(()) => drive(&agent, &entry, &order, &meter).await,
            Err(error) => Err(Ended::RolledBack(error)),
        };
        match driven {
            Ok(report) => {
                match &report {
                    Some(report) => {
                        info!(downtime_ms = report.downtime_ns / 1_000_000, bytes = report.bytes, "migrated");
                    }
                    None => info!("migrated, as the destination says when asked"),
                }
                let kept = keep::of(&order.log);
                if kept.is_none() {
                    fault::reached(Point::SourceDestroyed);
                    conclude(&agent, &entry, &order.log, Ending::Done).await;
                }
                entry.finish(report);
                // Nobody decides about it before.
                if let Some(kept) = kept {
                    keep::watch(&agent, &entry, kept);
                }
            }
            Err(Ended::RolledBack(error)) => {
                tracing::warn!(
                    code = error.code.as_str(),
                    "migration failed, the container runs on here: {error}"
                );
                conclude(&agent, &entry, &order.log, doubt::failed(&error)).await;
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
        agent.tails.forget(entry.id());
    }
    .instrument(span)
    .await;
}

/// Waits until it is this migration's turn. The container may have ended meanwhile.
async fn turn(entry: &Entry, order: &Order) -> Result<(), MigrationError> {
    tokio::select! {
        biased;
        why = entry.cancelled() => return Err(why),
        () = entry.turn() => {}
    }
    let init = journal::guard(&order.log).record().init;
    if init.is_some_and(process::is_there) {
        return Ok(());
    }
    let message = format!("cannot migrate container {}: its init has ended", order.located.id);
    Err(MigrationError::new(ErrorCode::ContainerNotRunning, message))
}

/// One migration with everything it has open.
struct Driver<'a> {
    agent: &'a Agent,
    order: &'a Order,
    session: Session,
    lines: Arc<Lines>,
    /// Who has it may join the conversation.
    token: String,
    engine: Engine,
    outlet: Outlet,
    rounds: Rounds,
    /// Populated memory of the container when it was opened, bytes.
    memory_bytes: u64,
    /// What came after the copy ran.
    tail: Option<control::Tail>,
    /// What was compared before the commit.
    verification: Option<control::Verification>,
    /// When the container was stopped for good: Unix time, milliseconds; 0: not yet.
    stopped_ms: u64,
}

async fn drive(
    agent: &Arc<Agent>,
    entry: &Arc<Entry>,
    order: &Order,
    meter: &UsageMeter,
) -> Result<Option<control::Report>, Ended> {
    let (mouth, ears) = conversation::begin(agent.config.migration.conversation_limits());
    let abort = CancellationToken::new();
    let packer = Packer::new(agent.config.migration.compression == Compression::Auto);
    let packer =
        packer.map_err(|error| Ended::RolledBack(MigrationError::caused(ErrorCode::Internal, &error)))?;
    let pacing = Pacing::default();
    let outlet = Outlet::new(mouth.clone(), abort.clone(), packer, pacing.clone());
    let mut options = check::source_options(agent);
    if order.strategy == Strategy::OneShot {
        // Nothing is opened before the stop.
        options.ahead = FilesAhead::NOTHING;
    }
    if order.close_connections {
        options.connections = Connections::Close;
    }
    // Nobody at the destination could make anything of them.
    let capture_bytes = if order.close_connections { 0 } else { agent.config.network.capture_bytes };
    let plan = Plan {
        container: order.located.id.as_str().into(),
        pid: order.located.container.pid,
        options,
        capture_bytes,
        outlet: outlet.clone(),
    };
    let began = Engine::start(plan);
    let (engine, opened) =
        began.map_err(|error| Ended::RolledBack(MigrationError::caused(ErrorCode::Internal, &error)))?;
    let token = Uuid::new_v4().to_string();
    let lines = Lines::new(agent, &order.destination, entry.id(), &token, ears.carrier(), &pacing);
    let begin = async {
        let opened = open(agent, order, opened).await?;
        fault::reached(Point::SourceOpened);
        let round_trip = connect(agent, &lines).await?;
        fault::reached(Point::SourceConnected);
        Ok((opened, round_trip))
    };
    let connected = tokio::select! {
        connected = begin => connected,
        why = entry.cancelled() => Err(why),
    };
    let (opened, round_trip) = match connected {
        Ok(connected) => connected,
        Err(error) => {
            engine.release().await;
            return Err(Ended::RolledBack(error));
        }
    };
    opened.unmoved.iter().for_each(|what| entry.warn(what.clone()));
    let session = Session::new(Arc::clone(entry), mouth, ears, agent.config.migration.reconnect_timeout());
    let experience = agent.experience(&order.destination);
    let mut rounds = Rounds::new(order.limits, order.bandwidth, order.located.container.pid, experience);
    rounds.set_round_trip(round_trip);
    let driver = Driver {
        agent,
        order,
        session,
        lines,
        token,
        engine,
        outlet,
        rounds,
        memory_bytes: opened.memory_bytes,
        tail: None,
        verification: None,
        stopped_ms: 0,
    };
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
                let tail = self.tail.take();
                let told = std::mem::take(&mut self.rounds.told);
                let mut report = report::report(&handover, told, reason, &running, meter.used());
                (report.tail, report.verification) = (tail, self.verification);
                report.kept = self.session.entry.kept();
                if let Some(measured) = self.rounds.measured(&report) {
                    self.agent.learn(&self.order.destination, measured);
                }
                self.session.farewell().await;
                Ok(Some(report))
            }
            Err(error) if self.session.state() == State::Committed => self.inquire(error).await,
            Err(error) => {
                // The destination first, then the network and the tasks here. What it is told waits for nothing.
                self.outlet.hurry();
                self.session.give_up(&error);
                fault::reached(Point::SourceGivingUp);
                abort.cancel();
                let (patience, session) = (self.agent.config.migration.stop_timeout(), self.session);
                if tokio::time::timeout(patience, self.engine.release()).await.is_err() {
                    tracing::error!("the engine does not let go of the container");
                }
                fault::reached(Point::SourceGaveUp);
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
            self.stop_and_commit(reason).instrument(info_span!("phase", name = "handover")).await?;
        if handover.stats.later_pages > 0 {
            let tail = self.tail_fetched(handover.stats.later_pages);
            self.tail = Some(tail.instrument(info_span!("phase", name = "tail")).await?);
        }
        self.session.advance(Event::Running)?;
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
            tail_token: order.tail_token.clone(),
            conversation_token: self.token.clone(),
            verify: order.verify,
            close_connections: order.close_connections,
            keep_source_for_ms: order.keep_source_for_ms,
        };
        let patience = self.agent.config.migration.prepare_timeout();
        self.session.send(Message::Prepare(prepare), patience).await?;
        fault::reached(Point::SourcePrepareSent);
        match self.session.answer("accept the container", patience).await? {
            Answered::Accepted(accepted) => self.accepted(&facts, &accepted, opened.memory_bytes).await,
            other => Err(out_of_turn(&other)),
        }
    }

    /// The copy lives with other addresses: a successor must know, before the commit and after it.
    async fn note_that_the_network_stays(&self) -> Result<(), MigrationError> {
        let log = Arc::clone(&self.order.log);
        written(move || {
            let mut log = journal::guard(&log);
            let record = journal::Record { network_stays: true, ..log.record().clone() };
            log.put(record.clone())?;
            log.stage(journal::Record { phase: journal::Phase::Committing, ..record })
        })
        .await
    }

    async fn accepted(
        &mut self,
        here: &peer::HostFacts,
        accepted: &Accepted,
        memory_bytes: u64,
    ) -> Result<(), MigrationError> {
        let there = wire::facts(accepted.host.clone().unwrap_or_default());
        // The destination has refused what it must; its memory is in use by now.
        let demand = Demand { memory_bytes: 0, allow_clock_step_back: self.order.allow_clock_step_back };
        for warning in compatibility::compare(here, &there, demand).into_result()? {
            self.session.entry.warn(warning);
        }
        info!(agent = printable_name(&accepted.agent_name), memory_bytes, "accepted");
        if self.order.close_connections {
            let there = network::decode(&accepted.interfaces)
                .map_err(|error| wire::bad(format!("a network that cannot be: {}", chain(&error))))?;
            let there =
                there.iter().flat_map(|interface| &interface.addresses).map(|given| given.ip).collect();
            let patience = self.agent.config.migration.prepare_timeout();
            if self.session.step(self.engine.elsewhere(there), patience).await? {
                self.note_that_the_network_stays().await?;
            }
        }
        self.lines.widen(self.order.streams);
        self.session.advance(Event::Accepted)?;
        fault::reached(Point::SourceNegotiated);
        Ok(())
    }
}

fn out_of_turn(message: &Answered) -> MigrationError {
    wire::bad(format!("{} out of turn", name_of(message)))
}
