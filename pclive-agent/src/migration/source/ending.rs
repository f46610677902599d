//! After COMMIT: the container goes, or comes back, or stands still, as the destination says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pclive_proto::control::{self, Role};

use super::engine;
use super::session;
use super::state::State;
use super::{Driver, Ended};
use crate::agent::Located;
use crate::error::{ErrorCode, MigrationError, chain};
use crate::fault::{self, Point};
use crate::journal;
use crate::migration::written;
use crate::recovery::decision::Answer;
use crate::recovery::inquiry::{self, Question};
use crate::recovery::keep;

/// Pauses between questions to a destination that does not confirm the commit.
const INQUIRY_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_INQUIRY_PAUSE: Duration = Duration::from_secs(2);

impl Driver<'_> {
    /// It runs at the destination: nothing of it stays here but an original that is to be kept, or it is told. The network goes
    /// last: frames still arrive.
    pub(super) async fn clean_up(&mut self) {
        if self.order.keep_source_for_ms > 0 && self.keep().await {
            return;
        }
        self.remove(self.engine.destroy()).await;
        let Located { id, runtime, .. } = &self.order.located;
        if let Err(error) = runtime.delete(id).await {
            let message =
                format!("the container runs at the destination, but is still listed here: {}", chain(&error));
            self.session.entry.warn(message);
        }
        fault::reached(Point::SourceRuntimeForgot);
        self.remove(self.engine.retire()).await;
        fault::reached(Point::SourceRetired);
    }

    /// Leaves the original as it is for a while. False: that cannot be written down, and it goes.
    async fn keep(&mut self) -> bool {
        let (log, stopped_ms) = (Arc::clone(&self.order.log), self.stopped_ms);
        match written(move || keep::write(&log, stopped_ms)).await {
            Ok(kept) => {
                self.session.entry.keep(Some(keep::told(kept)));
                self.remove(self.engine.keep()).await;
                true
            }
            Err(error) => {
                self.session.entry.warn(format!("the original is not kept: {error}"));
                false
            }
        }
    }

    async fn remove(&self, removed: engine::Answer<()>) {
        if let Err(error) = removed.await.unwrap_or_else(|_| Err(session::thread_gone())) {
            self.session.entry.warn(format!("the container runs at the destination, but here: {error}"));
        }
    }

    /// COMMIT was sent and `Running` did not come: asks what became of it, for a while.
    pub(super) async fn inquire(mut self, cause: MigrationError) -> Result<Option<control::Report>, Ended> {
        tracing::warn!("the commit is not confirmed, asking the destination: {cause}");
        let record = journal::guard(&self.order.log).record().clone();
        let deadline = Instant::now() + self.agent.config.migration.commit_grace();
        let mut pause = INQUIRY_PAUSE;
        let heard = loop {
            let heard = inquiry::ask(self.agent, &record, Question::Inquire).await;
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
                self.agent.tails.close(&record.id);
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
