//! Reaps tracees that end while their tracer does not look.
//!
//! A task that executes a program waits until the other threads of its process are gone, and a traced one is gone only
//! when its tracer's process has reaped it. Meanwhile it holds a lock that `PTRACE_SEIZE` of any task of that process wants
//! (`cred_guard_mutex`; de_thread in fs/exec.c, ptrace_attach in kernel/ptrace.c): a tracer that seizes it would wait for
//! itself, for ever, and one that has lost sight of a thread would keep the others from their program.
//!
//! Any thread of the tracer's process may reap, so one does, for all tracers of the process: soon while one of them hangs
//! in a seizure or has just met an end, and now and then as long as anything is seized. What it reaps is
//! [`TraceError::Gone`](super::TraceError::Gone) to the tracer.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use crate::model::Pid;
use crate::sys::wait::{self, Report};

/// A seizure that takes so long may wait for a task that is to be reaped.
const SOON: Duration = Duration::from_millis(10);
/// What nobody waits for.
const NOW_AND_THEN: Duration = Duration::from_secs(1);
/// How long a task that is said to be gone may take to end.
const LAST_BREATH: Duration = Duration::from_millis(100);

// Who may reap is decided by the kernel for the process as a whole, and so it is here.
static TRACEES: Mutex<Tracees> = Mutex::new(Tracees::new());
static CALLED: Condvar = Condvar::new();

/// What the tracers of this process have seized.
#[derive(Debug)]
struct Tracees {
    all: BTreeSet<Pid>,
    /// Seizures under way: number and begin.
    seizing: BTreeMap<u64, Instant>,
    next: u64,
    /// Until then, some of them are about to end.
    ending_until: Option<Instant>,
    /// The thread looks soon, without being called.
    attentive: bool,
}

/// Seizes a task by `seize`, which may wait for the end of other tracees.
pub(super) fn seize(pid: Pid, seize: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    start();
    let mut tracees = lock();
    let number = tracees.next;
    tracees.next += 1;
    tracees.seizing.insert(number, Instant::now());
    tracees.call();
    drop(tracees);
    let seized = seize();
    let mut tracees = lock();
    tracees.seizing.remove(&number);
    if seized.is_ok() {
        tracees.all.insert(pid);
    }
    seized
}

/// A task is a tracee of this thread, by whatever way.
pub(super) fn remember(pid: Pid) {
    lock().all.insert(pid);
}

/// A task is no tracee any more.
pub(super) fn forget(pid: Pid) {
    lock().all.remove(&pid);
}

/// A task turned out to be gone, or not stopped: if it is a tracee that ends it is reaped, now or as soon as it has ended.
pub(super) fn bury(pid: Pid) {
    if reap(pid) {
        return forget(pid);
    }
    // Others may be children of this process.
    if super::tracer(pid) == Some(Pid(0)) {
        return;
    }
    start();
    let mut tracees = lock();
    tracees.all.insert(pid);
    tracees.ending_until = Some(Instant::now() + LAST_BREATH);
    tracees.call();
}

fn start() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let started = std::thread::Builder::new().name("reaper".into()).spawn(look_after_tracees);
        if let Err(error) = started {
            tracing::error!("no thread reaps what ends while it is traced: {error}");
        }
    });
}

fn lock() -> MutexGuard<'static, Tracees> {
    TRACEES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn look_after_tracees() {
    let mut looked = Instant::now();
    let mut tracees = lock();
    loop {
        let pause = tracees.pause();
        tracees = CALLED.wait_timeout(tracees, pause).unwrap_or_else(PoisonError::into_inner).0;
        if tracees.is_waited_for() || looked.elapsed() >= NOW_AND_THEN {
            tracees.all.retain(|pid| !reap(*pid));
            looked = Instant::now();
        }
    }
}

impl Tracees {
    const fn new() -> Self {
        Self { all: BTreeSet::new(), seizing: BTreeMap::new(), next: 0, ending_until: None, attentive: false }
    }

    /// How long to wait before the next look.
    fn pause(&mut self) -> Duration {
        self.ending_until = self.ending_until.filter(|until| Instant::now() < *until);
        self.attentive = !self.seizing.is_empty() || self.ending_until.is_some();
        match (self.attentive, self.all.is_empty()) {
            (true, _) => SOON,
            (false, false) => NOW_AND_THEN,
            (false, true) => Duration::MAX,
        }
    }

    fn is_waited_for(&self) -> bool {
        self.ending_until.is_some() || self.seizing.values().any(|began| began.elapsed() >= SOON)
    }

    fn call(&self) {
        if !self.attentive {
            CALLED.notify_one();
        }
    }
}

/// Reaps a task if it has ended; what else it has to report stays. True: it is gone, by this or already.
fn reap(pid: Pid) -> bool {
    // Stops of tracees are reported whether they are asked for or not: a look first.
    match wait::poll(pid, true) {
        Ok(Report::Exited(_) | Report::Killed(_)) => {
            let _ = wait::poll(pid, false);
            true
        }
        Ok(Report::Nothing | Report::Stopped(_)) => false,
        // No tracee, and no child.
        Err(_) => true,
    }
}
