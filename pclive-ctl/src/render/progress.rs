//! What the live view shows: two lines that are drawn again and again.

use pclive_proto::control::event::Event as Kind;
use pclive_proto::control::{Event, Phase};

use super::{name, unit};

/// Cells of the bar.
const BAR_CELLS: u64 = 24;

/// The state of a migration, put together from its events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct View {
    phase: Phase,
    round: Option<u32>,
    bytes: u64,
    total_bytes: u64,
    bytes_per_second: u64,
    dirty_pages: Option<u64>,
    predicted_downtime_ns: Option<u64>,
}

impl View {
    /// Takes in an event.
    pub(crate) fn apply(&mut self, event: &Event) {
        match &event.event {
            Some(Kind::Phase(change)) => self.phase = change.phase(),
            Some(Kind::Progress(progress)) => {
                self.round = Some(progress.round);
                self.bytes = progress.bytes;
                self.total_bytes = progress.total_bytes;
                self.bytes_per_second = progress.bytes_per_second;
            }
            Some(Kind::Round(round)) => {
                self.round = Some(round.number);
                self.bytes = round.bytes;
                self.total_bytes = round.bytes;
                self.bytes_per_second = round.bytes_per_second;
                if !round.r#final {
                    self.dirty_pages = Some(round.dirty_pages);
                    self.predicted_downtime_ns = Some(round.predicted_downtime_ns);
                }
            }
            Some(Kind::Warning(_) | Kind::PolicyApplied(_) | Kind::Done(_) | Kind::Failed(_)) | None => {}
        }
    }

    /// First line: phase, round and how far it is.
    pub(crate) fn head(&self) -> String {
        let phase = match self.phase {
            Phase::Unspecified => "starting",
            phase => name::phase(phase),
        };
        match self.round {
            Some(round) => {
                format!("{phase}, round {round}  {}", bar(self.bytes, self.total_bytes))
            }
            None => phase.to_owned(),
        }
    }

    /// Second line: the numbers.
    pub(crate) fn numbers(&self) -> String {
        let mut parts = Vec::new();
        if self.round.is_some() {
            let total = if self.total_bytes > self.bytes {
                format!(" of about {}", unit::bytes(self.total_bytes))
            } else {
                String::new()
            };
            parts.push(format!("{}{total}", unit::bytes(self.bytes)));
            parts.push(unit::rate(self.bytes_per_second));
        }
        if let Some(pages) = self.dirty_pages {
            parts.push(format!("{} dirty", unit::pages(pages)));
        }
        if let Some(ns) = self.predicted_downtime_ns {
            parts.push(format!("predicted downtime {}", unit::duration(ns)));
        }
        parts.join(", ")
    }
}

/// `[######..................]  25 %`. The total is an estimate: what goes beyond it fills the bar.
fn bar(done: u64, total: u64) -> String {
    let (done, total) = (u128::from(done.min(total)), u128::from(total.max(1)));
    let share = |of: u64| usize::try_from(done * u128::from(of) / total).unwrap_or(0);
    let full = share(BAR_CELLS);
    let rest = BAR_CELLS as usize - full;
    format!("[{}{}] {:>3} %", "#".repeat(full), ".".repeat(rest), share(100))
}

#[cfg(test)]
mod tests {
    use pclive_proto::control::{PhaseChanged, Progress};

    use super::*;
    use crate::render::report::tests::rounds_sample;

    fn view(events: impl IntoIterator<Item = Kind>) -> [String; 2] {
        let mut view = View::default();
        for event in events {
            view.apply(&Event { at_ms: 0, event: Some(event) });
        }
        [view.head(), view.numbers()]
    }

    fn phase(phase: Phase) -> Kind {
        Kind::Phase(PhaseChanged { phase: phase.into() })
    }

    fn progress(bytes: u64, total_bytes: u64) -> Kind {
        Kind::Progress(Progress { round: 2, bytes, total_bytes, bytes_per_second: 1 << 30 })
    }

    #[test]
    fn before_the_first_round_there_is_only_a_phase() {
        assert_eq!(view([phase(Phase::Negotiating)]), ["negotiating", ""]);
    }

    #[test]
    fn a_round_under_way_shows_its_bar_and_the_forecast_of_the_last_one() {
        let rounds = rounds_sample();
        let events = [phase(Phase::PreCopy), Kind::Round(rounds[1]), progress(1 << 20, 4 << 20)];
        let expected = [
            "pre-copy, round 2  [######..................]  25 %",
            "1.00 MiB of about 4.00 MiB, 1.00 GiB/s, 1,024 pages dirty, predicted downtime 38.0 ms",
        ];
        assert_eq!(view(events), expected);
    }

    #[test]
    fn the_final_round_keeps_the_forecast_to_compare_with() {
        let [head, numbers] =
            view(rounds_sample().into_iter().map(Kind::Round).chain([phase(Phase::Frozen)]));
        assert_eq!(head, "frozen, round 2  [########################] 100 %");
        assert_eq!(numbers, "4.17 MiB, 190 MiB/s, 1,024 pages dirty, predicted downtime 38.0 ms");
    }

    #[test]
    fn a_wrong_estimate_neither_overflows_nor_divides_by_nothing() {
        assert_eq!(bar(5, 4), format!("[{}] 100 %", "#".repeat(24)));
        assert_eq!(bar(0, 0), format!("[{}]   0 %", ".".repeat(24)));
        assert_eq!(bar(u64::MAX, u64::MAX), format!("[{}] 100 %", "#".repeat(24)));
    }
}
