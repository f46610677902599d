//! First and last words about a migration, for people.

use pclive_proto::control::{Error, Migration, Phase, Report, Role, UndoMigrationResponse};

use super::text::printable;
use super::{problem, report, unit};
use crate::follow::Subject;

/// The line above everything.
pub(crate) fn title(subject: &Subject) -> String {
    let direction = match subject.role {
        Role::Source | Role::Unspecified => "to",
        Role::Destination => "from",
    };
    let (container, peer) = (printable(&subject.container), printable(&subject.peer));
    format!("{container} {direction} {peer}, migration {}\n", printable(&subject.id))
}

/// It runs at the destination.
pub(crate) fn migrated(subject: &Subject, report: Option<&Report>) -> String {
    let place = match subject.role {
        Role::Source | Role::Unspecified => format!("at {}", printable(&subject.peer)),
        Role::Destination => "here".to_owned(),
    };
    let report = report.map_or_else(|| "  the agent has no report of it\n".to_owned(), report::report);
    format!("{} now runs {place}\n{report}", printable(&subject.container))
}

/// What going back to the original loses, or has lost.
pub(crate) fn undone(migration: &Migration, undone: &UndoMigrationResponse, now_ms: u64) -> String {
    let (container, peer) = (printable(&migration.container), printable(&migration.peer));
    let done = undone.phase() == Phase::Failed;
    let Some(kept) = undone.kept else { return format!("{container} runs here again already\n") };
    let state = if kept.stopped_ms == 0 { "at the stop".to_owned() } else { since(kept.stopped_ms, now_ms) };
    if done {
        return format!(
            "{container} runs here again, in its state {state}\nits copy at {peer} has ended, with what it had in memory and \
             its connections\n"
        );
    }
    format!(
        "{container} would go back to its state {state}\n  lost      everything that it did at {peer} since: what it has in \
         memory, and its connections\n  not lost  what it wrote to storage that both hosts share: it finds that there\n\
         nothing was done; to go back: pclivectl undo {} --yes\nthe original is removed at {}\n",
        printable(&migration.id),
        unit::timestamp(kept.until_ms),
    )
}

/// "of 2026-11-23T10:36:29Z, 2.50 s ago"
fn since(stopped_ms: u64, now_ms: u64) -> String {
    let age = unit::duration(now_ms.saturating_sub(stopped_ms).saturating_mul(1_000_000));
    format!("of {}, {age} ago", unit::timestamp(stopped_ms))
}

/// It runs at the source.
pub(crate) fn failed(subject: &Subject, error: &Error) -> String {
    format!("{}{} runs on at the source\n", problem::text(error), printable(&subject.container))
}

/// Nobody knows.
pub(crate) fn unknown(subject: &Subject, error: &Error) -> String {
    format!(
        "{}it is not known where {} runs: look at both hosts before anything is started by hand\n",
        problem::text(error),
        printable(&subject.container)
    )
}

/// We no longer look.
pub(crate) fn left(subject: &Subject) -> String {
    let id = printable(&subject.id);
    format!("the migration goes on; to follow it: pclivectl watch {id}, to end it: pclivectl cancel {id}\n")
}

#[cfg(test)]
mod tests {
    use pclive_proto::control::Kept;

    use super::*;

    fn subject(role: Role) -> Subject {
        Subject { id: "3f".into(), container: "redis-1".into(), peer: "host-b".into(), role }
    }

    #[test]
    fn the_title_tells_the_direction() {
        assert_eq!(title(&subject(Role::Source)), "redis-1 to host-b, migration 3f\n");
        assert_eq!(title(&subject(Role::Destination)), "redis-1 from host-b, migration 3f\n");
    }

    #[test]
    fn going_back_is_told_with_what_it_loses() {
        let migration = Migration {
            id: "3f".into(),
            container: "redis-1".into(),
            peer: "host-b".into(),
            ..Migration::default()
        };
        let kept = Kept { until_ms: 1_795_430_789_000, stopped_ms: 1_795_430_189_000 };
        let answer = |phase: Phase| UndoMigrationResponse { phase: phase.into(), kept: Some(kept) };
        let expected = "\
redis-1 would go back to its state of 2026-11-23T10:36:29Z, 2.50 s ago
  lost      everything that it did at host-b since: what it has in memory, and its connections
  not lost  what it wrote to storage that both hosts share: it finds that there
nothing was done; to go back: pclivectl undo 3f --yes
the original is removed at 2026-11-23T10:46:29Z
";
        let now = kept.stopped_ms + 2_500;
        assert_eq!(undone(&migration, &answer(Phase::Done), now), expected);
        let text = undone(&migration, &answer(Phase::Failed), now);
        assert!(text.starts_with("redis-1 runs here again, in its state of 2026-11-23T10:36:29Z"), "{text}");
    }

    #[test]
    fn the_last_words_tell_where_the_container_runs() {
        let error = Error { message: "no".into(), ..Error::default() };
        assert_eq!(
            migrated(&subject(Role::Source), None),
            "redis-1 now runs at host-b\n  the agent has no report of it\n"
        );
        assert!(
            migrated(&subject(Role::Destination), Some(&Report::default()))
                .starts_with("redis-1 now runs here\n  downtime")
        );
        assert_eq!(failed(&subject(Role::Source), &error), "error: no\nredis-1 runs on at the source\n");
        assert_eq!(
            unknown(&subject(Role::Source), &error),
            "error: no\nit is not known where redis-1 runs: look at both hosts before anything is started by hand\n"
        );
        assert_eq!(
            left(&subject(Role::Source)),
            "the migration goes on; to follow it: pclivectl watch 3f, to end it: pclivectl cancel 3f\n"
        );
    }
}
