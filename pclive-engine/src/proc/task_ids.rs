//! Who a task is: the ids in `/proc/PID/status` and the start time in `/proc/PID/stat`.
//!
//! Kernel: proc_pid_status(5), proc_pid_stat(5); `NSpid` and its like since Linux 4.1. Nothing here panics.

/// Ids of a task. Those of the innermost PID namespace are what the task itself sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskIds {
    /// `R`, `S`, `D`, `Z`, `T`, `t`, `X` ...
    pub state: u8,
    /// Threads of its process that have not been reaped, itself included; 0: it has been, and its id may be another's.
    pub threads: u32,
    /// Id of the task in its innermost PID namespace.
    pub vpid: i32,
    /// Its process there.
    pub process: i32,
    /// Its process group there; 0: led from outside.
    pub group: i32,
    /// Its session there; 0: led from outside.
    pub session: i32,
    /// How many PID namespaces see the task, from the reader's inwards.
    pub depth: usize,
    /// Parent process, as the reader sees it; 0: outside.
    pub parent: i32,
    /// Tracer, as the reader sees it; 0: none.
    pub tracer: i32,
    /// Signals that have a handler, a bit each.
    pub caught: u64,
    /// Signals pending for the task or its process, a bit each.
    pub pending: u64,
}

/// Parses `/proc/PID/status` (or a thread's); `None` if a field is missing.
pub fn parse_status(text: &[u8]) -> Option<TaskIds> {
    let mut parser = Fields { text };
    let ids = parser.words("NSpid")?;
    Some(TaskIds {
        state: *parser.words("State")?.first()?.as_bytes().first()?,
        threads: parser.words("Threads")?.first()?.parse().ok()?,
        vpid: number(ids.last()?)?,
        process: number(parser.words("NStgid")?.last()?)?,
        group: number(parser.words("NSpgid")?.last()?)?,
        session: number(parser.words("NSsid")?.last()?)?,
        depth: ids.len(),
        parent: number(parser.words("PPid")?.first()?)?,
        tracer: number(parser.words("TracerPid")?.first()?)?,
        caught: mask(parser.words("SigCgt")?.first()?)?,
        pending: mask(parser.words("SigPnd")?.first()?)? | mask(parser.words("ShdPnd")?.first()?)?,
    })
}

/// State letter, terminal, start time (clock ticks since boot) and exit status of a task, from `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskStat {
    /// `R`, `S`, `D`, `Z`, `T`, `t`, `X` ...
    pub state: u8,
    /// Field 7: device number of the controlling terminal, 0 for none.
    pub terminal: u32,
    /// Field 22.
    pub start_time: u64,
    /// Field 52: as wait(2) gives it, for a zombie.
    pub exit_status: i32,
}

/// Parses `/proc/PID/stat`; the name in it may hold any byte, also `)`.
pub fn parse_stat(text: &[u8]) -> Option<TaskStat> {
    let after_name = text.iter().rposition(|byte| *byte == b')')? + 2;
    let text = std::str::from_utf8(text.get(after_name..)?).ok()?;
    let mut fields = text.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    // The state is field 3.
    let terminal = fields.nth(7 - 4)?.parse::<i32>().ok()? as u32;
    let start_time = fields.nth(22 - 8)?.parse().ok()?;
    let exit_status = fields.nth(52 - 23)?.parse().ok()?;
    Some(TaskStat { state, terminal, start_time, exit_status })
}

struct Fields<'a> {
    text: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The words after `key:`. Keys come in the kernel's order or not: the whole text is searched.
    fn words(&mut self, key: &str) -> Option<Vec<&'a str>> {
        let line = self
            .text
            .split(|byte| *byte == b'\n')
            .find_map(|line| line.strip_prefix(key.as_bytes()).and_then(|rest| rest.strip_prefix(b":")))?;
        Some(std::str::from_utf8(line).ok()?.split_ascii_whitespace().collect())
    }
}

fn number(word: &&str) -> Option<i32> {
    word.parse().ok()
}

fn mask(word: &&str) -> Option<u64> {
    u64::from_str_radix(word, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &[u8] =
        b"Name:\tredis-server\nState:\tS (sleeping)\nTgid:\t77\nPPid:\t60\nTracerPid:\t0\nNStgid:\t77\t1\nNSpid:\t81\t5\n\
        NSpgid:\t77\t1\nNSsid:\t77\t1\nThreads:\t6\nSigPnd:\t0000000000000001\nShdPnd:\t0000000000000002\n\
        SigCgt:\t0000000000004002\n";

    #[test]
    fn innermost_ids_are_the_containers() {
        let ids = parse_status(STATUS).unwrap();
        assert_eq!((ids.vpid, ids.process, ids.group, ids.session, ids.depth), (5, 1, 1, 1, 2));
        assert_eq!((ids.parent, ids.tracer, ids.caught, ids.pending), (60, 0, 0x4002, 3));
        assert_eq!((ids.state, ids.threads), (b'S', 6));
    }

    #[test]
    fn missing_fields_are_no_ids() {
        assert_eq!(parse_status(b"Name:\tx\n"), None);
        assert_eq!(parse_status(b""), None);
    }

    #[test]
    fn name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let text = std::fs::read("/proc/self/stat").unwrap();
        let own = parse_stat(&text).unwrap();
        let end = text.iter().rposition(|byte| *byte == b')').unwrap();
        let mut odd = b"1 (a) Z 9 (".to_vec();
        odd.extend_from_slice(&text[end..]);
        assert_eq!(parse_stat(&odd), Some(own));
        assert!(own.start_time > 0);
        assert_eq!(own.exit_status, 0);
    }

    #[test]
    fn truncated_stat_is_refused() {
        assert_eq!(parse_stat(b"1 (x"), None);
        assert_eq!(parse_stat(b"1 (x) S 1 2"), None);
    }
}
