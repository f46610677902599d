//! System calls that have no safe wrapper, one a function.

use std::io::{Error, Result};
use std::mem::{MaybeUninit, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, c_ulong, c_void};

fn done(result: c_int) -> Result<c_int> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

fn owned(fd: c_int) -> Result<OwnedFd> {
    // SAFETY: a call that succeeded returned this new descriptor, which nobody else owns.
    done(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What is to happen on a signal; flags and mask as the kernel has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Action {
    pub(crate) handler: usize,
    pub(crate) flags: c_int,
    pub(crate) mask: Vec<c_int>,
}

/// The action of a signal, or `None` for a number that is reserved.
pub(crate) fn action(signal: c_int) -> Option<Action> {
    let mut raw = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: only reads, into memory of the right type.
    if unsafe { libc::sigaction(signal, std::ptr::null(), raw.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the call succeeded and filled it in.
    let raw = unsafe { raw.assume_init() };
    // SAFETY: the set is initialised.
    let is_in = |number: &c_int| unsafe { libc::sigismember(&raw const raw.sa_mask, *number) } == 1;
    Some(Action { handler: raw.sa_sigaction, flags: raw.sa_flags, mask: (1..=64).filter(is_in).collect() })
}

/// Sets a handler. It may only touch atomics.
pub(crate) fn handle(
    signal: c_int,
    handler: extern "C" fn(c_int),
    flags: c_int,
    mask: &[c_int],
) -> Result<()> {
    // SAFETY: all zero is a valid value of the structure.
    let mut raw: libc::sigaction = unsafe { zeroed() };
    raw.sa_sigaction = handler as *const () as usize;
    raw.sa_flags = flags;
    // SAFETY: the set is a valid object and the numbers are signals.
    mask.iter().for_each(|&number| unsafe { _ = libc::sigaddset(&raw mut raw.sa_mask, number) });
    // SAFETY: the handler is async-signal-safe, as the caller promises.
    done(unsafe { libc::sigaction(signal, &raw const raw, std::ptr::null_mut()) }).map(drop)
}

/// The alternate signal stack of this thread: address, size, flags.
pub(crate) fn alternate_stack() -> Result<(usize, usize, c_int)> {
    let mut raw = MaybeUninit::<libc::stack_t>::zeroed();
    // SAFETY: only reads, into memory of the right type.
    done(unsafe { libc::sigaltstack(std::ptr::null(), raw.as_mut_ptr()) })?;
    // SAFETY: the call filled it in.
    let raw = unsafe { raw.assume_init() };
    Ok((raw.ss_sp as usize, raw.ss_size, raw.ss_flags))
}

/// Gives this thread an alternate stack that is never freed.
pub(crate) fn set_alternate_stack(memory: &'static mut [u8]) -> Result<()> {
    let raw =
        libc::stack_t { ss_sp: memory.as_mut_ptr().cast::<c_void>(), ss_flags: 0, ss_size: memory.len() };
    // SAFETY: the memory lives for ever and nobody else uses it.
    done(unsafe { libc::sigaltstack(&raw const raw, std::ptr::null_mut()) }).map(drop)
}

/// Queues a signal with a value for this process.
pub(crate) fn queue(signal: c_int, value: usize) -> Result<()> {
    let value = libc::sigval { sival_ptr: value as *mut c_void };
    // SAFETY: no memory is touched; the value is not used as a pointer.
    done(unsafe { libc::sigqueue(libc::getpid(), signal, value) }).map(drop)
}

/// Takes a pending signal with its value; `None` when there is none of these.
pub(crate) fn take(signals: &[c_int]) -> Option<(c_int, usize)> {
    // SAFETY: all zero is a valid value of both.
    let (mut set, now): (libc::sigset_t, libc::timespec) = unsafe { (zeroed(), zeroed()) };
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the set is a valid object and the numbers are signals.
    signals.iter().for_each(|&number| unsafe { _ = libc::sigaddset(&raw mut set, number) });
    // SAFETY: set, info and timeout are valid for the call.
    let signal = unsafe { libc::sigtimedwait(&raw const set, info.as_mut_ptr(), &raw const now) };
    // SAFETY: the call filled it in, with a value because `queue` sent one (else it is zero).
    (signal > 0).then(|| (signal, unsafe { info.assume_init().si_value().sival_ptr as usize }))
}

/// An interval timer (`ITIMER_*`): seconds to go, and its interval.
pub(crate) fn interval_timer(which: c_int) -> Result<(i64, i64)> {
    // SAFETY: all zero is a valid value.
    let mut raw: libc::itimerval = unsafe { zeroed() };
    // SAFETY: only reads, into memory of the right type. The type of `which` differs between C libraries.
    done(unsafe { libc::getitimer(which as _, &raw mut raw) })?;
    Ok((raw.it_value.tv_sec, raw.it_interval.tv_sec))
}

/// Sets an interval timer.
pub(crate) fn set_interval_timer(which: c_int, seconds: i64, interval: i64) -> Result<()> {
    let time = |tv_sec| libc::timeval { tv_sec, tv_usec: 0 };
    let raw = libc::itimerval { it_value: time(seconds), it_interval: time(interval) };
    // SAFETY: the structure is valid for the call.
    done(unsafe { libc::setitimer(which as _, &raw const raw, std::ptr::null_mut()) }).map(drop)
}

/// A POSIX timer by the kernel's id.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PosixTimer(c_int);

impl PosixTimer {
    /// A timer that sends `signal` with `value`.
    pub(crate) fn new(clock: libc::clockid_t, signal: c_int, value: usize) -> Result<Self> {
        // SAFETY: all zero is a valid value.
        let mut event: libc::sigevent = unsafe { zeroed() };
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = signal;
        event.sigev_value = libc::sigval { sival_ptr: value as *mut c_void };
        let mut id: c_int = 0;
        // SAFETY: the kernel reads the event and writes the id (an int).
        let result = unsafe { libc::syscall(libc::SYS_timer_create, clock, &raw const event, &raw mut id) };
        if result < 0 { Err(Error::last_os_error()) } else { Ok(Self(id)) }
    }

    pub(crate) fn id(self) -> c_int {
        self.0
    }

    /// Arms it: first and further expiries, nanoseconds.
    pub(crate) fn arm(self, first_ns: i64, interval_ns: i64) -> Result<()> {
        let raw = libc::itimerspec { it_value: time(first_ns), it_interval: time(interval_ns) };
        let none = std::ptr::null_mut::<libc::itimerspec>();
        // SAFETY: the structure is valid for the call.
        let result = unsafe { libc::syscall(libc::SYS_timer_settime, self.0, 0, &raw const raw, none) };
        if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
    }

    /// What is left, and the interval, nanoseconds.
    pub(crate) fn left(self) -> Result<(i64, i64)> {
        // SAFETY: all zero is a valid value.
        let mut raw: libc::itimerspec = unsafe { zeroed() };
        // SAFETY: the structure is valid for the call.
        let result = unsafe { libc::syscall(libc::SYS_timer_gettime, self.0, &raw mut raw) };
        let ns = |time: libc::timespec| time.tv_sec * 1_000_000_000 + time.tv_nsec;
        if result < 0 { Err(Error::last_os_error()) } else { Ok((ns(raw.it_value), ns(raw.it_interval))) }
    }

    /// Removes it; ids of others stay.
    pub(crate) fn delete(self) {
        // SAFETY: no memory is touched.
        unsafe { libc::syscall(libc::SYS_timer_delete, self.0) };
    }
}

fn time(ns: i64) -> libc::timespec {
    libc::timespec { tv_sec: ns / 1_000_000_000, tv_nsec: ns % 1_000_000_000 }
}

/// `prctl` with a number as its argument.
pub(crate) fn prctl(option: c_int, argument: c_ulong) -> Result<c_int> {
    // SAFETY: used with options that take and return numbers only.
    done(unsafe { libc::prctl(option, argument, 0, 0, 0) })
}

/// Sets this thread's scheduling policy, at priority 0.
pub(crate) fn set_policy(policy: c_int) -> Result<()> {
    let parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: the structure is valid for the call; 0 is the calling thread.
    done(unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) }).map(drop)
}

/// This thread's scheduling policy.
pub(crate) fn policy() -> c_int {
    // SAFETY: no memory is touched.
    unsafe { libc::sched_getscheduler(0) }
}

/// This thread's nice value.
pub(crate) fn nice() -> c_int {
    // SAFETY: no memory is touched.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

/// Sets this thread's nice value.
pub(crate) fn set_nice(nice: c_int) -> Result<()> {
    // SAFETY: no memory is touched.
    done(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) }).map(drop)
}

/// This thread's robust list: address of its head, and the head's size.
pub(crate) fn robust_list() -> Result<(usize, usize)> {
    let (mut head, mut size) = (0_usize, 0_usize);
    // SAFETY: the kernel writes a pointer and a size into the two words.
    let result = unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut size) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok((head, size)) }
}

/// `fcntl` with a number as its argument.
pub(crate) fn fcntl(fd: BorrowedFd, command: c_int, argument: c_int) -> Result<c_int> {
    // SAFETY: used with commands that take and return numbers only.
    done(unsafe { libc::fcntl(fd.as_raw_fd(), command, argument) })
}

/// Bytes that wait to be read.
pub(crate) fn waiting(fd: BorrowedFd) -> Result<c_int> {
    let mut bytes = 0;
    // SAFETY: the kernel writes an int.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut bytes) })?;
    Ok(bytes)
}

/// Rows and columns of a terminal.
pub(crate) fn window_size(fd: BorrowedFd) -> Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes a winsize.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) })?;
    Ok((size.ws_row, size.ws_col))
}

/// A descriptor of inotify with a watch on `/tmp`.
pub(crate) fn inotify() -> Result<OwnedFd> {
    // SAFETY: no memory is touched.
    let fd = owned(unsafe { libc::inotify_init1(libc::IN_CLOEXEC) })?;
    // SAFETY: the path is a C string.
    done(unsafe { libc::inotify_add_watch(fd.as_raw_fd(), c"/tmp".as_ptr(), libc::IN_CREATE) })?;
    Ok(fd)
}

/// Makes a System V semaphore that stays until its IPC namespace goes.
pub(crate) fn semaphore() -> Result<c_int> {
    // SAFETY: semget takes numbers only.
    done(unsafe { libc::semget(libc::IPC_PRIVATE, 1, 0o600) })
}

/// An io_uring of four entries.
pub(crate) fn io_uring() -> Result<OwnedFd> {
    // The kernel's `struct io_uring_params` is 120 bytes; all zero asks for nothing special.
    let mut parameters = [0_u64; 15];
    // SAFETY: the kernel reads and writes the structure.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, parameters.as_mut_ptr()) };
    owned(c_int::try_from(fd).unwrap_or(-1))
}

/// The CPU that this thread runs on, asked from the kernel.
pub(crate) fn cpu_by_kernel() -> u32 {
    let mut cpu = 0_u32;
    // SAFETY: the kernel writes an unsigned int.
    unsafe { libc::syscall(libc::SYS_getcpu, &raw mut cpu, 0, 0) };
    cpu
}

/// The CPU that this thread runs on, as glibc reads it from the thread's rseq area.
pub(crate) fn cpu_by_rseq() -> u32 {
    // SAFETY: no memory is touched but glibc's own.
    u32::try_from(unsafe { libc::sched_getcpu() }).unwrap_or(u32::MAX)
}

/// Adds a real-time signal, which `nix` has no name for, to a set.
pub(crate) fn add_to_set(set: &mut nix::sys::signal::SigSet, signal: c_int) {
    let mut raw = *set.as_ref();
    // SAFETY: the set is initialised and the number is a signal.
    unsafe { libc::sigaddset(&raw mut raw, signal) };
    // SAFETY: it was made from a valid set.
    *set = unsafe { nix::sys::signal::SigSet::from_sigset_t_unchecked(raw) };
}
