//! The lines of one end: how many live, and since when none does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// One connection that a conversation goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LineId(u64);

/// Lines come and go, from any task.
#[derive(Debug, Clone, Default)]
pub(super) struct Lines {
    state: Arc<watch::Sender<State>>,
    last_id: Arc<AtomicU64>,
}

#[derive(Debug, Clone, Default)]
struct State {
    alive: usize,
    /// The last line broke then; nothing is known of a conversation that has not had one.
    broken_at: Option<Instant>,
    why: Option<Status>,
}

/// A line that lives until this is dropped.
#[derive(Debug)]
pub(crate) struct Line {
    id: LineId,
    lines: Lines,
    left: bool,
    /// Another one has taken its place.
    pub(super) replaced: CancellationToken,
}

impl Lines {
    pub(super) fn enter(&self) -> Line {
        let id = LineId(self.last_id.fetch_add(1, Ordering::Relaxed));
        self.state.send_modify(|state| {
            state.alive += 1;
            state.broken_at = None;
        });
        Line { id, lines: self.clone(), left: false, replaced: CancellationToken::new() }
    }

    /// Ends with the reason once no line has lived for so long.
    pub(super) async fn lost(&self, patience: Duration) -> Status {
        let mut state = self.state.subscribe();
        loop {
            let (broken_at, why) = {
                let state = state.borrow_and_update();
                (state.broken_at, state.why.clone())
            };
            let patience_ends = async {
                match broken_at.and_then(|at| at.checked_add(patience)) {
                    Some(end) => tokio::time::sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                // The sender is a part of this.
                _ = state.changed() => {}
                () = patience_ends => return why.unwrap_or_else(|| Status::unavailable("the connection ended")),
            }
        }
    }
}

impl Line {
    /// For what is said on it.
    pub(crate) fn id(&self) -> LineId {
        self.id
    }

    /// The other end has said everything: the line's end is no loss.
    pub(super) fn leave(&mut self) {
        if !std::mem::replace(&mut self.left, true) {
            self.lines.state.send_modify(|state| state.alive -= 1);
        }
    }

    /// Why it breaks.
    pub(super) fn broke(&self, why: &Status) {
        self.lines.state.send_modify(|state| state.why = Some(why.clone()));
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.left {
            self.lines.state.send_modify(|state| {
                state.alive -= 1;
                if state.alive == 0 {
                    state.broken_at = Some(Instant::now());
                }
            });
        }
    }
}
