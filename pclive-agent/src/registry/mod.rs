//! The migrations that this agent knows: running ones, and a bounded number of ended ones.
//!
//! Invariants: one live migration a container, in whichever role; never more running ones of a role than allowed, the
//! others wait in the order in which they came; none begins once the agent is going down. A migration whose commit is
//! unknown stays live: its container is still stopped.
//!
//! The roles are counted each for itself: two agents that send containers to each other would otherwise wait for each
//! other's turn.
//!
//! Watching replays every event and then follows; an event is never lost or repeated (progress may be skipped).

mod entry;
#[cfg(test)]
mod entry_tests;
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
    max_running: usize,
    history: usize,
}

/// Most migrations that may wait for their turn.
const MOST_QUEUED: usize = 1000;

#[derive(Debug, Default)]
struct Inner {
    /// Oldest first.
    entries: VecDeque<Arc<Entry>>,
    closed: bool,
}

impl Registry {
    /// An empty registry for at most `max_running` migrations of each role at once that remembers `history` ended ones.
    pub fn new(max_running: u32, history: u32) -> Self {
        Self {
            inner: Mutex::default(),
            live: watch::Sender::new(0),
            max_running: usize::try_from(max_running).unwrap_or(usize::MAX),
            history: usize::try_from(history).unwrap_or(usize::MAX),
        }
    }

    /// Registers a migration, or says why it may not begin. It may run once [`Entry::turn`] says so, and is live until
    /// [`Entry::finish`] or [`Entry::fail`].
    pub fn begin(&self, description: Description) -> Result<Arc<Entry>, MigrationError> {
        let mut inner = self.lock();
        if inner.closed {
            let message = "cannot begin a migration: this agent is going down";
            return Err(MigrationError::new(ErrorCode::ShuttingDown, message));
        }
        self.refuse_second(&inner, &description)?;
        let queued = inner.entries.iter().filter(|entry| waits(entry)).count();
        if queued >= MOST_QUEUED {
            let message =
                format!("cannot begin a migration: {queued} wait for their turn, which is the limit");
            return Err(MigrationError::new(ErrorCode::TooMany, message));
        }
        let entry = Arc::new(Entry::new(description));
        inner.entries.push_back(Arc::clone(&entry));
        self.promote(&inner);
        if !entry.is_admitted() {
            entry.queue();
        }
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
        Self::refuse_moving_in(inner.entries.iter(), &new.container)
    }

    /// Says which migration moves a container, if one does: what is left of it here goes when that has ended.
    pub fn refuse_moving(&self, container: &str) -> Result<(), MigrationError> {
        Self::refuse_moving_in(self.lock().entries.iter(), container)
    }

    /// From here on no migration of the container of `entry`, which has ended, begins, until [`Entry::reserve`] takes that
    /// back.
    pub(crate) fn reserve(&self, entry: &Entry) -> Result<(), MigrationError> {
        let inner = self.lock();
        let others = inner.entries.iter().filter(|other| other.id() != entry.id());
        Self::refuse_moving_in(others, entry.container())?;
        entry.reserve(true);
        Ok(())
    }

    fn refuse_moving_in<'a>(
        mut entries: impl Iterator<Item = &'a Arc<Entry>>,
        container: &str,
    ) -> Result<(), MigrationError> {
        let Some(other) = entries.find(|entry| entry.is_live() && entry.container() == container) else {
            return Ok(());
        };
        let (id, of) = (other.id(), format!("cannot migrate container {container}"));
        if other.kept().is_some() {
            let message = format!("{of}: its original is kept here since migration {id}");
            let hint = format!(
                "wait until its time is over, remove it (pclivectl resolve {id} --discard-here), or go back to it \
                 (pclivectl undo {id})"
            );
            return Err(MigrationError::new(ErrorCode::Busy, message).hint(hint));
        }
        let message = format!("{of}: it is already being moved by migration {id}");
        Err(MigrationError::new(ErrorCode::Busy, message))
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

    /// How many migrations go on, or are in doubt.
    pub fn live(&self) -> u32 {
        self.count(&self.lock())
    }

    /// To be called when a migration has ended: counts again, lets those that wait have their turn, and forgets what is
    /// too old.
    pub fn ended(&self) {
        let mut inner = self.lock();
        self.promote(&inner);
        Self::forget_oldest(&mut inner, self.history);
        self.publish(&inner);
    }

    /// From now on nothing begins, and what waits for its turn is given up.
    pub fn close(&self, why: &MigrationError) {
        let mut inner = self.lock();
        inner.closed = true;
        for entry in inner.entries.iter().filter(|entry| waits(entry)) {
            entry.cancel(why.clone());
        }
    }

    /// Lets those run whose turn it is, the oldest first.
    fn promote(&self, inner: &Inner) {
        if inner.closed {
            return;
        }
        for role in [control::Role::Source, control::Role::Destination] {
            let of_role = || inner.entries.iter().filter(|entry| entry.role() == role && entry.is_running());
            let running = of_role().filter(|entry| entry.is_admitted()).count();
            let room = self.max_running.saturating_sub(running);
            of_role().filter(|entry| !entry.is_admitted()).take(room).for_each(|entry| entry.admit());
        }
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
        let open =
            |entry: &&Arc<Entry>| entry.is_running() || entry.current_phase() == control::Phase::Unknown;
        u32::try_from(inner.entries.iter().filter(open).count()).unwrap_or(u32::MAX)
    }

    /// A panic elsewhere leaves the list usable: every change to it is one step.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether it waits for its turn.
fn waits(entry: &Entry) -> bool {
    entry.is_running() && !entry.is_admitted()
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

    fn phases(registry: &Registry, ids: &[&str]) -> Vec<Phase> {
        ids.iter().map(|id| registry.get(id).unwrap().current_phase()).collect()
    }

    #[test]
    fn no_more_run_than_allowed_and_the_others_have_their_turn_in_order() {
        use Phase::{Negotiating, Queued};
        let registry = Registry::new(1, 10);
        let [first, second, _] = ["1", "2", "3"].map(|id| registry.begin(description(id, id)).unwrap());
        assert_eq!(phases(&registry, &["1", "2", "3"]), [Negotiating, Queued, Queued]);
        first.fail(failure());
        registry.ended();
        assert_eq!(phases(&registry, &["2", "3"]), [Negotiating, Queued]);
        assert!(second.cancel(failure()));
        second.fail(failure());
        registry.ended();
        assert_eq!(phases(&registry, &["3"]), [Negotiating]);
    }

    #[test]
    fn one_that_ends_in_the_queue_takes_no_turn() {
        let registry = Registry::new(1, 10);
        let [first, second, _] = ["1", "2", "3"].map(|id| registry.begin(description(id, id)).unwrap());
        second.fail(failure());
        registry.ended();
        assert_eq!(phases(&registry, &["3"]), [Phase::Queued]);
        first.fail(failure());
        registry.ended();
        assert_eq!(phases(&registry, &["3"]), [Phase::Negotiating]);
    }

    #[test]
    fn the_roles_do_not_wait_for_each_other() {
        let registry = Registry::new(1, 10);
        registry.begin(description("1", "a")).unwrap();
        let incoming = Description { role: Role::Destination, ..description("2", "b") };
        assert_eq!(registry.begin(incoming).unwrap().current_phase(), Phase::Negotiating);
    }

    #[test]
    fn the_queue_is_bounded() {
        let registry = Registry::new(1, 10);
        for number in 0..=MOST_QUEUED {
            registry.begin(description(&number.to_string(), &number.to_string())).unwrap();
        }
        assert_eq!(registry.begin(description("x", "x")).unwrap_err().code, ErrorCode::TooMany);
    }

    #[tokio::test]
    async fn what_waits_is_given_up_when_the_agent_goes_down() {
        let registry = Registry::new(1, 10);
        let [first, second] = ["1", "2"].map(|id| registry.begin(description(id, id)).unwrap());
        registry.close(&MigrationError::new(ErrorCode::ShuttingDown, "going down"));
        assert_eq!(second.cancelled().await.code, ErrorCode::ShuttingDown);
        first.fail(failure());
        registry.ended();
        assert!(!second.is_admitted());
    }

    #[test]
    fn nothing_begins_once_closed() {
        let registry = Registry::new(1, 10);
        registry.close(&failure());
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

    #[test]
    fn a_container_whose_original_is_kept_or_whose_copy_is_reserved_is_not_moved() {
        let registry = Registry::new(4, 2);
        let entry = registry.begin(description("1", "web")).unwrap();
        entry.keep(Some(control::Kept::default()));
        entry.finish(None);
        let refused = registry.begin(description("2", "web")).unwrap_err();
        assert!(refused.code == ErrorCode::Busy && refused.hint.contains("pclivectl undo 1"), "{refused:?}");
        entry.keep(None);
        registry.reserve(&entry).unwrap();
        assert_eq!(registry.begin(description("2", "web")).unwrap_err().code, ErrorCode::Busy);
        entry.reserve(false);
        registry.begin(description("2", "web")).unwrap();
        assert_eq!(registry.reserve(&entry).unwrap_err().code, ErrorCode::Busy, "it is being moved");
    }

    #[test]
    fn a_migration_that_is_undone_is_not_told_as_done() {
        let registry = Registry::new(4, 2);
        let entry = registry.begin(description("1", "web")).unwrap();
        entry.finish(None);
        entry.fail(MigrationError::new(ErrorCode::Undone, "undone"));
        let told = entry.news(0).events;
        assert!(
            !told.iter().any(|event| matches!(event.event, Some(control::event::Event::Done(_)))),
            "{told:?}"
        );
        assert_eq!(entry.snapshot().phase, i32::from(Phase::Failed));
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
