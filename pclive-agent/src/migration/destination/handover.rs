//! The destination's side of the handover: what must be durable before a task is let go, and what comes after it.

use std::sync::Arc;
use std::time::Instant;

use pclive_proto::control::Role;
use pclive_proto::peer::destination_message::Message;
use pclive_proto::peer::{Running, Warning};
use tokio::task::JoinHandle;
use tracing::{Instrument, Span};

use super::engine::{Restored, Resumed};
use super::{Answers, Ended, LAST_WORD, Ran, Receiver, answer, late, refuse, tail};
use crate::agent::Agent;
use crate::error::{ErrorCode, MigrationError, chain};
use crate::fault::{self, Point};
use crate::hooks::{self, Hook};
use crate::host::UsageMeter;
use crate::journal::{self, Process, Record};
use crate::migration::report::{self, ns};
use crate::migration::{SharedLog, written};
use crate::recovery::{self, process};
use crate::registry::Entry;
use crate::tail::Fetcher;

/// Writes down in advance what must be in force before a task is let go.
pub(super) async fn stage_committing(
    log: &SharedLog,
    init_pid: i32,
    tail: Option<Process>,
    network_stays: bool,
) -> Result<(), MigrationError> {
    let init = process::identify(init_pid).ok_or_else(|| {
        MigrationError::new(ErrorCode::RuntimeFailed, "the init of the created container has ended")
    })?;
    let log = Arc::clone(log);
    written(move || {
        let mut log = journal::guard(&log);
        let phase = journal::Phase::Committing;
        let record = Record { init: Some(init), tail, network_stays, phase, ..log.record().clone() };
        log.stage(record)
    })
    .await
}

/// Starts the site's own part of the resume, beside everything else that has time.
fn after_resume(agent: &Arc<Agent>, log: &SharedLog) -> JoinHandle<Result<(), MigrationError>> {
    let agent = Arc::clone(agent);
    let record = journal::guard(log).record().clone();
    let hook = async move { hooks::run(&agent, &record, Hook::AfterResume).await };
    tokio::spawn(hook.instrument(Span::current()))
}

/// Waits for `after-resume`. What went wrong is a warning at both ends.
pub(super) async fn hook_ended(
    entry: &Entry,
    answers: &Answers,
    hook: JoinHandle<Result<(), MigrationError>>,
) {
    let ended = hook.await.map_err(|error| MigrationError::caused(ErrorCode::Internal, &error));
    if let Err(MigrationError { message, .. }) = ended.flatten() {
        entry.warn(&message);
        // A source that is gone hears of it by its own means.
        let _ = answers.send_timeout(answer(Message::Warning(Warning { message })), LAST_WORD).await;
    }
}

impl Receiver<'_> {
    /// Begins to put `Committing` in force, beside the restore: that it is, is looked at in [`Self::take_commit`].
    pub(super) fn write_committing(&mut self) {
        let log = Arc::clone(&self.log);
        self.committing = Some(tokio::task::spawn_blocking(move || journal::guard(&log).enact()));
    }

    /// On `Ok` the copy may be let go: that is durable, and the source has not been promised the contrary.
    pub(super) async fn take_commit(&mut self) -> Result<(), MigrationError> {
        if let Some(committing) = self.committing.take() {
            let done =
                committing.await.map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?;
            done.map_err(|error| MigrationError::caused(ErrorCode::JournalFailed, &error))?;
        }
        if journal::guard(&self.log).take_commit() {
            return Ok(());
        }
        let message = "COMMIT came after the source was promised that the container does not run here";
        Err(MigrationError::new(ErrorCode::Discarded, message))
    }

    /// The source has committed and the copy was not let go as it should: init tells whether it was at all. The
    /// source asks, and is told.
    pub(super) async fn broken(mut self, error: MigrationError) -> Result<Ran, Ended> {
        let error = error.at(Role::Destination, self.state.phase());
        let mut fetcher = self.fetcher.take();
        self.engine.release().await;
        let log = Arc::clone(&self.log);
        let runs =
            tokio::task::spawn_blocking(move || recovery::copy_runs(&journal::guard(&log).record().clone()));
        if runs.await.unwrap_or(false) {
            self.entry.warn(format!("the container runs, but not everything went well: {error}"));
            fetcher.iter_mut().for_each(Fetcher::go);
            let hook = after_resume(self.agent, &self.log);
            tail::write(&self.log, fetcher.as_ref(), &self.entry).await;
            return Ok(Ran { report: None, fetcher, hook });
        }
        refuse(&self.answers, &error).await;
        Err(Ended::Discarded(error))
    }

    /// It runs: the source is told first, the rest has time.
    pub(super) async fn running(
        mut self,
        resumed: Resumed,
        restored: Restored,
        received_at: Instant,
        meter: &UsageMeter,
    ) -> Ran {
        self.fetcher.iter_mut().for_each(Fetcher::go);
        fault::reached(Point::DestinationResumed);
        let mut ledger = restored.ledger;
        ledger.resume_ns = ns(resumed.elapsed);
        ledger.restore_ns = ns(resumed.at.saturating_duration_since(received_at));
        let used = meter.used();
        let running = Running {
            ledger: Some(ledger),
            init_pid: self.init_pid,
            cpu_ns: used.cpu_ns,
            peak_memory_bytes: used.peak_memory_bytes,
            staging_peak_bytes: restored.staging_peak_bytes,
        };
        if self.say(Message::Running(running)).await.is_err() {
            self.entry.warn("the source could not be told that the container runs here");
        }
        fault::reached(Point::DestinationSaid);
        let hook = after_resume(self.agent, &self.log);
        tail::write(&self.log, self.fetcher.as_ref(), &self.entry).await;
        tokio::spawn(late::take(self.incoming, resumed.injector).instrument(Span::current()));
        let settled = self.engine.settled().await;
        resumed.warnings.into_iter().chain(settled).for_each(|warning| self.entry.warn(warning));
        tokio::spawn(async move {
            if let Err(error) = resumed.announcer.repeat().await {
                tracing::warn!("cannot announce the container again: {}", chain(&error));
            }
        });
        let report = report::received(self.rounds, &running, self.entry.began().elapsed());
        Ran { report: Some(report), fetcher: self.fetcher, hook }
    }
}
