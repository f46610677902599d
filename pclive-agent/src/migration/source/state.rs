//! The source's states. Pure: the whole table is [`State::next`].
//!
//! ```text
//! Idle > Negotiated > PreCopy(n) <> Frozen > FinalSent > Offered ==> Committed > Done
//!   '---------'-----------'----------'----------'-----------' Failed     '-------- Unknown
//! ```
//! A stop that has to be put off leads back to `PreCopy`.
//! Left of `==>` every failure leads to `Failed`: the container runs on. Right of it none does: the source stays
//! stopped until the destination says that it runs, or for an operator.

use pclive_proto::control::Phase;

/// Where a migration is, as its source knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing was agreed on.
    Idle,
    /// The destination has created and adopted its container.
    Negotiated,
    /// This round is on its way or done; the container runs.
    PreCopy(u32),
    /// The container is stopped.
    Frozen,
    /// Everything has been handed to the stream.
    FinalSent,
    /// The destination could run.
    Offered,
    /// COMMIT is handed to the stream: the point of no return.
    Committed,
    /// It runs at the destination.
    Done,
    /// It runs here.
    Failed,
    /// It is stopped here; whether it runs there is not known.
    Unknown,
}

/// What moves a source on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// `Accepted` came.
    Accepted,
    /// A round begins.
    RoundBegun(u32),
    /// All tasks are stopped.
    Stopped,
    /// The container runs on for a moment; what was dumped is this round.
    PutOff(u32),
    /// `FinalState` is handed to the stream.
    FinalHandedOver,
    /// `Ready` came.
    Ready,
    /// `Commit` is handed to the stream.
    CommitHandedOver,
    /// `Running` came.
    Running,
    /// Anything that ends it early: an error here or there, a dead link, a cancellation, a deadline.
    Failure,
}

/// An event that has no place in a state: a fault of the agent, or a peer that does not keep to the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot take {event:?} in state {state:?} of the source")]
pub(super) struct OutOfOrder {
    state: State,
    event: Event,
}

impl State {
    /// The state after `event`. On `Err` the state is as it was.
    pub(super) fn next(self, event: Event) -> Result<Self, OutOfOrder> {
        let next = match (self, event) {
            (Self::Idle, Event::Accepted) => Self::Negotiated,
            (Self::Negotiated, Event::RoundBegun(0)) => Self::PreCopy(0),
            (Self::PreCopy(last), Event::RoundBegun(round)) if last.checked_add(1) == Some(round) => {
                Self::PreCopy(round)
            }
            (Self::PreCopy(_), Event::Stopped) => Self::Frozen,
            (Self::Frozen, Event::PutOff(round)) => Self::PreCopy(round),
            (Self::Frozen, Event::FinalHandedOver) => Self::FinalSent,
            (Self::FinalSent, Event::Ready) => Self::Offered,
            (Self::Offered, Event::CommitHandedOver) => Self::Committed,
            (Self::Committed, Event::Running) => Self::Done,
            (Self::Committed, Event::Failure) => Self::Unknown,
            (
                Self::Idle
                | Self::Negotiated
                | Self::PreCopy(_)
                | Self::Frozen
                | Self::FinalSent
                | Self::Offered,
                Event::Failure,
            ) => Self::Failed,
            (state, event) => return Err(OutOfOrder { state, event }),
        };
        Ok(next)
    }

    /// What users see of it.
    pub(super) fn phase(self) -> Phase {
        match self {
            Self::Idle | Self::Negotiated => Phase::Negotiating,
            Self::PreCopy(_) => Phase::PreCopy,
            Self::Frozen | Self::FinalSent => Phase::Frozen,
            Self::Offered => Phase::Ready,
            // Users are told that it is done when nothing of it is left here.
            Self::Committed | Self::Done => Phase::Committed,
            Self::Failed => Phase::Failed,
            Self::Unknown => Phase::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 12] = [
        State::Idle,
        State::Negotiated,
        State::PreCopy(0),
        State::PreCopy(7),
        State::PreCopy(u32::MAX),
        State::Frozen,
        State::FinalSent,
        State::Offered,
        State::Committed,
        State::Done,
        State::Failed,
        State::Unknown,
    ];

    const EVENTS: [Event; 12] = [
        Event::Accepted,
        Event::RoundBegun(0),
        Event::RoundBegun(1),
        Event::RoundBegun(8),
        Event::RoundBegun(u32::MAX),
        Event::Stopped,
        Event::PutOff(8),
        Event::FinalHandedOver,
        Event::Ready,
        Event::CommitHandedOver,
        Event::Running,
        Event::Failure,
    ];

    /// Everything that is allowed; the rest is not.
    const ALLOWED: [(State, Event, State); 21] = [
        (State::Idle, Event::Accepted, State::Negotiated),
        (State::Negotiated, Event::RoundBegun(0), State::PreCopy(0)),
        (State::PreCopy(0), Event::RoundBegun(1), State::PreCopy(1)),
        (State::PreCopy(7), Event::RoundBegun(8), State::PreCopy(8)),
        (State::PreCopy(0), Event::Stopped, State::Frozen),
        (State::PreCopy(7), Event::Stopped, State::Frozen),
        (State::PreCopy(u32::MAX), Event::Stopped, State::Frozen),
        (State::Frozen, Event::PutOff(8), State::PreCopy(8)),
        (State::Frozen, Event::FinalHandedOver, State::FinalSent),
        (State::FinalSent, Event::Ready, State::Offered),
        (State::Offered, Event::CommitHandedOver, State::Committed),
        (State::Committed, Event::Running, State::Done),
        (State::Committed, Event::Failure, State::Unknown),
        (State::Idle, Event::Failure, State::Failed),
        (State::Negotiated, Event::Failure, State::Failed),
        (State::PreCopy(0), Event::Failure, State::Failed),
        (State::PreCopy(7), Event::Failure, State::Failed),
        (State::PreCopy(u32::MAX), Event::Failure, State::Failed),
        (State::Frozen, Event::Failure, State::Failed),
        (State::FinalSent, Event::Failure, State::Failed),
        (State::Offered, Event::Failure, State::Failed),
    ];

    #[test]
    fn every_state_takes_its_events_and_no_other() {
        for state in STATES {
            for event in EVENTS {
                let listed = ALLOWED.iter().find(|(from, by, _)| (*from, *by) == (state, event));
                let expected = listed.map(|(_, _, to)| *to);
                assert_eq!(state.next(event).ok(), expected, "{state:?} {event:?}");
            }
        }
    }

    #[test]
    fn after_the_commit_nothing_leads_back_to_the_source() {
        for event in EVENTS {
            assert_ne!(State::Committed.next(event).ok(), Some(State::Failed));
        }
    }

    #[test]
    fn an_event_out_of_order_is_named_with_its_state() {
        let error = State::Idle.next(Event::Running).unwrap_err();
        assert_eq!(error.to_string(), "cannot take Running in state Idle of the source");
    }
}
