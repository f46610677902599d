//! What became of a migration, and who may be believed about it.

use pclive_proto::control::event::Event as Kind;
use pclive_proto::control::{Error, Event, Migration, Phase, Report};

use crate::exit::Exit;

/// How following a migration ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    /// The container runs at the destination.
    Migrated(Option<Box<Report>>),
    /// The container runs at the source.
    Failed(Box<Error>),
    /// Nobody knows.
    Unknown(Box<Error>),
    /// The user left; the migration goes on.
    Left,
}

impl Outcome {
    /// What a script may conclude.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Migrated(_) => Exit::Ok,
            Self::Failed(_) => Exit::Failed,
            Self::Unknown(_) => Exit::Unknown,
            Self::Left => Exit::Left,
        }
    }
}

/// What the last event of a stream is worth.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Word {
    /// It is the outcome.
    Outcome(Outcome),
    /// A failure after COMMIT says nothing about where the container runs: the state must be asked for.
    Doubtful(Box<Error>),
}

/// Reads an event as the last word about a migration that was in `phase`; `None` if it is not the last.
pub(crate) fn last_word(event: &Event, phase: Phase) -> Option<Word> {
    match event.event.as_ref()? {
        Kind::Done(done) => Some(Word::Outcome(Outcome::Migrated(done.report.clone().map(Box::new)))),
        Kind::Failed(error) => Some(failure(error, phase)),
        Kind::Phase(_) | Kind::Round(_) | Kind::Progress(_) | Kind::Warning(_) | Kind::PolicyApplied(_) => {
            None
        }
    }
}

fn failure(error: &Error, phase: Phase) -> Word {
    let error = Box::new(error.clone());
    if error.phase() == Phase::Unknown {
        return Word::Outcome(Outcome::Unknown(error));
    }
    match phase {
        Phase::Unspecified
        | Phase::Queued
        | Phase::Negotiating
        | Phase::PreCopy
        | Phase::Frozen
        | Phase::Ready
        | Phase::Failed => Word::Outcome(Outcome::Failed(error)),
        Phase::Unknown => Word::Outcome(Outcome::Unknown(error)),
        Phase::Committed | Phase::Done => Word::Doubtful(error),
    }
}

/// The outcome that the agent's state of a migration tells; `None` while it goes on. `told` is a failure that the
/// stream ended with: a migration that failed and still goes on is in a state that nobody knows.
pub(crate) fn verdict(migration: &Migration, told: Option<Box<Error>>) -> Option<Outcome> {
    let error = migration.error.clone().map(Box::new).or_else(|| told.clone()).unwrap_or_else(|| {
        Box::new(Error { message: "the agent does not say why".to_owned(), ..Error::default() })
    });
    match migration.phase() {
        Phase::Done => Some(Outcome::Migrated(migration.report.clone().map(Box::new))),
        Phase::Failed => Some(Outcome::Failed(error)),
        Phase::Unknown => Some(Outcome::Unknown(error)),
        Phase::Unspecified
        | Phase::Queued
        | Phase::Negotiating
        | Phase::PreCopy
        | Phase::Frozen
        | Phase::Ready
        | Phase::Committed => told.map(Outcome::Unknown),
    }
}

/// The phase that an event announces.
pub(crate) fn phase_of(event: &Event) -> Option<Phase> {
    match event.event.as_ref()? {
        Kind::Phase(change) => Some(change.phase()),
        Kind::Round(_)
        | Kind::Progress(_)
        | Kind::Warning(_)
        | Kind::PolicyApplied(_)
        | Kind::Done(_)
        | Kind::Failed(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use pclive_proto::control::Done;

    use super::*;

    const PHASES: [Phase; 9] = [
        Phase::Unspecified,
        Phase::Negotiating,
        Phase::PreCopy,
        Phase::Frozen,
        Phase::Ready,
        Phase::Committed,
        Phase::Done,
        Phase::Failed,
        Phase::Unknown,
    ];

    fn error(phase: Phase) -> Box<Error> {
        Box::new(Error { code: "x".into(), phase: phase.into(), ..Error::default() })
    }

    fn failed(phase: Phase) -> Event {
        Event { at_ms: 0, event: Some(Kind::Failed(*error(phase))) }
    }

    #[test]
    fn done_is_done_whatever_came_before() {
        let event = Event { at_ms: 0, event: Some(Kind::Done(Done { report: None })) };
        for phase in PHASES {
            assert_eq!(last_word(&event, phase), Some(Word::Outcome(Outcome::Migrated(None))), "{phase:?}");
        }
    }

    #[test]
    fn a_failure_leaves_the_container_at_the_source_only_before_commit() {
        for phase in PHASES {
            let word = last_word(&failed(Phase::Frozen), phase);
            let expected = match phase {
                Phase::Unknown => Word::Outcome(Outcome::Unknown(error(Phase::Frozen))),
                Phase::Committed | Phase::Done => Word::Doubtful(error(Phase::Frozen)),
                _ => Word::Outcome(Outcome::Failed(error(Phase::Frozen))),
            };
            assert_eq!(word, Some(expected), "{phase:?}");
        }
    }

    #[test]
    fn an_error_that_says_unknown_is_unknown_in_every_phase() {
        for phase in PHASES {
            let expected = Word::Outcome(Outcome::Unknown(error(Phase::Unknown)));
            assert_eq!(last_word(&failed(Phase::Unknown), phase), Some(expected), "{phase:?}");
        }
    }

    #[test]
    fn the_state_decides_and_a_failure_that_goes_on_is_unknown() {
        for phase in PHASES {
            let migration =
                Migration { phase: phase.into(), error: Some(*error(phase)), ..Migration::default() };
            let (alone, told) = (verdict(&migration, None), verdict(&migration, Some(error(Phase::Ready))));
            let (expected_alone, expected_told) = match phase {
                Phase::Done => (Some(Outcome::Migrated(None)), Some(Outcome::Migrated(None))),
                Phase::Failed => (Some(Outcome::Failed(error(phase))), Some(Outcome::Failed(error(phase)))),
                Phase::Unknown => {
                    (Some(Outcome::Unknown(error(phase))), Some(Outcome::Unknown(error(phase))))
                }
                _ => (None, Some(Outcome::Unknown(error(Phase::Ready)))),
            };
            assert_eq!((alone, told), (expected_alone, expected_told), "{phase:?}");
        }
    }

    #[test]
    fn exit_codes_follow_the_outcome() {
        let outcomes = [
            Outcome::Migrated(None),
            Outcome::Failed(Box::default()),
            Outcome::Unknown(Box::default()),
            Outcome::Left,
        ];
        assert_eq!(
            outcomes.map(|outcome| outcome.exit()),
            [Exit::Ok, Exit::Failed, Exit::Unknown, Exit::Left]
        );
    }
}
