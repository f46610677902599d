//! One migration as others see it: its phase, its rounds, how it ended, and every event on the way.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Instant, SystemTime};

use pclive_proto::control::{self, Event, Phase, Role, event};
use tokio::sync::watch;

use super::watcher::Watcher;
use crate::error::{ErrorCode, MigrationError};
use crate::journal::Asker;

/// Most warnings that are kept; the rest are logged only.
pub(super) const MAX_WARNINGS: usize = 100;

/// What is known of a migration when it begins.
#[derive(Debug, Clone)]
pub struct Description {
    /// The same at both ends.
    pub id: String,
    /// Name at the runtime.
    pub container: String,
    /// Configured name of the runtime.
    pub runtime: String,
    /// This end.
    pub role: Role,
    /// The other end, as it was named or as it named itself.
    pub peer: String,
    /// How memory gets to its place.
    pub strategy: control::Strategy,
    /// The client's own name for it; empty when it gave none.
    pub request_id: String,
}

/// What a migration that an earlier agent began has come to.
#[derive(Debug, Clone)]
pub enum Past {
    /// It runs at the destination.
    Done,
    /// It does not.
    Failed(control::Error),
    /// It is not known yet.
    InDoubt(control::Error),
}

/// A migration.
#[derive(Debug)]
pub struct Entry {
    description: Description,
    began: Instant,
    began_at: SystemTime,
    record: Mutex<Record>,
    /// Grows with every change of the record; watchers wait on it.
    version: watch::Sender<u64>,
    /// Set once someone wants the end.
    cancel: watch::Sender<Option<MigrationError>>,
    /// True once it is its turn.
    turn: watch::Sender<bool>,
    /// When its turn came.
    turn_at: OnceLock<Instant>,
    /// Held by whoever decides about a migration in doubt.
    pub(crate) deciding: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Record {
    phase: Phase,
    /// Everything but progress, in order. Bounded by phases, rounds and `MAX_WARNINGS`.
    events: Vec<Event>,
    warnings: usize,
    rounds: Vec<control::Round>,
    /// The newest, and how many there were.
    progress: (u64, Option<Event>),
    /// Digest of the final state that was sent, or has come.
    state_digest: Option<u64>,
    report: Option<control::Report>,
    error: Option<control::Error>,
    ended_at: Option<SystemTime>,
    /// Commit is sent, or about to be: it is too late to cancel.
    committing: bool,
    /// What is known while it is in doubt.
    doubt: Option<control::Doubt>,
    /// Who cancelled it, or resolved it, or undid it.
    decided_by: Option<Asker>,
    /// While its original is kept.
    kept: Option<control::Kept>,
    /// Its container is not to be moved.
    reserved: bool,
}

/// What a watcher has not seen.
#[derive(Debug)]
pub(super) struct News {
    pub(super) events: Vec<Event>,
    /// The newest, and how many there were.
    pub(super) progress: (u64, Option<Event>),
    pub(super) ended: bool,
}

impl Entry {
    pub(super) fn new(description: Description) -> Self {
        Self::at(description, SystemTime::now())
    }

    /// It is its turn: from here on it counts as running.
    pub(super) fn admit(&self) {
        self.turn_at.get_or_init(Instant::now);
        self.phase(Phase::Negotiating);
        self.turn.send_replace(true);
    }

    /// It has to wait for its turn.
    pub(super) fn queue(&self) {
        self.phase(Phase::Queued);
    }

    /// Whether its turn has come.
    pub(super) fn is_admitted(&self) -> bool {
        *self.turn.borrow()
    }

    /// Waits until it is its turn.
    pub async fn turn(&self) {
        // The sender is this entry's own: waiting ends by a turn only.
        let _ = self.turn.subscribe().wait_for(|turn| *turn).await;
    }

    /// A migration of an earlier agent, with its times (Unix, milliseconds).
    pub(super) fn past(description: Description, started_ms: u64, ended_ms: u64, past: Past) -> Self {
        let time = |ms| SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(ms);
        let entry = Self::at(description, time(started_ms));
        entry.admit();
        match past {
            Past::Done => entry.finish(None),
            Past::Failed(error) => entry.end_with(Phase::Failed, error),
            Past::InDoubt(error) => entry.end_with(Phase::Unknown, error),
        }
        if ended_ms > 0 {
            entry.lock().ended_at = Some(time(ended_ms));
        }
        entry
    }

    fn at(description: Description, began_at: SystemTime) -> Self {
        Self {
            description,
            began: Instant::now(),
            began_at,
            record: Mutex::new(Record {
                phase: Phase::Unspecified,
                events: Vec::new(),
                warnings: 0,
                rounds: Vec::new(),
                progress: (0, None),
                state_digest: None,
                report: None,
                error: None,
                ended_at: None,
                committing: false,
                doubt: None,
                decided_by: None,
                kept: None,
                reserved: false,
            }),
            version: watch::Sender::new(0),
            cancel: watch::Sender::new(None),
            turn: watch::Sender::new(false),
            turn_at: OnceLock::new(),
            deciding: tokio::sync::Mutex::new(()),
        }
    }

    /// The client's own name for it.
    pub(super) fn request_id(&self) -> &str {
        &self.description.request_id
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.description.id
    }

    /// Name of the container.
    pub fn container(&self) -> &str {
        &self.description.container
    }

    /// This end.
    pub fn role(&self) -> Role {
        self.description.role
    }

    /// When it began: the time in the queue does not count.
    pub fn began(&self) -> Instant {
        self.turn_at.get().copied().unwrap_or(self.began)
    }

    /// The phase it is in.
    pub fn current_phase(&self) -> Phase {
        self.lock().phase
    }

    /// True until it has ended well or been rolled back: its container is taken.
    pub(super) fn is_live(&self) -> bool {
        let record = self.lock();
        record.ended_at.is_none()
            || record.phase == Phase::Unknown
            || record.kept.is_some()
            || record.reserved
    }

    /// Its original is kept, or not any more. While it is, the container's name is taken here.
    pub fn keep(&self, kept: Option<control::Kept>) {
        self.change(|record| {
            record.kept = kept;
            // Reports tell what can be gone back to.
            record.report.iter_mut().for_each(|report| report.kept = kept);
            for event in &mut record.events {
                if let Some(event::Event::Done(control::Done { report: Some(report) })) = &mut event.event {
                    report.kept = kept;
                }
            }
            None
        });
    }

    /// What is kept of it.
    pub fn kept(&self) -> Option<control::Kept> {
        self.lock().kept
    }

    /// Its container is not to be moved, or may be again.
    pub(crate) fn reserve(&self, reserved: bool) {
        self.lock().reserved = reserved;
    }

    /// True while something is being done for it.
    pub(crate) fn is_running(&self) -> bool {
        self.lock().ended_at.is_none()
    }

    /// It has entered a phase.
    pub fn phase(&self, phase: Phase) {
        self.change(|record| {
            record.phase = phase;
            Some(event::Event::Phase(control::PhaseChanged { phase: phase.into() }))
        });
    }

    /// A round has ended.
    pub fn round(&self, round: control::Round) {
        self.change(|record| {
            record.rounds.push(round);
            record.progress.1 = None;
            Some(event::Event::Round(round))
        });
    }

    /// What its rounds so far came to on the wire.
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.lock().rounds.iter().map(|round| round.bytes).sum()
    }

    /// The final state with this digest was sent, or has come.
    pub(crate) fn state_moved(&self, digest: u64) {
        self.lock().state_digest = Some(digest);
    }

    /// The digest of the last final state that was sent, or has come.
    pub(crate) fn moved_state(&self) -> Option<u64> {
        self.lock().state_digest
    }

    /// Something that the administrator should know and that does not stop the migration.
    pub fn warn(&self, message: impl Into<String>) {
        let message = message.into();
        tracing::warn!("{message}");
        self.change(|record| {
            record.warnings += 1;
            (record.warnings <= MAX_WARNINGS).then_some(event::Event::Warning(control::Warning { message }))
        });
    }

    /// It does not converge, and this is done about it. Bounded by the steps of the policies.
    pub fn policy(&self, applied: control::PolicyApplied) {
        tracing::warn!("{}", applied.message);
        self.change(|_| Some(event::Event::PolicyApplied(applied)));
    }

    /// How far the present round is. Only the newest is kept.
    pub fn progress(&self, progress: control::Progress) {
        let at_ms = self.at_ms();
        let newest = &mut self.lock().progress;
        *newest = (newest.0 + 1, Some(Event { at_ms, event: Some(event::Event::Progress(progress)) }));
        self.version.send_modify(|version| *version += 1);
    }

    /// It ended well. Without a report: the end was learnt afterwards.
    pub fn finish(&self, report: Option<control::Report>) {
        self.forget_doubt();
        // Who sees that it is done finds its report.
        self.lock().report.clone_from(&report);
        self.phase(Phase::Done);
        self.change(|record| {
            record.ended_at = Some(SystemTime::now());
            Some(event::Event::Done(control::Done { report }))
        });
    }

    /// It was to be undone, and is not: it is done as it was before.
    pub fn done_after_all(&self) {
        let (phase, report) = {
            let record = self.lock();
            (record.phase, record.report.clone())
        };
        if phase == Phase::Unknown {
            self.finish(report);
        }
    }

    /// What is known of a migration in doubt.
    pub fn doubt(&self, doubt: control::Doubt) {
        self.change(|record| {
            record.doubt = Some(doubt);
            None
        });
    }

    /// An end is known: that it was not is told to nobody any more.
    fn forget_doubt(&self) {
        let mut record = self.lock();
        if record.phase == Phase::Unknown {
            let unknown = i32::from(Phase::Unknown);
            record.events.retain(|event| match &event.event {
                Some(event::Event::Failed(_)) => false,
                Some(event::Event::Phase(change)) => change.phase != unknown,
                _ => true,
            });
        }
        record.error = None;
        record.doubt = None;
    }

    /// It failed and was rolled back: the container runs at the source.
    pub fn fail(&self, error: MigrationError) {
        self.end(Phase::Failed, error);
    }

    /// COMMIT was sent and the outcome is not known.
    pub fn unknown(&self, error: MigrationError) {
        self.end(Phase::Unknown, error);
    }

    fn end(&self, phase: Phase, error: MigrationError) {
        let at = if phase == Phase::Unknown { Phase::Unknown } else { self.current_phase() };
        let at = if at == Phase::Unknown && phase != Phase::Unknown { Phase::Committed } else { at };
        self.end_with(phase, control::Error::from(&error.at(self.role(), at)));
    }

    fn end_with(&self, phase: Phase, error: control::Error) {
        self.forget_doubt();
        self.phase(phase);
        self.change(|record| {
            (record.kept, record.reserved) = (None, false);
            record.report.iter_mut().for_each(|report| report.kept = None);
            // One that was done is not any more.
            record.events.retain(|event| !matches!(event.event, Some(event::Event::Done(_))));
            record.error = Some(error.clone());
            record.ended_at = Some(SystemTime::now());
            Some(event::Event::Failed(error))
        });
    }

    /// Asks for the end, before the point of no return only; the driver notices at [`Self::cancelled`]. Returns
    /// false when it is too late.
    pub fn cancel(&self, why: MigrationError) -> bool {
        self.cancel_for(None, why)
    }

    /// The same; the first who asks is remembered.
    pub fn cancel_for(&self, asker: Option<Asker>, why: MigrationError) -> bool {
        let mut record = self.lock();
        if record.committing || record.ended_at.is_some() {
            return false;
        }
        self.cancel.send_if_modified(|reason| {
            let first = reason.is_none();
            if first {
                *reason = Some(why);
                record.decided_by = asker;
            }
            first
        });
        true
    }

    /// Someone has decided what becomes of it; `None`: it is not so after all.
    pub fn resolved_by(&self, asker: Option<Asker>) {
        self.lock().decided_by = asker;
    }

    /// Who cancelled it, or resolved it.
    pub fn decided_by(&self) -> Option<Asker> {
        self.lock().decided_by.clone()
    }

    /// Asks for the end also after the point of no return: the driver must not pass it any more.
    pub fn revoke(&self, why: MigrationError) {
        self.cancel.send_modify(|reason| *reason = Some(why));
    }

    /// Passes the point of no return: cancelling is refused from here on. `Err` when someone was faster.
    pub fn begin_commit(&self) -> Result<(), MigrationError> {
        let mut record = self.lock();
        if let Some(why) = self.cancel.borrow().clone() {
            return Err(why);
        }
        record.committing = true;
        Ok(())
    }

    /// Waits until someone asks for the end, and says why.
    pub async fn cancelled(&self) -> MigrationError {
        let mut cancel = self.cancel.subscribe();
        let reason = cancel.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.unwrap_or_else(|| MigrationError::new(ErrorCode::Cancelled, "the migration was cancelled"))
    }

    /// Everything about it.
    pub fn snapshot(&self) -> control::Migration {
        let record = self.lock();
        let description = &self.description;
        control::Migration {
            id: description.id.clone(),
            container: description.container.clone(),
            runtime: description.runtime.clone(),
            role: description.role.into(),
            peer: description.peer.clone(),
            strategy: description.strategy.into(),
            phase: record.phase.into(),
            started_ms: unix_ms(self.began_at),
            ended_ms: record.ended_at.map_or(0, unix_ms),
            rounds: record.rounds.clone(),
            report: record.report.clone(),
            error: record.error.clone(),
            doubt: record.doubt.clone(),
            kept: record.kept,
        }
    }

    /// All events so far, then each new one.
    pub fn watch(self: &Arc<Self>) -> Watcher {
        Watcher::new(Arc::clone(self))
    }

    /// Wakes whoever waits for changes.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// The events after the first `seen`.
    pub(super) fn news(&self, seen: usize) -> News {
        let record = self.lock();
        News {
            events: record.events.iter().skip(seen).cloned().collect(),
            progress: record.progress.clone(),
            ended: record.ended_at.is_some(),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Record) -> Option<event::Event>) {
        let at_ms = self.at_ms();
        let mut record = self.lock();
        if let Some(event) = change(&mut record) {
            record.events.push(Event { at_ms, event: Some(event) });
        }
        drop(record);
        self.version.send_modify(|version| *version += 1);
    }

    fn at_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
