//! The migrations that this agent knows: running ones, and a bounded number of ended ones.
//!
//! Invariants: one live migration a container, in whichever role; never more live ones than allowed; none begins
//! once the agent is going down. A migration whose commit is unknown stays live: its container is still stopped.
//!
//! Watching replays every event and then follows; an event is never lost or repeated (progress may be skipped).

mod entry;
mod watcher;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pclive_proto::control;
use tokio::sync::watch;

pub use entry::{Description, Entry, Past};
pub use watcher::Watcher;

use crate::error::{ErrorCode, MigrationError};

/// All migrations. Cheap to share; every method is quick.
#[derive(Debug)]
pub struct Registry {
    inner: Mutex<Inner>,
    /// Count of live migrations, for whoever waits for the last one to end.
    live: watch::Sender<u32>,
    max_live: u32,
    history: usize,
}

#[derive(Debug, Default)]
struct Inner {
    /// Oldest first.
    entries: VecDeque<Arc<Entry>>,
    closed: bool,
}

impl Registry {
    /// An empty registry for at most `max_live` migrations at once that remembers `history` ended ones.
    pub fn new(max_live: u32, history: u32) -> Self {
        Self {
            inner: Mutex::default(),
            live: watch::Sender::new(0),
            max_live,
            history: usize::try_from(history).unwrap_or(usize::MAX),
        }
    }

    /// Registers a migration, or says why it may not begin. It is live until [`Entry::finish`] or
    /// [`Entry::fail`].
    pub fn begin(&self, description: Description) -> Result<Arc<Entry>, MigrationError> {
        let mut inner = self.lock();
        if inner.closed {
            let message = "cannot begin a migration: this agent is going down";
            return Err(MigrationError::new(ErrorCode::ShuttingDown, message));
        }
        self.refuse_second(&inner, &description)?;
        let live = inner.entries.iter().filter(|entry| entry.is_live()).count();
        if live >= self.max_live as usize {
            let message = format!("cannot begin a migration: {live} are running, which is the limit here");
            return Err(MigrationError::new(ErrorCode::TooMany, message));
        }
        let entry = Arc::new(Entry::new(description));
        inner.entries.push_back(Arc::clone(&entry));
        Self::forget_oldest(&mut inner, self.history);
        self.publish(&inner);
        Ok(entry)
    }

    /// Lists a migration that an earlier agent began. One in doubt is live: its container is taken.
    pub fn restore(
        &self,
        description: Description,
        started_ms: u64,
        ended_ms: u64,
        past: Past,
    ) -> Arc<Entry> {
        let entry = Arc::new(Entry::past(description, started_ms, ended_ms, past));
        let mut inner = self.lock();
        inner.entries.push_back(Arc::clone(&entry));
        Self::forget_oldest(&mut inner, self.history);
        self.publish(&inner);
        entry
    }

    /// The migration that a client has asked for under this id of its own.
    pub fn of_request(&self, request_id: &str) -> Option<Arc<Entry>> {
        let inner = self.lock();
        inner.entries.iter().find(|entry| !request_id.is_empty() && entry.request_id() == request_id).cloned()
    }

    fn refuse_second(&self, inner: &Inner, new: &Description) -> Result<(), MigrationError> {
        if inner.entries.iter().any(|entry| entry.id() == new.id) {
            let message = format!("cannot begin migration {}: this agent has one of the same id", new.id);
            return Err(MigrationError::new(ErrorCode::Busy, message)
                .hint("source and destination must be two agents"));
        }
        match inner.entries.iter().find(|entry| entry.is_live() && entry.container() == new.container) {
            None => Ok(()),
            Some(other) => Err(MigrationError::new(
                ErrorCode::Busy,
                format!(
                    "cannot migrate container {}: it is already being moved by migration {}",
                    new.container,
                    other.id()
                ),
            )),
        }
    }

    fn forget_oldest(inner: &mut Inner, history: usize) {
        let mut ended = inner.entries.iter().filter(|entry| !entry.is_live()).count();
        inner.entries.retain(|entry| {
            let forget = ended > history && !entry.is_live();
            ended -= usize::from(forget);
            !forget
        });
    }

    /// A migration by its id.
    pub fn get(&self, id: &str) -> Result<Arc<Entry>, MigrationError> {
        self.lock().entries.iter().find(|entry| entry.id() == id).cloned().ok_or_else(|| {
            MigrationError::new(ErrorCode::MigrationNotFound, format!("cannot find migration {id:?}"))
        })
    }

    /// All migrations, newest first.
    pub fn list(&self) -> Vec<control::Migration> {
        self.lock().entries.iter().rev().map(|entry| entry.snapshot()).collect()
    }

    /// The live migration that moves a container.
    pub fn of_container(&self, container: &str) -> Option<String> {
        let inner = self.lock();
        let entry = inner.entries.iter().find(|entry| entry.is_live() && entry.container() == container)?;
        Some(entry.id().into())
    }

    /// How many migrations are live.
    pub fn live(&self) -> u32 {
        self.count(&self.lock())
    }

    /// To be called when a migration has ended: counts again and forgets what is too old.
    pub fn ended(&self) {
        let mut inner = self.lock();
        Self::forget_oldest(&mut inner, self.history);
        self.publish(&inner);
    }

    /// From now on nothing begins.
    pub fn close(&self) {
        self.lock().closed = true;
    }

    /// Asks every live migration to end.
    pub fn cancel_all(&self, why: &MigrationError) {
        for entry in &self.lock().entries {
            entry.cancel(why.clone());
        }
    }

    /// Waits until no migration runs, at most `patience`. True if none does; one whose commit is unknown is not
    /// waited for.
    pub async fn idle(&self, patience: Duration) -> bool {
        let mut live = self.live.subscribe();
        tokio::time::timeout(patience, live.wait_for(|count| *count == 0)).await.is_ok()
    }

    fn publish(&self, inner: &Inner) {
        let running = inner.entries.iter().filter(|entry| entry.is_running()).count();
        self.live.send_replace(u32::try_from(running).unwrap_or(u32::MAX));
    }

    fn count(&self, inner: &Inner) -> u32 {
        u32::try_from(inner.entries.iter().filter(|entry| entry.is_live()).count()).unwrap_or(u32::MAX)
    }

    /// A panic elsewhere leaves the list usable: every change to it is one step.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use pclive_proto::control::{Phase, Role};

    use super::*;

    fn description(id: &str, container: &str) -> Description {
        Description {
            id: id.into(),
            container: container.into(),
            runtime: "runc".into(),
            role: Role::Source,
            peer: "host-b".into(),
            strategy: control::Strategy::Global,
            request_id: String::new(),
        }
    }

    fn failure() -> MigrationError {
        MigrationError::new(ErrorCode::Cancelled, "cancelled")
    }

    #[test]
    fn a_container_has_one_migration_at_a_time() {
        let registry = Registry::new(4, 10);
        let first = registry.begin(description("1", "web")).unwrap();
        let refused = registry.begin(description("2", "web")).unwrap_err();
        assert_eq!(refused.code, ErrorCode::Busy);
        assert!(refused.message.contains("migration 1"));
        first.fail(failure());
        assert!(registry.begin(description("2", "web")).is_ok());
    }

    #[test]
    fn an_agent_does_not_take_its_own_migration() {
        let registry = Registry::new(4, 10);
        registry.begin(description("1", "web")).unwrap();
        assert_eq!(registry.begin(description("1", "other")).unwrap_err().code, ErrorCode::Busy);
    }

    #[test]
    fn no_more_migrations_than_allowed() {
        let registry = Registry::new(1, 10);
        registry.begin(description("1", "a")).unwrap();
        assert_eq!(registry.begin(description("2", "b")).unwrap_err().code, ErrorCode::TooMany);
    }

    #[test]
    fn nothing_begins_once_closed() {
        let registry = Registry::new(1, 10);
        registry.close();
        assert_eq!(registry.begin(description("1", "a")).unwrap_err().code, ErrorCode::ShuttingDown);
    }

    #[test]
    fn the_oldest_ended_migrations_are_forgotten_and_live_ones_are_not() {
        let registry = Registry::new(4, 2);
        registry.begin(description("live", "x")).unwrap();
        for id in ["1", "2", "3", "4"] {
            registry.begin(description(id, "web")).unwrap().fail(failure());
            registry.ended();
        }
        let ids: Vec<_> = registry.list().into_iter().map(|m| m.id).collect();
        assert_eq!(ids, ["4", "3", "live"]);
        assert_eq!(registry.get("1").unwrap_err().code, ErrorCode::MigrationNotFound);
    }

    #[test]
    fn a_container_of_unknown_state_stays_taken_but_is_not_waited_for() {
        let registry = Registry::new(4, 2);
        let entry = registry.begin(description("1", "web")).unwrap();
        entry.unknown(MigrationError::new(ErrorCode::CommitUnknown, "no answer"));
        registry.ended();
        assert_eq!(registry.of_container("web").as_deref(), Some("1"));
        assert_eq!(registry.begin(description("2", "web")).unwrap_err().code, ErrorCode::Busy);
        assert_eq!(*registry.live.borrow(), 0);
    }

    #[tokio::test]
    async fn idle_waits_for_the_last_migration() {
        let registry = Arc::new(Registry::new(4, 2));
        let entry = registry.begin(description("1", "web")).unwrap();
        assert!(!registry.idle(Duration::from_millis(1)).await);
        let waiter = tokio::spawn({
            let registry = Arc::clone(&registry);
            async move { registry.idle(Duration::from_secs(60)).await }
        });
        entry.fail(failure());
        registry.ended();
        assert!(waiter.await.unwrap());
    }

    #[tokio::test]
    async fn cancelling_all_reaches_every_live_migration() {
        let registry = Registry::new(4, 2);
        let entry = registry.begin(description("1", "web")).unwrap();
        registry.cancel_all(&MigrationError::new(ErrorCode::ShuttingDown, "going down"));
        assert_eq!(entry.cancelled().await.code, ErrorCode::ShuttingDown);
        assert_eq!(entry.snapshot().phase, i32::from(Phase::Negotiating));
    }
}
