//! Threads that sit inside system calls: they must still be there, and return what they should when the time comes.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::time::{ClockId, ClockNanosleepFlags, clock_nanosleep};

use crate::{Check, State, calls, same};

pub(crate) const STATES: &[State] = &[
    ("in-read", in_read),
    ("in-poll", in_poll),
    ("in-epoll-wait", in_epoll_wait),
    ("in-futex", in_futex),
    ("in-long-sleep", in_long_sleep),
    ("in-short-sleeps", in_short_sleeps),
    ("in-timed-poll", in_timed_poll),
    ("thread-attributes", thread_attributes),
];

/// How long a thread may take to notice.
const LIMIT: Duration = Duration::from_secs(10);

/// Starts a thread that takes no signals: one that came while the others are stopped would interrupt its call.
pub(crate) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let started = std::thread::Builder::new().name(name.into()).spawn(work);
    before.thread_set_mask()?;
    Ok(started.map(drop)?)
}

/// A thread that makes `call` again and again and tells each result; `wake` makes the call return `expected`.
fn blocked(
    mut call: impl FnMut() -> String + Send + 'static,
    mut wake: impl FnMut() -> Result<()> + 'static,
    expected: &'static str,
) -> Result<Check> {
    let (tell, told) = channel();
    spawn("blocked", move || while tell.send(call()).is_ok() {})?;
    Ok(Box::new(move || {
        still_blocked(&told)?;
        wake()?;
        let result = told.recv_timeout(LIMIT).context("the call did not return")?;
        same("result", &expected.to_owned(), &result)
    }))
}

fn still_blocked(told: &Receiver<String>) -> Result<()> {
    match told.try_recv() {
        Err(TryRecvError::Empty) => Ok(()),
        Err(TryRecvError::Disconnected) => bail!("the thread has ended"),
        Ok(result) => bail!("the call returned too early: {result}"),
    }
}

fn in_read() -> Result<Check> {
    let (mut reader, mut writer) = std::io::pipe()?;
    let call = move || {
        let mut byte = [0];
        format!("{:?} {byte:?}", reader.read(&mut byte))
    };
    blocked(call, move || Ok(writer.write_all(&[1])?), "Ok(1) [1]")
}

fn in_poll() -> Result<Check> {
    let event = Arc::new(EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK)?);
    let watched = Arc::clone(&event);
    let call = move || {
        let mut fds = [PollFd::new(watched.as_fd(), PollFlags::POLLIN)];
        let result = poll(&mut fds, PollTimeout::NONE);
        format!("{result:?} {:?}", watched.read())
    };
    blocked(call, move || event.write(1).map(drop).map_err(Into::into), "Ok(1) Ok(1)")
}

fn in_epoll_wait() -> Result<Check> {
    let event = Arc::new(EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK)?);
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    epoll.add(&*event, EpollEvent::new(EpollFlags::EPOLLIN, 42))?;
    let watched = Arc::clone(&event);
    let call = move || {
        let mut events = [EpollEvent::empty(); 2];
        let result = epoll.wait(&mut events, EpollTimeout::NONE);
        format!("{result:?} {} {:?}", events[0].data(), watched.read())
    };
    blocked(call, move || event.write(1).map(drop).map_err(Into::into), "Ok(1) 42 Ok(1)")
}

fn in_futex() -> Result<Check> {
    let gate = Arc::new((Mutex::new(0_u32), Condvar::new()));
    let waiting = Arc::clone(&gate);
    let call = move || {
        let (tokens, changed) = &*waiting;
        let tokens = tokens.lock().and_then(|tokens| changed.wait_while(tokens, |tokens| *tokens == 0));
        tokens.map_or_else(
            |error| error.to_string(),
            |mut tokens| {
                *tokens -= 1;
                "woken".into()
            },
        )
    };
    let wake = move || {
        let (tokens, changed) = &*gate;
        *tokens.lock().map_err(|error| anyhow::anyhow!("{error}"))? += 1;
        changed.notify_one();
        Ok(())
    };
    blocked(call, wake, "woken")
}

/// A sleep that outlives the test: it must not end.
fn in_long_sleep() -> Result<Check> {
    let (tell, told) = channel();
    spawn("sleeper", move || {
        let hour = nix::sys::time::TimeSpec::new(36_000, 0);
        let result = clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::empty(), &hour);
        // The receiver lives as long as the program.
        let _ = tell.send(format!("{result:?}"));
    })?;
    Ok(Box::new(move || still_blocked(&told)))
}

/// Counts calls and keeps the first that did not do what it should.
#[derive(Debug, Default)]
struct Tally {
    count: AtomicU64,
    failed: AtomicBool,
    failure: Mutex<Option<String>>,
}

impl Tally {
    fn note(&self, result: Result<(), String>) {
        self.count.fetch_add(1, Ordering::SeqCst);
        if let Err(what) = result {
            self.failed.store(true, Ordering::SeqCst);
            self.failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(what);
        }
    }

    /// Three more calls, and none that failed.
    fn goes_on(&self) -> Result<()> {
        let before = self.count.load(Ordering::SeqCst);
        pclive_tests::wait::until("three more calls", LIMIT, || {
            Ok(self.count.load(Ordering::SeqCst) >= before + 3)
        })?;
        let failure = self.failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        ensure!(!self.failed.load(Ordering::SeqCst), "a call failed: {failure:?}");
        Ok(())
    }
}

/// Makes `call`, which is to take `least` at least, again and again.
fn repeated(least: Duration, mut call: impl FnMut() -> Result<(), String> + Send + 'static) -> Result<Check> {
    let tally = Arc::new(Tally::default());
    let noted = Arc::clone(&tally);
    spawn("repeater", move || {
        loop {
            let start = Instant::now();
            let result = call();
            let took = start.elapsed();
            noted.note(
                result.and_then(
                    |()| {
                        if took < least { Err(format!("it took only {took:?}")) } else { Ok(()) }
                    },
                ),
            );
        }
    })?;
    Ok(Box::new(move || tally.goes_on()))
}

/// Sleeps of 40 ms are interrupted by every stop and must each end well and not too early.
fn in_short_sleeps() -> Result<Check> {
    let time = nix::sys::time::TimeSpec::new(0, 40_000_000);
    repeated(Duration::from_millis(40), move || {
        clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::empty(), &time)
            .map(drop)
            .map_err(|error| error.to_string())
    })
}

/// The same with poll, whose restart the kernel does differently.
fn in_timed_poll() -> Result<Check> {
    let (reader, writer) = std::io::pipe()?;
    repeated(Duration::from_millis(60), move || {
        let _alive = &writer;
        match poll(&mut [PollFd::new(reader.as_fd(), PollFlags::POLLIN)], PollTimeout::from(60_u16)) {
            Ok(0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
}

/// What each thread has for itself: name, nice, robust list, CPU by rseq.
fn thread_attributes() -> Result<Check> {
    let (ask, asked) = channel::<()>();
    let (tell, told) = channel();
    spawn("own (name)", move || {
        let look = || -> Result<_> {
            let comm = std::fs::read_to_string("/proc/thread-self/comm")?;
            Ok((comm, nix::unistd::gettid(), calls::nice(), calls::robust_list()?, rseq_follows()?))
        };
        // Raising it is always allowed; the look shows it.
        let _ = calls::set_nice(7);
        while tell.send(look().map_err(|error| error.to_string())).is_ok() && asked.recv().is_ok() {}
    })?;
    let before = told.recv_timeout(LIMIT)?;
    ensure!(before.is_ok(), "{before:?}");
    Ok(Box::new(move || {
        ask.send(())?;
        same("attributes of the thread", &before, &told.recv_timeout(LIMIT)?)
    }))
}

/// Whether the rseq area of this thread is kept up to date by the kernel, on every CPU.
fn rseq_follows() -> Result<bool> {
    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
    let this = nix::unistd::Pid::from_raw(0);
    let before = sched_getaffinity(this)?;
    let mut follows = true;
    for cpu in 0..2 {
        let mut one = CpuSet::new();
        one.set(cpu)?;
        if sched_setaffinity(this, &one).is_ok() {
            follows &= calls::cpu_by_rseq() == calls::cpu_by_kernel();
        }
    }
    sched_setaffinity(this, &before)?;
    Ok(follows)
}
