//! `/proc/PID/status` and `/proc/PID/task/TID/status` (proc_pid_status(5)).
//!
//! Lines that are not known are skipped; a line that the running kernel does not have leaves its default.

use crate::model::creds::Capabilities;

/// The lines that the engine uses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// `State`: `R`, `S`, `D`, `T`, `t`, `Z`, `X`.
    pub state: u8,
    /// File mode creation mask (Linux 4.7).
    pub umask: u32,
    /// Thread that traces this one, as the reader sees it; 0 for none.
    pub tracer: i32,
    /// Real, effective, saved and file system user id, as the reader's user namespace sees them.
    pub uids: [u32; 4],
    /// Group ids, in the same order.
    pub gids: [u32; 4],
    /// `NSpid`: ids in the reader's namespace and each nested one; the last is the task's own view (Linux 4.1).
    pub ids: Vec<i32>,
    /// Locked memory in KiB.
    pub locked_kib: u64,
    /// A core dump is being written (Linux 4.15).
    pub dumping_core: bool,
    /// `untag_mask`: address bits that are not ignored; `None` before Linux 6.4.
    pub untag_mask: Option<u64>,
    /// Signals pending for the thread.
    pub pending: u64,
    /// Signals pending for the process.
    pub shared_pending: u64,
    /// Signals that the thread blocks.
    pub blocked: u64,
    /// Signals that have a handler.
    pub caught: u64,
    /// Capability sets.
    pub capabilities: Capabilities,
    /// `NoNewPrivs` (Linux 4.10).
    pub no_new_privs: bool,
    /// `Seccomp`: 0 off, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Number of filters (Linux 5.9).
    pub seccomp_filters: u32,
    /// `x86_Thread_features`: "shstk", "wrss" (Linux 6.6).
    pub thread_features: Vec<String>,
}

impl Status {
    /// The task's id in its own PID namespace.
    pub fn own_id(&self) -> Option<i32> {
        self.ids.last().copied()
    }
}

/// A line that is not the kernel's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot parse status line {0:?}")]
pub struct StatusError(pub String);

/// Parses the text of one status file.
pub fn parse(text: &[u8]) -> Result<Status, StatusError> {
    let mut status = Status::default();
    for line in text.split(|byte| *byte == b'\n') {
        // The name is escaped by the kernel (no newline), but may be any other bytes.
        let line = String::from_utf8_lossy(line);
        parse_line(&mut status, &line).ok_or_else(|| StatusError(line.into_owned()))?;
    }
    Ok(status)
}

fn parse_line(status: &mut Status, line: &str) -> Option<()> {
    let Some((key, value)) = line.split_once(':') else { return Some(()) };
    let value = value.trim();
    match key {
        "State" => status.state = value.bytes().next()?,
        "Umask" => status.umask = u32::from_str_radix(value, 8).ok()?,
        "TracerPid" => status.tracer = value.parse().ok()?,
        "Uid" => status.uids = four(value)?,
        "Gid" => status.gids = four(value)?,
        "NSpid" => status.ids = words(value)?,
        "VmLck" => status.locked_kib = value.strip_suffix("kB")?.trim().parse().ok()?,
        "CoreDumping" => status.dumping_core = value == "1",
        "untag_mask" => status.untag_mask = Some(hex(value.strip_prefix("0x")?)?),
        "SigPnd" => status.pending = hex(value)?,
        "ShdPnd" => status.shared_pending = hex(value)?,
        "SigBlk" => status.blocked = hex(value)?,
        "SigCgt" => status.caught = hex(value)?,
        "CapInh" => status.capabilities.inheritable = hex(value)?,
        "CapPrm" => status.capabilities.permitted = hex(value)?,
        "CapEff" => status.capabilities.effective = hex(value)?,
        "CapBnd" => status.capabilities.bounding = hex(value)?,
        "CapAmb" => status.capabilities.ambient = hex(value)?,
        "NoNewPrivs" => status.no_new_privs = value == "1",
        "Seccomp" => status.seccomp = value.parse().ok()?,
        "Seccomp_filters" => status.seccomp_filters = value.parse().ok()?,
        "x86_Thread_features" => {
            status.thread_features = value.split_ascii_whitespace().map(str::to_owned).collect();
        }
        _ => {}
    }
    Some(())
}

fn words<T: std::str::FromStr>(value: &str) -> Option<Vec<T>> {
    value.split_ascii_whitespace().map(|word| word.parse().ok()).collect()
}

fn four(value: &str) -> Option<[u32; 4]> {
    words(value)?.try_into().ok()
}

fn hex(value: &str) -> Option<u64> {
    u64::from_str_radix(value, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "Name:\todd: \\n name\nUmask:\t0027\nState:\tS (sleeping)\nTgid:\t4242\nTracerPid:\t7\n\
        Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t10 20 \nNStgid:\t4242\t12\nNSpid:\t4243\t13\n\
        VmLck:\t      64 kB\nCoreDumping:\t0\nuntag_mask:\t0xffffffffffffffff\nSigPnd:\t0000000000000100\n\
        ShdPnd:\t0000000000004000\nSigBlk:\t0000000000000008\nSigCgt:\t0000000000000010\nCapInh:\t0000000000000001\nCapPrm:\t0000000000000003\n\
        CapEff:\t0000000000000002\nCapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000001\nNoNewPrivs:\t1\n\
        Seccomp:\t2\nSeccomp_filters:\t3\nx86_Thread_features:\tshstk wrss \n";

    #[test]
    fn every_line_that_is_used() {
        let expected = Status {
            state: b'S',
            umask: 0o27,
            tracer: 7,
            uids: [1, 2, 3, 4],
            gids: [5, 6, 7, 8],
            ids: vec![4243, 13],
            locked_kib: 64,
            dumping_core: false,
            untag_mask: Some(u64::MAX),
            pending: 0x100,
            shared_pending: 0x4000,
            blocked: 8,
            caught: 0x10,
            capabilities: Capabilities {
                inheritable: 1,
                permitted: 3,
                effective: 2,
                bounding: 0xa804_25fb,
                ambient: 1,
            },
            no_new_privs: true,
            seccomp: 2,
            seccomp_filters: 3,
            thread_features: vec!["shstk".into(), "wrss".into()],
        };
        assert_eq!(parse(TEXT.as_bytes()), Ok(expected));
    }

    #[test]
    fn own_id_is_the_innermost() {
        assert_eq!(parse(TEXT.as_bytes()).unwrap().own_id(), Some(13));
    }

    #[test]
    fn broken_number_is_an_error_that_names_the_line() {
        assert_eq!(parse(b"CapEff:\txyz\n"), Err(StatusError("CapEff:\txyz".into())));
    }

    #[test]
    fn own_status_parses() {
        let status = parse(&std::fs::read("/proc/self/status").unwrap()).unwrap();
        assert_eq!(status.ids.first().copied(), Some(std::process::id() as i32));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn any_value_of_a_known_key_is_parsed_or_refused(
            key in "(State|Umask|Uid|NSpid|VmLck|untag_mask|CapBnd|Seccomp|x86_Thread_features)",
            value in ".{0,40}",
        ) {
            let _ = parse(format!("{key}:\t{value}\n").as_bytes());
        }
    }
}
