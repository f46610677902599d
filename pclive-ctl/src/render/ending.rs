//! First and last words about a migration, for people.

use pclive_proto::control::{Error, Report, Role};

use super::text::printable;
use super::{problem, report};
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
