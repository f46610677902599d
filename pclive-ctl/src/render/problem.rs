//! Errors and blockers.

use std::fmt::Write;

use pclive_proto::control::{Blocker, Error, Phase};

use super::name;
use super::text::printable;

/// An error: what failed, where, what to do, and what blocks.
pub(crate) fn text(error: &Error) -> String {
    let mut text = format!("error: {}\n", lines(&error.message));
    if let Some(place) = place(error) {
        let _ = writeln!(text, "  at: {place}");
    }
    if !error.hint.is_empty() {
        let _ = writeln!(text, "  hint: {}", lines(&error.hint));
    }
    if !error.blockers.is_empty() {
        text.push_str("  blockers:\n");
        text.push_str(&blockers(4, &error.blockers));
    }
    text
}

/// Text of several lines (what a runtime said), its later lines indented.
fn lines(text: &str) -> String {
    let lines: Vec<_> = text.trim_end().lines().map(printable).collect();
    lines.join("\n    ")
}

/// "destination, negotiating".
fn place(error: &Error) -> Option<String> {
    let phase = Some(error.phase()).filter(|phase| *phase != Phase::Unspecified).map(name::phase);
    let parts: Vec<_> = name::role(error.role()).into_iter().chain(phase).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// A list of blockers, a hint below each.
pub(crate) fn blockers(indent: usize, blockers: &[Blocker]) -> String {
    let mut text = String::new();
    for blocker in blockers {
        let _ = writeln!(
            text,
            "{:indent$}{}, {}: {}",
            "",
            process(blocker),
            printable(&blocker.place),
            printable(&blocker.what)
        );
        if !blocker.hint.is_empty() {
            let _ = writeln!(text, "{:indent$}  hint: {}", "", printable(&blocker.hint));
        }
    }
    text
}

/// "pid 812 (redis-server; 7 in the container)"; "container" for what belongs to no process.
fn process(blocker: &Blocker) -> String {
    if blocker.pid == 0 {
        return "container".to_owned();
    }
    let mut facts = Vec::new();
    if !blocker.comm.is_empty() {
        facts.push(printable(&blocker.comm).into_owned());
    }
    if blocker.container_pid != 0 {
        facts.push(format!("{} in the container", blocker.container_pid));
    }
    if facts.is_empty() {
        format!("pid {}", blocker.pid)
    } else {
        format!("pid {} ({})", blocker.pid, facts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use pclive_proto::control::Role;

    use super::*;

    fn blocker(pid: i32, place: &str, what: &str, hint: &str) -> Blocker {
        Blocker {
            pid,
            container_pid: 7,
            comm: "redis-server".into(),
            place: place.into(),
            what: what.into(),
            hint: hint.into(),
        }
    }

    #[test]
    fn an_error_tells_what_where_and_what_to_do() {
        let error = Error {
            code: "bundle-missing".into(),
            role: Role::Destination.into(),
            phase: Phase::Negotiating.into(),
            message: "cannot read /run/bundles/redis-1/config.json: No such file or directory".into(),
            hint: "put the same bundle at the same path of host-b".into(),
            ..Error::default()
        };
        let expected = "\
error: cannot read /run/bundles/redis-1/config.json: No such file or directory
  at: destination, negotiating
  hint: put the same bundle at the same path of host-b
";
        assert_eq!(text(&error), expected);
    }

    #[test]
    fn an_error_without_a_place_or_a_hint_is_one_line() {
        assert_eq!(text(&Error { message: "no\x07".into(), ..Error::default() }), "error: no\\u{7}\n");
    }

    #[test]
    fn a_message_of_several_lines_stays_readable() {
        let message = "cannot create it: runc said:\nno such file\r\n";
        let error = Error { message: message.into(), ..Error::default() };
        assert_eq!(text(&error), "error: cannot create it: runc said:\n    no such file\n");
    }

    #[test]
    fn blockers_are_listed_one_by_one() {
        let error = Error {
            role: Role::Source.into(),
            message: "redis-1 cannot be migrated".into(),
            blockers: vec![
                blocker(812, "descriptor 9", "io_uring instance", "start it with io_uring off"),
                blocker(0, "mount /data", "FUSE", ""),
            ],
            ..Error::default()
        };
        let expected = "\
error: redis-1 cannot be migrated
  at: source
  blockers:
    pid 812 (redis-server; 7 in the container), descriptor 9: io_uring instance
      hint: start it with io_uring off
    container, mount /data: FUSE
";
        assert_eq!(text(&error), expected);
    }
}
