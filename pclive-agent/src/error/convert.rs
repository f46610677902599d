//! [`MigrationError`] <-> what crosses the wire.

use pclive_engine::model::Blocker;
use pclive_proto::control::{self, Phase, Role};
use pclive_proto::peer;
use tonic::Status;

use super::{ErrorCode, MigrationError};

/// Longest text of a peer's failure that is kept, bytes.
const MAX_PEER_TEXT: usize = 4096;
/// Longest name of a peer's that is repeated, characters.
const MAX_PEER_NAME: usize = 64;

impl From<&MigrationError> for control::Error {
    fn from(error: &MigrationError) -> Self {
        Self {
            code: error.code.as_str().into(),
            role: error.role.into(),
            phase: error.phase.into(),
            message: error.message.clone(),
            hint: error.hint.clone(),
            retryable: error.retryable,
            blockers: error.blockers.iter().map(blocker_message).collect(),
        }
    }
}

impl From<MigrationError> for Status {
    fn from(error: MigrationError) -> Self {
        control::Error::from(&error).into_status(error.code.grpc())
    }
}

impl From<&MigrationError> for peer::Failure {
    fn from(error: &MigrationError) -> Self {
        Self {
            code: error.code.as_str().into(),
            role: role_name(error.role).into(),
            phase: phase_name(error.phase).into(),
            message: error.message.clone(),
            hint: error.hint.clone(),
            retryable: error.retryable,
        }
    }
}

impl From<peer::Failure> for MigrationError {
    fn from(failure: peer::Failure) -> Self {
        Self {
            code: ErrorCode::from_peer(&failure.code),
            role: role_of(&failure.role),
            phase: phase_of(&failure.phase),
            message: printable(failure.message),
            hint: printable(failure.hint),
            retryable: failure.retryable,
            blockers: Vec::new(),
        }
    }
}

/// A blocker as users see it.
pub fn blocker_message(blocker: &Blocker) -> control::Blocker {
    control::Blocker {
        pid: blocker.pid,
        container_pid: blocker.vpid.0,
        comm: blocker.comm.clone(),
        place: blocker.place.to_string(),
        what: blocker.what.clone(),
        hint: blocker.hint.clone(),
    }
}

/// Text of the other host: bounded, of one line (a second one could be taken for a line of a log), and without
/// characters that act on a terminal.
pub(crate) fn printable(text: String) -> String {
    shortened(text, MAX_PEER_TEXT)
}

/// A name that the other host says, in the same way.
pub(crate) fn printable_name(name: &str) -> String {
    let short: String = name.chars().take(MAX_PEER_NAME).collect();
    shortened(short, MAX_PEER_TEXT)
}

fn shortened(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most));
    }
    text.chars().map(|c| if acts(c) { '\u{fffd}' } else { c }).collect()
}

/// Control characters, and those that change the direction of the text after them.
fn acts(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Unspecified => "",
        Role::Source => "source",
        Role::Destination => "destination",
    }
}

fn role_of(name: &str) -> Role {
    let known = [Role::Source, Role::Destination];
    known.into_iter().find(|role| role_name(*role) == name).unwrap_or(Role::Unspecified)
}

/// Name of a phase in the peer protocol and in logs.
pub(crate) fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified => "",
        Phase::Negotiating => "negotiating",
        Phase::PreCopy => "pre-copy",
        Phase::Frozen => "frozen",
        Phase::Ready => "ready",
        Phase::Committed => "committed",
        Phase::Done => "done",
        Phase::Failed => "failed",
        Phase::Unknown => "unknown",
        Phase::Queued => "queued",
    }
}

fn phase_of(name: &str) -> Phase {
    (0..=9)
        .filter_map(|value| Phase::try_from(value).ok())
        .find(|phase| phase_name(*phase) == name)
        .unwrap_or(Phase::Unspecified)
}

#[cfg(test)]
mod tests {
    use pclive_engine::model::{Place, Vpid};

    use super::*;

    fn sample() -> MigrationError {
        MigrationError::new(ErrorCode::RestoreFailed, "cannot open /data: No such file or directory")
            .hint("put it there")
            .at(Role::Destination, Phase::Frozen)
    }

    #[test]
    fn a_failure_crosses_to_the_other_agent_whole() {
        assert_eq!(MigrationError::from(peer::Failure::from(&sample())), sample());
    }

    #[test]
    fn every_phase_and_role_survives_the_way_to_the_peer() {
        for value in 0..=9 {
            let phase = Phase::try_from(value).unwrap();
            assert_eq!(phase_of(phase_name(phase)), phase);
        }
        assert!(Phase::try_from(10).is_err());
        for role in [Role::Unspecified, Role::Source, Role::Destination] {
            assert_eq!(role_of(role_name(role)), role);
        }
    }

    #[test]
    fn text_of_the_peer_is_bounded_and_harmless_on_a_terminal() {
        let message = format!("\u{1b}[2J\n\u{202e}{}", "x".repeat(100_000));
        let error = MigrationError::from(peer::Failure { message, ..peer::Failure::default() });
        assert!(error.message.len() <= MAX_PEER_TEXT + 16);
        assert!(!error.message.contains(['\u{1b}', '\n', '\u{202e}']));
        assert_eq!(printable_name(&"\u{9b}y".repeat(1000)).chars().count(), MAX_PEER_NAME);
    }

    #[test]
    fn a_status_carries_the_error_and_its_blockers() {
        let blocker = Blocker {
            pid: 10,
            vpid: Vpid(1),
            comm: "redis".into(),
            place: Place::Descriptor(7),
            what: "io_uring instance".into(),
            hint: "disable it".into(),
        };
        let status = Status::from(MigrationError::blocked("web", vec![blocker]));
        assert_eq!(status.code(), tonic::Code::FailedPrecondition);
        let error = control::Error::from_status(&status).unwrap();
        assert_eq!(error.code, "blocked");
        assert_eq!(error.blockers[0].place, "descriptor 7");
    }
}
