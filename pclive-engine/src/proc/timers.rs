//! `/proc/PID/timers` (proc_pid_timers(5), CONFIG_CHECKPOINT_RESTORE; Linux 3.10): the timers that
//! `timer_create(2)` made, without their times.

/// A timer's fixed properties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimerLine {
    /// Timer id.
    pub id: i32,
    /// Signal sent.
    pub signal: i32,
    /// `sigev_value`.
    pub value: u64,
    /// `SIGEV_*`, with `SIGEV_THREAD_ID` where it is set.
    pub notify: i32,
    /// The process, or with `SIGEV_THREAD_ID` the thread, to be told, as the reader of `/proc` sees it; 0 when it
    /// is gone.
    pub target: i32,
    /// `CLOCK_*`; negative for the clock of a process, thread or file.
    pub clock: i32,
}

/// Text that is not the kernel's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot parse timers line {0:?}")]
pub struct TimersError(pub String);

/// Parses the text of one timers file; the order is the kernel's.
pub fn parse(text: &[u8]) -> Result<Vec<TimerLine>, TimersError> {
    let mut timers: Vec<TimerLine> = Vec::new();
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let line = String::from_utf8_lossy(line);
        parse_line(&mut timers, &line).ok_or_else(|| TimersError(line.into_owned()))?;
    }
    Ok(timers)
}

fn parse_line(timers: &mut Vec<TimerLine>, line: &str) -> Option<()> {
    let (key, value) = line.split_once(':')?;
    let value = value.trim();
    if key == "ID" {
        let id = value.parse().ok()?;
        timers.push(TimerLine { id, signal: 0, value: 0, notify: 0, target: 0, clock: 0 });
        return Some(());
    }
    let timer = timers.last_mut()?;
    match key {
        "signal" => {
            let (signal, pointer) = value.split_once('/')?;
            timer.signal = signal.parse().ok()?;
            timer.value = pointer_value(pointer)?;
        }
        "notify" => {
            let (how, target) = value.split_once('/')?;
            let (kind, id) = target.split_once('.')?;
            timer.notify = notify(how)? | if kind == "tid" { libc::SIGEV_THREAD_ID } else { 0 };
            timer.target = id.parse().ok()?;
        }
        "ClockID" => timer.clock = value.parse().ok()?,
        _ => {}
    }
    Some(())
}

fn notify(word: &str) -> Option<i32> {
    match word {
        "signal" => Some(libc::SIGEV_SIGNAL),
        "none" => Some(libc::SIGEV_NONE),
        "thread" => Some(libc::SIGEV_THREAD),
        _ => None,
    }
}

/// `%px` prints a null pointer as sixteen zeros, older formats as "(null)".
fn pointer_value(word: &str) -> Option<u64> {
    let word = word.trim();
    if word == "(null)" { Some(0) } else { u64::from_str_radix(word, 16).ok() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn timers_of_every_notification() {
        let text = b"ID: 1\nsignal: 60/00007fff86e452a8\nnotify: signal/pid.2634\nClockID: 0\n\
            ID: 7\nsignal: 0/(null)\nnotify: none/pid.2634\nClockID: 1\n\
            ID: 9\nsignal: 34/0000000000000003\nnotify: signal/tid.2640\nClockID: -6\n";
        let timers = parse(text).unwrap();
        let line =
            |id, signal, value, notify, target, clock| TimerLine { id, signal, value, notify, target, clock };
        let expected = [
            line(1, 60, 0x7fff_86e4_52a8, libc::SIGEV_SIGNAL, 2634, 0),
            line(7, 0, 0, libc::SIGEV_NONE, 2634, 1),
            line(9, 34, 3, libc::SIGEV_THREAD_ID, 2640, -6),
        ];
        assert_eq!(timers, expected);
    }

    #[test]
    fn no_timers_is_an_empty_file() {
        assert_eq!(parse(b""), Ok(Vec::new()));
    }

    #[test]
    fn line_before_the_first_id_is_refused() {
        assert_eq!(parse(b"signal: 60/0\n"), Err(TimersError("signal: 60/0".into())));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn any_value_of_a_known_key_is_parsed_or_refused(
            key in "(ID|signal|notify|ClockID)",
            value in ".{0,40}",
        ) {
            let _ = parse(format!("ID: 1\n{key}: {value}\n").as_bytes());
        }
    }
}
