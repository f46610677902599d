//! `/proc/PID/stat` and `/proc/PID/task/TID/stat` (proc_pid_stat(5)).
//!
//! The addresses read as 0 without ptrace access to the process. Times are in clock ticks.

use std::str::FromStr;

/// The fields that the engine uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Id, as the reader of `/proc` sees it.
    pub pid: i32,
    /// Name, at most 15 bytes of anything.
    pub comm: Vec<u8>,
    /// `R`, `S`, `D`, `T` (stopped), `t` (traced), `Z`, `X` ...
    pub state: u8,
    /// Parent.
    pub ppid: i32,
    /// Process group.
    pub pgid: i32,
    /// Session.
    pub sid: i32,
    /// Controlling terminal's device number; 0 for none.
    pub tty: i32,
    /// Kernel flags, `PF_*`.
    pub flags: u32,
    /// Number of threads.
    pub threads: u32,
    /// Start, in clock ticks since boot.
    pub start_time: u64,
    /// Program text.
    pub start_code: u64,
    /// End of program text.
    pub end_code: u64,
    /// Bottom of the initial stack.
    pub start_stack: u64,
    /// Initialised data (Linux 3.3, as all below).
    pub start_data: u64,
    /// End of initialised data.
    pub end_data: u64,
    /// First address of the heap.
    pub start_brk: u64,
    /// Command line.
    pub arg_start: u64,
    /// End of the command line.
    pub arg_end: u64,
    /// Environment.
    pub env_start: u64,
    /// End of the environment.
    pub env_end: u64,
    /// Wait status of a zombie.
    pub exit_code: i32,
}

/// Text that is not the kernel's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot parse field {field} of a stat file")]
pub struct StatError {
    /// Number of the field, from 1 as in the manual page.
    pub field: usize,
}

/// Number of the first field after the name.
const AFTER_NAME: usize = 3;

/// Parses the text of one stat file.
pub fn parse(text: &[u8]) -> Result<Stat, StatError> {
    // The name may hold spaces and parentheses; no later field does.
    let open = text.iter().position(|byte| *byte == b'(').ok_or(StatError { field: 2 })?;
    let close = text.iter().rposition(|byte| *byte == b')').ok_or(StatError { field: 2 })?;
    let comm = text.get(open + 1..close).ok_or(StatError { field: 2 })?.to_vec();
    let rest = std::str::from_utf8(&text[close + 1..]).map_err(|_| StatError { field: AFTER_NAME })?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let state = fields.first().and_then(|word| word.bytes().next()).ok_or(StatError { field: 3 })?;
    Ok(Stat {
        pid: std::str::from_utf8(&text[..open])
            .ok()
            .and_then(|word| word.trim().parse().ok())
            .ok_or(StatError { field: 1 })?,
        comm,
        state,
        ppid: field(&fields, 4)?,
        pgid: field(&fields, 5)?,
        sid: field(&fields, 6)?,
        tty: field(&fields, 7)?,
        flags: field(&fields, 9)?,
        threads: field(&fields, 20)?,
        start_time: field(&fields, 22)?,
        start_code: field(&fields, 26)?,
        end_code: field(&fields, 27)?,
        start_stack: field(&fields, 28)?,
        start_data: field(&fields, 45)?,
        end_data: field(&fields, 46)?,
        start_brk: field(&fields, 47)?,
        arg_start: field(&fields, 48)?,
        arg_end: field(&fields, 49)?,
        env_start: field(&fields, 50)?,
        env_end: field(&fields, 51)?,
        exit_code: field(&fields, 52)?,
    })
}

fn field<T: FromStr>(fields: &[&str], field: usize) -> Result<T, StatError> {
    fields.get(field - AFTER_NAME).and_then(|word| word.parse().ok()).ok_or(StatError { field })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CAT: &str = "10100 (cat) R 10095 10095 6188 0 -1 4194304 99 0 0 0 0 0 0 0 20 0 1 0 169802 3133440 386 \
        18446744073709551615 94809889460224 94809889480105 140735095825696 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 \
        94809889496112 94809889497728 94810330968064 140735095827099 140735095827119 140735095827119 \
        140735095828459 0\n";

    #[test]
    fn fields_are_where_the_manual_says() {
        let stat = parse(CAT.as_bytes()).unwrap();
        assert_eq!((stat.pid, stat.comm.as_slice(), stat.state), (10100, b"cat".as_slice(), b'R'));
        assert_eq!((stat.ppid, stat.pgid, stat.sid, stat.tty), (10095, 10095, 6188, 0));
        assert_eq!((stat.flags, stat.threads, stat.start_time), (4_194_304, 1, 169_802));
        assert_eq!((stat.start_code, stat.end_code), (94_809_889_460_224, 94_809_889_480_105));
        assert_eq!((stat.start_brk, stat.env_end), (94_810_330_968_064, 140_735_095_828_459));
    }

    #[test]
    fn name_may_look_like_fields() {
        let text = CAT.replace("(cat)", "(a) Z (1 2)");
        assert_eq!(parse(text.as_bytes()).unwrap().comm, b"a) Z (1 2");
    }

    #[test]
    fn truncated_text_names_the_missing_field() {
        assert_eq!(parse(b"1 (x) S 0 1 1"), Err(StatError { field: 7 }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn any_damage_is_parsed_or_refused(at in 0usize..300, byte in any::<u8>()) {
            let mut text = CAT.as_bytes().to_vec();
            if let Some(place) = text.get_mut(at) {
                *place = byte;
            }
            let _ = parse(&text);
        }
    }
}
