//! The destination's states. Pure: the whole table is [`State::next`].
//!
//! ```text
//! Idle > Accepted > Skeleton > Filling(n) <> Filled(n) <> Reconciling(n) > Restored > Ready ==> Running
//!   '--------'---------'-----------'------------'-------------'--------------'---------' Discarded
//! ```
//! A final dump that the source has to put off ends as a round like any other: back to `Filled(n)`.
//! Left of `==>` every failure discards the copy; right of it the copy runs whatever happens to the link.

use pclive_proto::control::Phase;

/// Where a migration is, as its destination knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing was agreed on.
    Idle,
    /// The container is created and adopted.
    Accepted,
    /// The tasks of round 0 exist, without contents.
    Skeleton,
    /// Pages of this round are arriving.
    Filling(u32),
    /// This round is in place.
    Filled(u32),
    /// The layout of the final dump, this round, is here, its pages are arriving.
    Reconciling(u32),
    /// The small state is in place.
    Restored,
    /// The source has been told: it may commit.
    Ready,
    /// The source has committed: it runs.
    Running,
    /// Nothing of it is left.
    Discarded,
    /// The source has committed and it could not be let go: an operator must look.
    Broken,
}

/// What moves a destination on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The container is created and adopted, `Accepted` is sent.
    Prepared,
    /// `RoundBegin` of a round that is not the last.
    RoundBegun(u32),
    /// `PageBatch`.
    Pages,
    /// `RoundEnd`.
    RoundEnded(u32),
    /// `RoundBegin` of the final dump.
    FinalBegun(u32),
    /// `FinalState` came and is in place.
    StateRestored,
    /// `Ready` is handed to the stream.
    Offered,
    /// `Commit` came.
    Commit,
    /// Anything that ends it early: an error here or there, a dead link, a cancellation, a deadline.
    Failure,
}

/// An event that has no place in a state: a peer that does not keep to the protocol, or a fault of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot take {event:?} in state {state:?} of the destination")]
pub(super) struct OutOfOrder {
    state: State,
    event: Event,
}

impl State {
    /// The state after `event`. On `Err` the state is as it was.
    pub(super) fn next(self, event: Event) -> Result<Self, OutOfOrder> {
        let next = match (self, event) {
            (Self::Idle, Event::Prepared) => Self::Accepted,
            (Self::Accepted, Event::RoundBegun(0)) => Self::Skeleton,
            (Self::Skeleton, Event::Pages) => Self::Filling(0),
            (Self::Skeleton, Event::RoundEnded(0)) => Self::Filled(0),
            (Self::Filling(round), Event::Pages) => Self::Filling(round),
            (Self::Filling(round), Event::RoundEnded(ended)) if ended == round => Self::Filled(round),
            (Self::Filled(last), Event::RoundBegun(round)) if last.checked_add(1) == Some(round) => {
                Self::Filling(round)
            }
            (Self::Filled(last), Event::FinalBegun(round)) if last.checked_add(1) == Some(round) => {
                Self::Reconciling(round)
            }
            (Self::Reconciling(round), Event::Pages) => Self::Reconciling(round),
            (Self::Reconciling(round), Event::RoundEnded(ended)) if ended == round => Self::Filled(round),
            (Self::Reconciling(_), Event::StateRestored) => Self::Restored,
            (Self::Restored, Event::Offered) => Self::Ready,
            (Self::Ready, Event::Commit) => Self::Running,
            (Self::Running, Event::Failure) => Self::Broken,
            (
                Self::Idle
                | Self::Accepted
                | Self::Skeleton
                | Self::Filling(_)
                | Self::Filled(_)
                | Self::Reconciling(_)
                | Self::Restored
                | Self::Ready,
                Event::Failure,
            ) => Self::Discarded,
            (state, event) => return Err(OutOfOrder { state, event }),
        };
        Ok(next)
    }

    /// What users see of it.
    pub(super) fn phase(self) -> Phase {
        match self {
            Self::Idle | Self::Accepted => Phase::Negotiating,
            Self::Skeleton | Self::Filling(_) | Self::Filled(_) => Phase::PreCopy,
            Self::Reconciling(_) | Self::Restored => Phase::Frozen,
            Self::Ready => Phase::Ready,
            Self::Running => Phase::Committed,
            Self::Discarded => Phase::Failed,
            Self::Broken => Phase::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 13] = [
        State::Idle,
        State::Accepted,
        State::Skeleton,
        State::Filling(0),
        State::Filling(7),
        State::Filled(0),
        State::Filled(u32::MAX),
        State::Reconciling(1),
        State::Restored,
        State::Ready,
        State::Running,
        State::Discarded,
        State::Broken,
    ];

    const EVENTS: [Event; 15] = [
        Event::Prepared,
        Event::RoundBegun(0),
        Event::RoundBegun(1),
        Event::RoundBegun(7),
        Event::Pages,
        Event::RoundEnded(0),
        Event::RoundEnded(1),
        Event::RoundEnded(7),
        Event::FinalBegun(0),
        Event::FinalBegun(1),
        Event::FinalBegun(8),
        Event::StateRestored,
        Event::Offered,
        Event::Commit,
        Event::Failure,
    ];

    /// Everything that is allowed beside failures; the rest is not.
    const ALLOWED: [(State, Event, State); 15] = [
        (State::Idle, Event::Prepared, State::Accepted),
        (State::Accepted, Event::RoundBegun(0), State::Skeleton),
        (State::Skeleton, Event::Pages, State::Filling(0)),
        (State::Skeleton, Event::RoundEnded(0), State::Filled(0)),
        (State::Filling(0), Event::Pages, State::Filling(0)),
        (State::Filling(7), Event::Pages, State::Filling(7)),
        (State::Filling(0), Event::RoundEnded(0), State::Filled(0)),
        (State::Filling(7), Event::RoundEnded(7), State::Filled(7)),
        (State::Filled(0), Event::RoundBegun(1), State::Filling(1)),
        (State::Filled(0), Event::FinalBegun(1), State::Reconciling(1)),
        (State::Reconciling(1), Event::Pages, State::Reconciling(1)),
        (State::Reconciling(1), Event::RoundEnded(1), State::Filled(1)),
        (State::Reconciling(1), Event::StateRestored, State::Restored),
        (State::Restored, Event::Offered, State::Ready),
        (State::Ready, Event::Commit, State::Running),
    ];

    fn expected(state: State, event: Event) -> Option<State> {
        match (state, event) {
            (State::Discarded | State::Broken, _) => None,
            (State::Running, Event::Failure) => Some(State::Broken),
            (_, Event::Failure) => Some(State::Discarded),
            _ => ALLOWED.iter().find(|(from, by, _)| (*from, *by) == (state, event)).map(|(_, _, to)| *to),
        }
    }

    #[test]
    fn every_state_takes_its_events_and_no_other() {
        for state in STATES {
            for event in EVENTS {
                assert_eq!(state.next(event).ok(), expected(state, event), "{state:?} {event:?}");
            }
        }
    }

    #[test]
    fn only_a_ready_copy_ever_runs() {
        for state in STATES {
            for event in EVENTS {
                let runs = state.next(event) == Ok(State::Running);
                assert_eq!(runs, state == State::Ready && event == Event::Commit, "{state:?} {event:?}");
            }
        }
    }

    #[test]
    fn a_copy_that_runs_is_never_discarded() {
        for event in EVENTS {
            assert_ne!(State::Running.next(event).ok(), Some(State::Discarded));
        }
    }
}
