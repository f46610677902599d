//! Why the small state of a task could not be captured.

use nix::Error;

use crate::model::{Pid, Vpid};
use crate::proc::auxv::AuxvError;
use crate::proc::maps::ParseError;
use crate::proc::stat::StatError;
use crate::proc::status::StatusError;
use crate::proc::timers::TimersError;
use crate::remote::{Answers, RemoteError, Ticket};

/// Failure to capture the small state of a task. The task is as it was.
#[derive(Debug, thiserror::Error)]
pub enum CaptureStateError {
    /// A batch of remote calls failed as a whole.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// One remote call failed.
    #[error("cannot read the {what} of task {vpid} (inside the container)")]
    Call {
        /// The task.
        vpid: Vpid,
        /// "signal actions", "user ids" ...
        what: &'static str,
        /// The call's errno.
        source: Error,
    },
    /// A ptrace request or a system call on the task failed.
    #[error("cannot read the {what} of task {pid}")]
    Request {
        /// The task.
        pid: Pid,
        /// "extended registers", "scheduling attributes" ...
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A file in `/proc` cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file in `/proc` says something unexpected.
    #[error("cannot understand {path}")]
    Text {
        /// The file.
        path: String,
        /// What.
        source: TextError,
    },
    /// Something that cannot be carried, which only shows once the task is stopped.
    #[error("cannot migrate task {vpid} (inside the container): {what}; {hint}")]
    Unsupported {
        /// The task.
        vpid: Vpid,
        /// What it has.
        what: String,
        /// What can be done about it.
        hint: &'static str,
    },
}

/// What is wrong with the text of a `/proc` file.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A stat file.
    #[error(transparent)]
    Stat(#[from] StatError),
    /// A status file.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// A timers file.
    #[error(transparent)]
    Timers(#[from] TimersError),
    /// An auxv file.
    #[error(transparent)]
    Auxv(#[from] AuxvError),
    /// A maps or smaps file.
    #[error(transparent)]
    Maps(#[from] ParseError),
    /// A file that holds one number.
    #[error("not a number: {0:?}")]
    Number(String),
}

/// Reads a file of a task: `name` is relative to `/proc/PID/`.
pub(super) fn read_file(pid: Pid, name: &str) -> Result<(String, Vec<u8>), CaptureStateError> {
    let path = format!("/proc/{pid}/{name}");
    match crate::proc::read(&path) {
        Ok(bytes) => Ok((path, bytes)),
        Err(source) => Err(CaptureStateError::Read { path, source }),
    }
}

/// Reads a file of a task and parses it.
pub(crate) fn read_text<T, E: Into<TextError>>(
    pid: Pid,
    name: &str,
    parse: impl FnOnce(&[u8]) -> Result<T, E>,
) -> Result<T, CaptureStateError> {
    let (path, bytes) = read_file(pid, name)?;
    parse(&bytes).map_err(|error| CaptureStateError::Text { path, source: error.into() })
}

/// The result of a call that has to succeed.
pub(super) fn expect(
    answers: &Answers,
    ticket: Ticket,
    vpid: Vpid,
    what: &'static str,
) -> Result<u64, CaptureStateError> {
    answers.result(ticket).map_err(|source| CaptureStateError::Call { vpid, what, source })
}

/// The result of a call that an older kernel, or one without an option, does not know: `None`.
pub(super) fn optional(
    answers: &Answers,
    ticket: Ticket,
    vpid: Vpid,
    what: &'static str,
) -> Result<Option<u64>, CaptureStateError> {
    match answers.result(ticket) {
        Ok(value) => Ok(Some(value)),
        Err(Error::EINVAL | Error::ENOSYS | Error::ENODEV | Error::ENXIO | Error::EOPNOTSUPP) => Ok(None),
        Err(source) => Err(CaptureStateError::Call { vpid, what, source }),
    }
}

/// The result of a call that an older kernel does not know, as a word; 0 if it does not.
pub(super) fn word_or_zero(
    answers: &Answers,
    ticket: Ticket,
    vpid: Vpid,
    what: &'static str,
) -> Result<u32, CaptureStateError> {
    Ok(optional(answers, ticket, vpid, what)?.unwrap_or(0) as u32)
}
