//! The container runs at the destination and lacks pages: the original stands still here until they have been fetched.
//!
//! There is no deadline for them: nothing else may be done. But when nothing is heard of the destination for the grace of
//! the commit, the migration is in doubt like any other; pages can be fetched on.

use std::time::{Duration, Instant};

use pclive_proto::control;
use tracing::info;

use super::Driver;
use crate::error::{ErrorCode, MigrationError};
use crate::fault::{self, Point};
use crate::journal;
use crate::recovery::decision::Answer;
use crate::recovery::inquiry::{self, Question};
use crate::tail;

/// How often the destination is asked while it says nothing of its own.
const PAUSE: Duration = Duration::from_secs(1);

impl Driver<'_> {
    /// Waits until the destination has every page.
    pub(super) async fn tail_fetched(&self, pages: u64) -> Result<control::Tail, MigrationError> {
        info!(pages, "container runs at the destination, its last pages follow");
        fault::reached(Point::SourceTailBegun);
        let tail = self.agent.tails.of(self.session.entry.id());
        let grace = self.agent.config.migration.commit_grace();
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                biased;
                complete = tail.completed() => return Ok(tail::tail(&complete)),
                () = tokio::time::sleep(PAUSE) => {}
            }
            // Cheaper than a question.
            if tail.heard().is_some_and(|at| at.elapsed() < PAUSE) {
                heard = Instant::now();
                continue;
            }
            let record = journal::guard(&self.order.log).record().clone();
            let there = inquiry::ask(self.agent, &record, Question::Inquire).await;
            match there.answer {
                Answer::Runs => return Ok(tail.told().as_ref().map(tail::tail).unwrap_or_default()),
                Answer::Pending => heard = Instant::now(),
                Answer::Discarded => return Err(MigrationError::new(ErrorCode::Discarded, there.words)),
                Answer::Unknown | Answer::Silent if heard.elapsed() < grace => {}
                Answer::Unknown | Answer::Silent => {
                    let message = format!("the destination runs it and lacks pages: {}", there.words);
                    return Err(MigrationError::new(ErrorCode::Timeout, message));
                }
            }
        }
    }
}
