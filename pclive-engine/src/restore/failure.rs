//! Why the small state of a task could not be put in place.

use nix::Error;

use crate::capture::failure::CaptureStateError;
use crate::model::{Pid, Vpid};
use crate::remote::{Answers, RemoteError, RemoteTask, Ticket};

/// Failure to restore the small state of a task. The restorer is not fit to run and has to be discarded.
#[derive(Debug, thiserror::Error)]
pub enum RestoreStateError {
    /// A batch of remote calls failed as a whole.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// What the restorer has now could not be read.
    #[error("cannot compare the restored state with the source's")]
    Compare(#[from] CaptureStateError),
    /// One remote call failed.
    #[error("cannot {what} of task {vpid} (inside the container)")]
    Call {
        /// The task.
        vpid: Vpid,
        /// "set the hard limit RLIMIT_NOFILE to 1048576" ...
        what: String,
        /// The call's errno.
        source: Error,
    },
    /// The created container may not do what the source has done.
    #[error(
        "cannot {what} of task {vpid} (inside the container): the created container lacks {needs}; create it from the source's configuration"
    )]
    Privilege {
        /// The task.
        vpid: Vpid,
        /// "set the user ids to 0, 33, 33, 33" ...
        what: String,
        /// "CAP_SETUID" ...
        needs: &'static str,
        /// The call's errno.
        source: Error,
    },
    /// A ptrace request, a system call on the task or a write to its `/proc` files failed.
    #[error("cannot {what} of task {pid}")]
    Request {
        /// The task.
        pid: Pid,
        /// "set the CPU affinity" ...
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The source's state is not what any kernel reports.
    #[error("the state of task {vpid} (inside the container) is not valid: {what}")]
    Invalid {
        /// The task.
        vpid: Vpid,
        /// "3 bytes of registers" ...
        what: String,
    },
    /// This host cannot hold the state.
    #[error("task {vpid} (inside the container) needs {what}")]
    Unfit {
        /// The task.
        vpid: Vpid,
        /// "the CPU features AVX-512, which this host does not have" ...
        what: String,
    },
}

/// What can be said of a task when a call in it fails.
pub(super) fn expect(
    answers: &Answers,
    ticket: Ticket,
    task: &dyn RemoteTask,
    what: impl FnOnce() -> String,
) -> Result<u64, RestoreStateError> {
    answers.result(ticket).map_err(|source| RestoreStateError::Call {
        vpid: task.vpid(),
        what: what(),
        source,
    })
}

/// Calls whose failure is fatal, each with what it is for.
#[derive(Debug, Default)]
pub(super) struct Checks(Vec<(Ticket, &'static str)>);

impl Checks {
    pub(super) fn add(&mut self, ticket: Ticket, what: &'static str) {
        self.0.push((ticket, what));
    }

    pub(super) fn take(&self, answers: &Answers, task: &dyn RemoteTask) -> Result<(), RestoreStateError> {
        for (ticket, what) in &self.0 {
            expect(answers, *ticket, task, || (*what).to_owned())?;
        }
        Ok(())
    }
}

/// Adapts the errno of a system call on the task from outside.
pub(super) fn request(pid: Pid, what: &'static str) -> impl FnOnce(Error) -> RestoreStateError {
    move |source| RestoreStateError::Request { pid, what, source: source.into() }
}
