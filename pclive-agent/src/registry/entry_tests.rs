use std::sync::Arc;

use pclive_proto::control::{self, Phase, Role};

use super::entry::{Description, Entry, MAX_WARNINGS};
use crate::error::{ErrorCode, MigrationError};

/// A migration as it begins.
pub(super) fn example() -> Arc<Entry> {
    let entry = Arc::new(Entry::new(Description {
        id: "1".into(),
        container: "web".into(),
        runtime: "runc".into(),
        role: Role::Source,
        peer: "host-b".into(),
        strategy: control::Strategy::Global,
        request_id: String::new(),
    }));
    entry.admit();
    entry
}

#[tokio::test]
async fn an_error_says_the_phase_that_it_ended() {
    let entry = example();
    entry.phase(Phase::Frozen);
    entry.fail(MigrationError::new(ErrorCode::PeerLost, "x"));
    let error = entry.snapshot().error.unwrap();
    assert_eq!((error.phase(), error.role()), (Phase::Frozen, Role::Source));
    assert_eq!(entry.snapshot().phase(), Phase::Failed);
}

#[tokio::test]
async fn cancelling_and_committing_exclude_each_other() {
    let why = || MigrationError::new(ErrorCode::Cancelled, "asked to");
    let first = example();
    assert!(first.cancel(why()));
    assert_eq!(first.begin_commit().unwrap_err().code, ErrorCode::Cancelled);
    assert_eq!(first.cancelled().await.message, "asked to");
    let second = example();
    second.begin_commit().unwrap();
    assert!(!second.cancel(why()));
}

#[test]
fn a_flood_of_warnings_is_bounded() {
    let entry = example();
    (0..10 * MAX_WARNINGS).for_each(|_| entry.warn("again"));
    assert!(entry.news(0).events.len() <= MAX_WARNINGS + 1);
}
