//! Why a command ends early.
//!
//! A refusal is the agent's own [`Error`], which came in the details of a status; everything else happened on the
//! way to the agent and is put into the same form here, so that people and programs meet one kind of error.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use pclive_proto::control::{Error, Phase};
use pclive_tls::{End, Fault};
use thiserror::Error as ThisError;
use tonic::{Code, Status};

use crate::address::Address;
use crate::certs::CertsError;
use crate::exit::Exit;

/// A command could not be carried out, or a migration could not be followed to its end.
#[derive(Debug, ThisError)]
pub(crate) enum Failure {
    /// This program's own surroundings: no runtime, no signal handler.
    #[error("cannot start")]
    Runtime {
        /// What the system said.
        source: io::Error,
    },
    /// Nobody answers at the agent's address; nothing was asked.
    #[error("cannot reach the agent at {agent}")]
    Unreachable {
        /// Where it was expected.
        agent: Address,
        /// What went wrong on the way.
        source: tonic::transport::Error,
    },
    /// https without certificates that can be used; nothing was asked.
    #[error("cannot use the certificates for https")]
    Credentials {
        /// What is wrong with them.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// Certificates could not be made or shown.
    #[error(transparent)]
    Certs(#[from] CertsError),
    /// The agent refused, or the connection broke during a call.
    #[error("cannot {what}")]
    Call {
        /// The call, as a verb and its operand.
        what: String,
        /// What came back.
        source: Box<Status>,
    },
    /// The call that starts a migration got no answer: there may be one.
    #[error("it is not known whether the migration of {container} has started")]
    StartUnknown {
        /// The container.
        container: String,
        /// What came back.
        source: Box<Status>,
    },
    /// The agent no longer tells what became of a migration.
    #[error("cannot learn what became of migration {id}")]
    OutcomeUnknown {
        /// The migration.
        id: String,
        /// The phase last heard of.
        phase: Phase,
        /// Why the last question failed.
        source: Box<Failure>,
    },
    /// A page could not be written.
    #[error("cannot write {path}")]
    Page {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Standard output does not take what we write.
    #[error("cannot write the output")]
    Output(#[from] io::Error),
}

impl Failure {
    /// A failed call.
    pub(crate) fn call(what: impl Into<String>, status: Status) -> Self {
        Self::Call { what: what.into(), source: Box::new(status) }
    }

    /// Whether the agent itself answered: the question is settled, and asking again gives the same.
    pub(crate) fn is_answer(&self) -> bool {
        matches!(self, Self::Call { source, .. } if is_answer(source))
    }

    /// Whether the reader of our output has gone (`pclivectl ... | head`).
    pub(crate) fn is_closed_output(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// What a script may conclude.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::StartUnknown { .. } | Self::OutcomeUnknown { .. } => Exit::Unknown,
            Self::Call { source, .. } if is_in_doubt(source) => Exit::Unknown,
            Self::Output(_) => Exit::Left,
            Self::Runtime { .. }
            | Self::Page { .. }
            | Self::Unreachable { .. }
            | Self::Credentials { .. }
            | Self::Certs(_)
            | Self::Call { .. } => Exit::Failed,
        }
    }

    /// The same in the form of the control API.
    pub(crate) fn to_error(&self) -> Error {
        match self {
            Self::Runtime { source } => local("local", format!("{self}: {source}"), String::new()),
            Self::Page { source, .. } => local(
                "output",
                format!("{self}: {source}"),
                "name another file, or - for the standard output: pclivectl report --output FILE".to_owned(),
            ),
            Self::Output(source) => local("output", format!("{self}: {source}"), String::new()),
            Self::Credentials { source } => local(
                "credentials",
                format!("{self}: {}", with_causes(source.as_ref())),
                "an operator issues them: pclivectl certs issue --role viewer|operator NAME".to_owned(),
            ),
            Self::Certs(error) => local("certs", with_causes(error), error.hint().to_owned()),
            Self::Unreachable { agent, source } => unreachable(self, agent, source),
            Self::Call { what, source } => refused(what, source),
            Self::StartUnknown { source, .. } => local(
                "start-unknown",
                format!("{self}: the connection to the agent broke ({})", reason(source)),
                "see whether it is there: pclivectl list".to_owned(),
            ),
            Self::OutcomeUnknown { id, phase, source } => Error {
                phase: (*phase).into(),
                ..local("outcome-unknown", format!("{self}: {}", source.to_error().message), outcome_hint(id))
            },
        }
    }
}

/// Whether a status was made by the agent and not by the way to it.
pub(crate) fn is_answer(status: &Status) -> bool {
    if Error::from_status(status).is_some() {
        return true;
    }
    let in_transit = [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled, Code::Unknown];
    status.source().is_none() && !in_transit.contains(&status.code())
}

/// Whether the agent itself does not know where the container runs.
fn is_in_doubt(status: &Status) -> bool {
    Error::from_status(status).is_some_and(|error| error.code == "commit-unknown")
}

fn outcome_hint(id: &str) -> String {
    format!(
        "ask again when the agent answers: pclivectl status {id}; until then look for the container at both hosts \
         and start it nowhere by hand"
    )
}

fn local(code: &str, message: String, hint: String) -> Error {
    Error { code: code.to_owned(), message, hint, ..Error::default() }
}

fn refused(what: &str, status: &Status) -> Error {
    if let Some(error) = Error::from_status(status) {
        return error;
    }
    if !is_answer(status) {
        let message = format!("cannot {what}: the connection to the agent broke ({})", reason(status));
        return Error {
            retryable: true,
            ..local("agent-lost", message, "is the agent still running?".to_owned())
        };
    }
    let (code, hint) = match status.code() {
        Code::NotFound => {
            ("not-found", "pclivectl list shows the migrations, pclivectl containers the containers")
        }
        Code::Unimplemented => {
            ("unimplemented", "the agent is older than this pclivectl, or it is not an agent")
        }
        Code::PermissionDenied | Code::Unauthenticated => ("permission-denied", "run it as root"),
        _ => ("refused", ""),
    };
    local(code, format!("cannot {what}: {}", reason(status)), hint.to_owned())
}

/// A status in words; some have no message.
fn reason(status: &Status) -> String {
    let words = if status.message().is_empty() { status.code().description() } else { status.message() };
    match io_error(status) {
        Some(error) => format!("{words}: {error}"),
        None => words.to_owned(),
    }
}

fn unreachable(failure: &Failure, agent: &Address, source: &tonic::transport::Error) -> Error {
    if let Some(Fault { what, hint }) = Fault::of(source, End::Client) {
        return local("tls-failed", format!("{failure}: {what}"), hint.to_owned());
    }
    let cause = io_error(source);
    let reason = cause.map_or_else(|| last_cause(source), ToString::to_string);
    let hint = match (agent, cause.map(io::Error::kind)) {
        (Address::Unix(_), Some(io::ErrorKind::PermissionDenied)) => {
            "the socket is for root only: run it as root"
        }
        (Address::Unix(_), Some(io::ErrorKind::ConnectionRefused)) => {
            "nobody listens there any more: is pclive-agent running? (systemctl status pclive-agent)"
        }
        (Address::Unix(_), Some(io::ErrorKind::NotFound)) => {
            "is pclive-agent running? (systemctl status pclive-agent); another socket: --agent or PCLIVE_AGENT"
        }
        (Address::Unix(_), _) => "is this the control socket of pclive-agent?",
        (Address::Http(_) | Address::Https(_), _) => {
            "is pclive-agent running there, does it listen on TCP, and does a firewall let you through?"
        }
    };
    Error { retryable: true, ..local("agent-unreachable", format!("{failure}: {reason}"), hint.to_owned()) }
}

/// The I/O error at the bottom of a transport error, if there is one.
fn io_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a io::Error> {
    std::iter::successors(Some(error), |&error| error.source())
        .filter_map(|error| error.downcast_ref())
        .last()
}

fn with_causes(error: &(dyn StdError + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn last_cause(error: &(dyn StdError + 'static)) -> String {
    std::iter::successors(Some(error), |&error| error.source()).last().unwrap_or(error).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_own_error_is_passed_on_as_it_is() {
        let error =
            Error { code: "blocked".into(), message: "no".into(), hint: "why".into(), ..Error::default() };
        let failure = Failure::call("start", error.clone().into_status(Code::Unavailable));
        assert!(failure.is_answer());
        assert_eq!(failure.to_error(), error);
        assert_eq!(failure.exit(), Exit::Failed);
    }

    #[test]
    fn a_broken_connection_is_no_answer() {
        let failure = Failure::call("list the migrations", Status::unavailable("gone"));
        assert!(!failure.is_answer());
        assert_eq!(
            failure.to_error().message,
            "cannot list the migrations: the connection to the agent broke (gone)"
        );
    }

    #[test]
    fn a_bare_status_of_the_agent_is_an_answer() {
        let failure = Failure::call("get migration x", Status::not_found("there is none"));
        assert!(failure.is_answer());
        assert_eq!(failure.to_error().code, "not-found");
        assert_eq!(failure.to_error().message, "cannot get migration x: there is none");
    }

    #[test]
    fn an_agent_in_doubt_needs_an_operator() {
        let error = Error { code: "commit-unknown".into(), ..Error::default() };
        assert_eq!(Failure::call("undo", error.into_status(Code::Unavailable)).exit(), Exit::Unknown);
    }

    #[test]
    fn an_unknown_outcome_needs_an_operator() {
        let source = Box::new(Failure::call("get migration x", Status::unavailable("gone")));
        let failure = Failure::OutcomeUnknown { id: "x".into(), phase: Phase::Frozen, source };
        assert_eq!(failure.exit(), Exit::Unknown);
        assert_eq!(failure.to_error().phase(), Phase::Frozen);
    }
}
