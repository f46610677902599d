//! What a failed migration says: one type from the place of the failure to the administrator's terminal.
//!
//! Each layer has its own error type (engine, runtime, network, peer); at the border of a migration it becomes a
//! [`MigrationError`], which crosses to the other agent as a `Failure`, to users as an `Error` (in an event, in
//! `GetMigration`, in the details of a status). Nothing is lost on the way: the chain of causes is joined into
//! the message, and what the peer said is kept word for word.

mod code;
mod convert;

use std::error::Error as StdError;

use pclive_engine::model::Blocker;
use pclive_proto::control::{Phase, Role};

pub use code::ErrorCode;
pub use convert::blocker_message;
pub(crate) use convert::{phase_name, printable, printable_name};

/// What helps an agent that may not open more files, whatever it wanted to do.
const DESCRIPTORS: &str =
    "raise the limit of open files of the agent that says this (LimitNOFILE= of its unit), then try again";

/// Why something that was asked for is not done, or a migration ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct MigrationError {
    /// For programs.
    pub code: ErrorCode,
    /// Who found it; unspecified outside of a migration.
    pub role: Role,
    /// How far the migration was.
    pub phase: Phase,
    /// What failed, with the causes, in words.
    pub message: String,
    /// What to do about it; empty when there is nothing to say.
    pub hint: String,
    /// True when the same request may succeed later with nothing changed.
    pub retryable: bool,
    /// Everything that stands in the way, for [`ErrorCode::Blocked`] and [`ErrorCode::NotNow`].
    pub blockers: Vec<Blocker>,
}

impl MigrationError {
    /// An error with the code's usual hint.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            role: Role::Unspecified,
            phase: Phase::Unspecified,
            message: message.into(),
            hint: code.hint().into(),
            retryable: code.is_retryable(),
            blockers: Vec::new(),
        }
    }

    /// An error that says the whole chain of causes of `source`.
    pub fn caused(code: ErrorCode, source: &(dyn StdError + 'static)) -> Self {
        let error = Self::new(code, chain(source));
        if is_out_of_descriptors(source) { error.hint(DESCRIPTORS) } else { error }
    }

    /// With another hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Says who found it and how far the migration was, unless that is known already.
    pub fn at(mut self, role: Role, phase: Phase) -> Self {
        if self.role == Role::Unspecified {
            self.role = role;
        }
        if self.phase == Phase::Unspecified {
            self.phase = phase;
        }
        self
    }

    /// Everything that stands in the way, in one error.
    pub fn blocked(container: &str, blockers: Vec<Blocker>) -> Self {
        let message = format!(
            "cannot migrate container {container}: {} in the way{}",
            if blockers.len() == 1 { "1 thing is".into() } else { format!("{} things are", blockers.len()) },
            first(&blockers)
        );
        Self { blockers, ..Self::new(ErrorCode::Blocked, message) }
    }

    /// What should have passed by itself and did not, however often the container was stopped.
    pub fn not_now(container: &str, stops: u32, blockers: Vec<Blocker>) -> Self {
        let message = format!(
            "cannot stop container {container} at a good moment, tried {stops} times{}",
            first(&blockers)
        );
        Self { blockers, ..Self::new(ErrorCode::NotNow, message) }
    }
}

/// The first blocker in words, for logs; users see the whole list beside the message.
fn first(blockers: &[Blocker]) -> String {
    blockers
        .first()
        .map(|blocker| format!(": pid {}, {}: {}", blocker.pid, blocker.place, blocker.what))
        .unwrap_or_default()
}

/// An error and its causes in one line: "cannot do this: that failed: No such file or directory". A cause that
/// the text before it already ends with is not repeated.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

fn is_out_of_descriptors(error: &(dyn StdError + 'static)) -> bool {
    let of_io = |error: &std::io::Error| error.raw_os_error() == Some(nix::libc::EMFILE);
    std::iter::successors(Some(error), |error| (*error).source()).any(|error| {
        error.downcast_ref().is_some_and(of_io) || error.downcast_ref() == Some(&nix::errno::Errno::EMFILE)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the door")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn the_chain_of_causes_is_one_line() {
        let error = Outer(std::io::Error::other("no key"));
        assert_eq!(chain(&error), "cannot open the door: no key");
    }

    #[test]
    fn a_cause_that_is_said_already_is_not_repeated() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open: {0}")]
        struct Repeats(#[source] std::io::Error);
        assert_eq!(chain(&Repeats(std::io::Error::other("no key"))), "cannot open: no key");
    }

    #[test]
    fn want_of_descriptors_is_recognised_wherever_it_is_in_the_chain() {
        let error = |errno| Outer(std::io::Error::from_raw_os_error(errno));
        let hint = |errno| MigrationError::caused(ErrorCode::CaptureFailed, &error(errno)).hint;
        assert!(hint(nix::libc::EMFILE).contains("LimitNOFILE"));
        assert!(!hint(nix::libc::ENFILE).contains("LimitNOFILE"));
        assert!(is_out_of_descriptors(&nix::errno::Errno::EMFILE));
    }

    #[test]
    fn the_place_that_found_an_error_is_kept() {
        let error = MigrationError::new(ErrorCode::PeerLost, "x").at(Role::Destination, Phase::Frozen);
        let error = error.at(Role::Source, Phase::PreCopy);
        assert_eq!((error.role, error.phase), (Role::Destination, Phase::Frozen));
    }

    #[test]
    fn one_blocker_and_many_are_counted_in_words() {
        let none = MigrationError::blocked("web", Vec::new());
        assert!(none.message.contains("0 things are"));
    }
}
