//! `/proc/PID/fdinfo/FD` (proc_pid_fdinfo(5), Linux `fs/proc/fd.c` and each file's `show_fdinfo`).
//!
//! Lines that are not known are skipped, so that a newer kernel's additions do no harm.

use std::str::FromStr;

/// What the kernel tells about a descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FdInfo {
    /// File offset.
    pub pos: i64,
    /// `O_*` status flags and access mode of the description; `O_CLOEXEC` stands for the descriptor's own flag.
    pub flags: i32,
    /// Mount that the file was opened on (first field of mountinfo; inner mounts of the kernel are not in there).
    pub mount: i32,
    /// Inode number.
    pub inode: u64,
    /// First line about a lock held through it (flock, fcntl, lease), without its key.
    pub lock: Option<String>,
    /// What only files of some kinds have.
    pub detail: Detail,
}

impl FdInfo {
    /// `FD_CLOEXEC`.
    pub fn close_on_exec(&self) -> bool {
        self.flags & libc::O_CLOEXEC != 0
    }

    /// Flags of the description alone.
    pub fn status(&self) -> i32 {
        self.flags & !libc::O_CLOEXEC
    }
}

/// Lines of one kind of file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Detail {
    /// None, or of no interest.
    #[default]
    Plain,
    /// eventfd(2).
    Event {
        /// Counter.
        count: u64,
        /// `EFD_SEMAPHORE` (a kernel that does not tell it means "no").
        semaphore: bool,
        /// Tells it apart from every other eventfd.
        id: u64,
    },
    /// timerfd_create(2).
    Timer(TimerInfo),
    /// signalfd(2): accepted signals.
    Signal(u64),
    /// epoll(7), in the kernel's order.
    Epoll(Vec<EpollEntry>),
    /// The master of a pseudo-terminal: N of `/dev/pts/N` (Linux 4.14).
    Terminal(u32),
}

/// A timerfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimerInfo {
    /// `CLOCK_*`.
    pub clock: i32,
    /// Expiries not yet read.
    pub ticks: u64,
    /// Flags of timerfd_settime(2).
    pub settime_flags: i32,
    /// Time left, nanoseconds.
    pub left_ns: u64,
    /// Interval, nanoseconds.
    pub interval_ns: u64,
}

/// A watch of an epoll instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpollEntry {
    /// Number under which it was added; the number may name another file by now.
    pub fd: i32,
    /// `EPOLL*`.
    pub events: u32,
    /// User data.
    pub data: u64,
    /// Inode of the file watched.
    pub inode: u64,
}

/// Text that is not the kernel's fdinfo.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot parse fdinfo line {0:?}")]
pub struct FdInfoError(pub String);

/// Parses the text of one fdinfo file.
pub fn parse(text: &[u8]) -> Result<FdInfo, FdInfoError> {
    let mut info = FdInfo::default();
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let line = String::from_utf8_lossy(line);
        parse_line(&mut info, &line).ok_or_else(|| FdInfoError(line.into_owned()))?;
    }
    Ok(info)
}

fn parse_line(info: &mut FdInfo, line: &str) -> Option<()> {
    // Names of io_uring files, bpf programs ... may hold anything: a line without a key is skipped.
    let Some((key, value)) = line.split_once(':') else { return Some(()) };
    let value = value.trim();
    match key {
        "pos" => info.pos = value.parse().ok()?,
        "flags" => info.flags = i32::from_str_radix(value, 8).ok()?,
        "mnt_id" => info.mount = value.parse().ok()?,
        "ino" => info.inode = value.parse().ok()?,
        "lock" if info.lock.is_none() => info.lock = Some(value.to_owned()),
        "eventfd-count" => info.detail = Detail::Event { count: hex(value)?, semaphore: false, id: 0 },
        "eventfd-id" => name_event(&mut info.detail, value.parse().ok()?),
        "eventfd-semaphore" => mark_semaphore(&mut info.detail, value),
        "sigmask" => info.detail = Detail::Signal(hex(value)?),
        "clockid" => {
            info.detail = Detail::Timer(TimerInfo { clock: value.parse().ok()?, ..Default::default() })
        }
        "ticks" => timer(info, |timer| {
            timer.ticks = value.parse().ok()?;
            Some(())
        })?,
        "settime flags" => timer(info, |timer| {
            timer.settime_flags = i32::from_str_radix(value, 8).ok()?;
            Some(())
        })?,
        "it_value" => timer(info, |timer| {
            timer.left_ns = seconds_and_nanoseconds(value)?;
            Some(())
        })?,
        "it_interval" => timer(info, |timer| {
            timer.interval_ns = seconds_and_nanoseconds(value)?;
            Some(())
        })?,
        "tty-index" => info.detail = Detail::Terminal(value.parse().ok()?),
        "tfd" => push_watch(&mut info.detail, epoll_entry(value)?),
        _ => {}
    }
    Some(())
}

fn name_event(detail: &mut Detail, name: u64) {
    if let Detail::Event { id, .. } = detail {
        *id = name;
    }
}

fn mark_semaphore(detail: &mut Detail, value: &str) {
    if let Detail::Event { semaphore, .. } = detail {
        *semaphore = value == "1";
    }
}

/// Changes the timer that a `clockid` line has begun; a line of another kind of file is left alone.
fn timer(info: &mut FdInfo, change: impl FnOnce(&mut TimerInfo) -> Option<()>) -> Option<()> {
    match &mut info.detail {
        Detail::Timer(timer) => change(timer),
        Detail::Plain | Detail::Event { .. } | Detail::Signal(_) | Detail::Epoll(_) | Detail::Terminal(_) => {
            Some(())
        }
    }
}

fn push_watch(detail: &mut Detail, entry: EpollEntry) {
    match detail {
        Detail::Epoll(entries) => entries.push(entry),
        Detail::Plain | Detail::Event { .. } | Detail::Timer(_) | Detail::Signal(_) | Detail::Terminal(_) => {
            *detail = Detail::Epoll(vec![entry]);
        }
    }
}

/// `       5 events:       19 data: 7f0005  pos:0 ino:3a1 sdev:c`
fn epoll_entry(value: &str) -> Option<EpollEntry> {
    let mut words = value.split([' ', ':']).filter(|word| !word.is_empty());
    let fd = number(words.next())?;
    let mut after = |key: &str| words.by_ref().skip_while(|word| *word != key).nth(1).and_then(hex);
    let events = u32::try_from(after("events")?).ok()?;
    Some(EpollEntry { fd, events, data: after("data")?, inode: after("ino")? })
}

/// `(1, 500000000)`
fn seconds_and_nanoseconds(value: &str) -> Option<u64> {
    let (seconds, nanoseconds) = value.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    let seconds: u64 = number(Some(seconds.trim()))?;
    seconds.checked_mul(1_000_000_000)?.checked_add(number(Some(nanoseconds.trim()))?)
}

fn number<T: FromStr>(word: Option<&str>) -> Option<T> {
    word?.parse().ok()
}

fn hex(word: &str) -> Option<u64> {
    u64::from_str_radix(word, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn regular_file_with_a_lock() {
        let text = b"pos:\t1234\nflags:\t02100002\nmnt_id:\t30\nino:\t77\n\
                     lock:\t1: FLOCK  ADVISORY  WRITE 12 00:1f:77 0 EOF\n";
        let info = parse(text).unwrap();
        assert_eq!((info.pos, info.mount, info.inode), (1234, 30, 77));
        assert!(info.close_on_exec());
        assert_eq!(info.status(), 0o100_002);
        assert!(info.lock.unwrap().starts_with("1: FLOCK"));
        assert_eq!(info.detail, Detail::Plain);
    }

    #[test]
    fn eventfd_count_is_hexadecimal() {
        let text = b"pos:\t0\nflags:\t04002\nmnt_id:\t15\nino:\t1054\n\
                     eventfd-count:               1f\neventfd-id: 7\neventfd-semaphore: 1\n";
        assert_eq!(parse(text).unwrap().detail, Detail::Event { count: 0x1f, semaphore: true, id: 7 });
    }

    #[test]
    fn timerfd_times_are_nanoseconds() {
        let text =
            b"clockid: 1\nticks: 3\nsettime flags: 01\nit_value: (2, 5)\nit_interval: (0, 250000000)\n";
        let expected = TimerInfo {
            clock: 1,
            ticks: 3,
            settime_flags: 1,
            left_ns: 2_000_000_005,
            interval_ns: 250_000_000,
        };
        assert_eq!(parse(text).unwrap().detail, Detail::Timer(expected));
    }

    #[test]
    fn signalfd_mask() {
        assert_eq!(parse(b"sigmask:\t0000000000014003\n").unwrap().detail, Detail::Signal(0x14003));
    }

    #[test]
    fn epoll_watches_keep_the_kernels_order() {
        let text = b"pos:\t0\nflags:\t02000002\nmnt_id:\t16\nino:\t1054\n\
            tfd:        7 events: 80000019 data: ffffffffffffffff  pos:0 ino:41e sdev:f\n\
            tfd:        5 events:       1d data:                5  pos:-1 ino:c07 sdev:9\n";
        let first = EpollEntry { fd: 7, events: 0x8000_0019, data: u64::MAX, inode: 0x41e };
        let second = EpollEntry { fd: 5, events: 0x1d, data: 5, inode: 0xc07 };
        assert_eq!(parse(text).unwrap().detail, Detail::Epoll(vec![first, second]));
    }

    #[test]
    fn broken_number_is_an_error_that_names_the_line() {
        assert_eq!(parse(b"pos:\t12x\n"), Err(FdInfoError("pos:\t12x".into())));
    }

    #[test]
    fn own_descriptor_parses() {
        let file = std::fs::File::open("/proc/self/fdinfo").unwrap();
        let path = format!("/proc/self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let info = parse(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(info.inode, std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap()));
        assert!(info.close_on_exec());
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn any_value_of_a_known_key_is_parsed_or_refused(
            key in "(pos|flags|mnt_id|ino|lock|eventfd-count|sigmask|clockid|ticks|it_value|tfd)",
            value in ".{0,60}",
        ) {
            let _ = parse(format!("clockid: 0\n{key}:{value}").as_bytes());
        }
    }
}
