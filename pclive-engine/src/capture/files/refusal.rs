//! What cannot be carried, and why.

/// Something that the engine does not carry, before it is known which process has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// What it is: "io_uring instance".
    pub(super) what: String,
    /// What the administrator can do about it.
    pub(super) hint: String,
}

impl Refusal {
    pub(super) fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), hint: hint.into() }
    }
}

/// A descriptor of a kind that only its `/proc/PID/fd` link names: no path, pipe, socket, or one of the anonymous
/// files that are carried.
pub(super) fn special_file(target: &[u8]) -> Refusal {
    let name = String::from_utf8_lossy(target);
    let inner = name.strip_prefix("anon_inode:").unwrap_or(&name);
    let inner = inner.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(inner);
    let (what, hint) = match inner {
        "inotify" => ("inotify instance".into(), "turn file watching off in the application"),
        "fanotify" => ("fanotify instance".into(), "turn file watching off in the application"),
        "io_uring" => ("io_uring instance".into(), "let the application use epoll or threads instead"),
        "perf_event" => ("perf event".into(), "stop the profiler"),
        "userfaultfd" => ("userfaultfd".into(), "another tool handles page faults of this process; stop it"),
        "pidfd" => ("pidfd".into(), "stop the program that watches another process by descriptor"),
        "seccomp notify" => ("seccomp notification descriptor".into(), "stop the system call supervisor"),
        "landlock-ruleset" => ("Landlock rule set".into(), "wait until the program has entered its sandbox"),
        _ if inner.starts_with("bpf") || inner == "btf" => {
            ("BPF object".into(), "stop the program that uses BPF")
        }
        _ if inner.starts_with("pidfd:") => {
            ("pidfd".into(), "stop the program that watches another process by descriptor")
        }
        _ if inner.starts_with("kvm") => ("virtual machine".into(), "stop the virtual machine"),
        _ if inner.contains(":[") => {
            (format!("namespace descriptor {inner}"), "close the descriptor in the application")
        }
        _ => (format!("{inner} descriptor"), "files of this kind are not supported"),
    };
    Refusal::new(what, hint)
}

/// A path-like link name of something that is in no mount namespace.
pub(super) fn nameless_memory(target: &[u8]) -> Option<Refusal> {
    let (what, hint) = if target.starts_with(b"/dmabuf:") {
        ("DMA buffer", "stop the program that uses the device")
    } else if target.starts_with(b"/[aio]") {
        ("asynchronous I/O context", "let the application use threads instead")
    } else {
        return None;
    };
    Some(Refusal::new(what, hint))
}

/// A file lock; `line` is fdinfo's: `1: FLOCK  ADVISORY  WRITE 12 00:1f:77 0 EOF`.
pub(super) fn lock(line: &str) -> Refusal {
    let kind = line.split_whitespace().nth(1).unwrap_or("file");
    let what = match kind {
        "FLOCK" => "file lock (flock)".into(),
        "POSIX" => "file lock (fcntl record lock)".into(),
        "OFDLCK" => "file lock (open file description lock)".into(),
        "LEASE" | "DELEG" => "file lease".into(),
        other => format!("file lock ({other})"),
    };
    Refusal::new(what, "wait until the lock is released, or turn locking off in the application")
}

/// Makes bytes from a container fit for a terminal.
pub(super) fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_anonymous_file_has_a_name_for_people() {
        assert_eq!(special_file(b"anon_inode:[io_uring]").what, "io_uring instance");
        assert_eq!(special_file(b"anon_inode:inotify").what, "inotify instance");
        assert_eq!(special_file(b"anon_inode:bpf-map").what, "BPF object");
        assert_eq!(special_file(b"anon_inode:[pidfd]").what, "pidfd");
        assert_eq!(special_file(b"net:[4026531840]").what, "namespace descriptor net:[4026531840]");
        assert_eq!(special_file(b"anon_inode:[new-thing]").what, "new-thing descriptor");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable(b"/a\x1b[2J\n"), "/a?[2J?");
    }
}
