//! Reaps tracees that end while their tracer waits inside of the kernel.
//!
//! A task that executes a program waits until the other threads of its process are gone, and a traced one is gone only
//! when its tracer has reaped it. Meanwhile it holds a lock that `PTRACE_SEIZE` of any task of that process wants
//! (`cred_guard_mutex`; de_thread in fs/exec.c, ptrace_attach in kernel/ptrace.c): the tracer would wait for itself, for
//! ever. Any thread of the tracer's process may reap, so one does, as soon as the tracer makes no progress. What it
//! reaps is [`TraceError::Gone`](super::TraceError::Gone) to the tracer.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::model::Pid;
use crate::sys::wait;

/// Without progress for so long, the tracer may be waiting: longer than seizing a task takes.
const QUIET: Duration = Duration::from_millis(10);

/// Looks after the tracees of one thread. Ends when it is dropped.
#[derive(Debug)]
pub struct Reaper {
    watched: Arc<Watched>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Watched {
    state: Mutex<State>,
    over: Condvar,
}

#[derive(Debug, Default)]
struct State {
    tasks: Vec<Pid>,
    over: bool,
}

impl Reaper {
    /// Begins to look. Without a thread for it nothing is reaped.
    pub fn start() -> Self {
        let watched = Arc::<Watched>::default();
        let own = Arc::clone(&watched);
        let thread = std::thread::Builder::new().name("reaper".into()).spawn(move || own.reap());
        let thread = thread.inspect_err(|error| tracing::warn!("no tracee is reaped: {error}")).ok();
        Self { watched, thread }
    }

    /// A task is a tracee from now on: progress.
    pub fn watch(&self, task: Pid) {
        self.watched.state().tasks.push(task);
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.watched.state().over = true;
        self.watched.over.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Watched {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reap(&self) {
        let mut known = 0;
        let mut state = self.state();
        while !state.over {
            let waited = self.over.wait_timeout(state, QUIET);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.tasks.len() > known {
                known = state.tasks.len();
                continue;
            }
            // One that has not ended is left alone, whatever else it has to report.
            state.tasks.retain(|task| !wait::reap(*task));
            known = state.tasks.len();
        }
    }
}
