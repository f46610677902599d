//! Watching again repeats every event so far: this tells which of them have been shown.
//!
//! The agent repeats its events unchanged and in order, progress excepted, which it may leave out. So progress is
//! compared by its time and everything else one by one.

use pclive_proto::control::Event;
use pclive_proto::control::event::Event as Kind;

/// The events that have been shown.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    shown: Vec<Event>,
    /// How many of `shown` the present stream has repeated.
    repeated: usize,
    last_progress_ms: Option<u64>,
}

impl Replay {
    /// The stream starts anew.
    pub(crate) fn rewind(&mut self) {
        self.repeated = 0;
    }

    /// Whether an event has not been shown yet; it counts as shown from now on.
    pub(crate) fn is_new(&mut self, event: &Event) -> bool {
        if let Some(Kind::Progress(_)) = event.event {
            let new = self.last_progress_ms.is_none_or(|last| event.at_ms > last);
            self.last_progress_ms = self.last_progress_ms.max(Some(event.at_ms));
            return new;
        }
        if self.shown.get(self.repeated) == Some(event) {
            self.repeated += 1;
            return false;
        }
        // New, or the agent tells the story differently: then the rest of it is new as well.
        self.shown.truncate(self.repeated);
        self.shown.push(event.clone());
        self.repeated += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use pclive_proto::control::{Progress, Round, Warning};

    use super::*;

    fn round(number: u32) -> Event {
        Event { at_ms: 5, event: Some(Kind::Round(Round { number, ..Round::default() })) }
    }

    fn progress(at_ms: u64) -> Event {
        Event { at_ms, event: Some(Kind::Progress(Progress::default())) }
    }

    fn new(replay: &mut Replay, events: &[Event]) -> Vec<bool> {
        events.iter().map(|event| replay.is_new(event)).collect()
    }

    #[test]
    fn repeated_events_are_recognised_with_or_without_the_progress_between_them() {
        let mut replay = Replay::default();
        let first = [round(0), progress(6), round(0), progress(7)];
        assert_eq!(new(&mut replay, &first), [true, true, true, true]);
        replay.rewind();
        assert_eq!(
            new(&mut replay, &[round(0), round(0), progress(8), round(1)]),
            [false, false, true, true]
        );
        replay.rewind();
        assert_eq!(
            new(&mut replay, &[round(0), progress(6), round(0), round(1)]),
            [false, false, false, false]
        );
    }

    #[test]
    fn a_story_told_differently_is_shown_from_where_it_differs() {
        let mut replay = Replay::default();
        new(&mut replay, &[round(0), round(1), round(2)]);
        replay.rewind();
        let warning = Event { at_ms: 5, event: Some(Kind::Warning(Warning { message: "restarted".into() })) };
        assert_eq!(new(&mut replay, &[round(0), warning, round(1), round(2)]), [false, true, true, true]);
    }
}
