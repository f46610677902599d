//! Following a migration: every event so far, then each new one.

use std::collections::VecDeque;
use std::sync::Arc;

use pclive_proto::control::Event;
use tokio::sync::watch;

use super::entry::{Entry, News};

/// Follows the events of one migration. A slow watcher loses progress events only.
#[derive(Debug)]
pub struct Watcher {
    entry: Arc<Entry>,
    version: watch::Receiver<u64>,
    /// Index of the first event that was not taken yet.
    next: usize,
    /// Count of the progress events, as of the last look.
    progress: u64,
    queue: VecDeque<Event>,
}

impl Watcher {
    pub(super) fn new(entry: Arc<Entry>) -> Self {
        let version = entry.changes();
        Self { entry, version, next: 0, progress: 0, queue: VecDeque::new() }
    }

    /// The next event; `None` after the last one.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            if self.fetch() {
                continue;
            }
            self.version.changed().await.ok()?;
        }
    }

    /// Takes what is new. False: nothing yet. An ended migration with nothing new closes the watcher.
    fn fetch(&mut self) -> bool {
        self.version.borrow_and_update();
        let News { events, progress, ended } = self.entry.news(self.next);
        let seen_all = events.is_empty();
        self.next += events.len();
        self.queue.extend(events);
        if !ended && self.progress != progress.0 {
            self.queue.extend(progress.1);
        }
        self.progress = progress.0;
        if ended && seen_all {
            self.version = watch::Sender::new(0).subscribe();
        }
        !self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use pclive_proto::control::{self, Phase, event};

    use super::super::entry_tests::example;
    use super::*;
    use crate::error::{ErrorCode, MigrationError};

    async fn drain(mut watcher: Watcher) -> Vec<&'static str> {
        let mut kinds = Vec::new();
        while let Some(event) = watcher.next().await {
            kinds.push(match event.event.unwrap() {
                event::Event::Phase(_) => "phase",
                event::Event::Round(_) => "round",
                event::Event::Progress(_) => "progress",
                event::Event::Warning(_) => "warning",
                event::Event::PolicyApplied(_) => "policy",
                event::Event::Done(_) => "done",
                event::Event::Failed(_) => "failed",
            });
        }
        kinds
    }

    #[tokio::test]
    async fn a_late_watcher_gets_every_event_and_then_the_end() {
        let entry = example();
        entry.phase(Phase::PreCopy);
        entry.progress(control::Progress::default());
        entry.round(control::Round::default());
        entry.warn("look out");
        entry.finish(Some(control::Report::default()));
        let expected = ["phase", "phase", "round", "warning", "phase", "done"];
        assert_eq!(drain(entry.watch()).await, expected);
        assert_eq!(drain(entry.watch()).await, expected);
    }

    #[tokio::test]
    async fn an_early_watcher_gets_each_event_once_as_it_happens() {
        let entry = example();
        let mut watcher = entry.watch();
        assert!(matches!(watcher.next().await.unwrap().event, Some(event::Event::Phase(_))));
        entry.progress(control::Progress { round: 3, ..Default::default() });
        assert!(
            matches!(watcher.next().await.unwrap().event, Some(event::Event::Progress(p)) if p.round == 3)
        );
        let rest = tokio::spawn(drain(watcher));
        entry.fail(MigrationError::new(ErrorCode::Cancelled, "x"));
        assert_eq!(rest.await.unwrap(), ["phase", "failed"]);
    }

    #[tokio::test]
    async fn an_unknown_outcome_ends_the_events_with_phase_unknown() {
        let entry = example();
        entry.phase(Phase::Committed);
        entry.unknown(MigrationError::new(ErrorCode::CommitUnknown, "x"));
        assert_eq!(entry.snapshot().error.unwrap().phase(), Phase::Unknown);
        assert_eq!(drain(entry.watch()).await.last(), Some(&"failed"));
    }

    #[tokio::test]
    async fn an_end_that_is_learnt_later_is_all_that_is_told() {
        let entry = example();
        entry.phase(Phase::Committed);
        entry.unknown(MigrationError::new(ErrorCode::CommitUnknown, "x"));
        entry.doubt(control::Doubt { questions: 3, ..Default::default() });
        assert_eq!(entry.snapshot().doubt.unwrap().questions, 3);
        entry.finish(None);
        assert_eq!(drain(entry.watch()).await, ["phase", "phase", "phase", "done"]);
        assert_eq!((entry.snapshot().phase(), entry.snapshot().doubt), (Phase::Done, None));
        assert!(entry.snapshot().error.is_none());
    }
}
