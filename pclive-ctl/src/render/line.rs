//! Events as lines, for logs and pipes.

use pclive_proto::control::event::Event as Kind;
use pclive_proto::control::{Event, Phase, Progress, Round};

use super::text::printable;
use super::unit;

/// The line of an event, with its time. `None` for the last ones, which the report or the error tells.
pub(crate) fn line(event: &Event) -> Option<String> {
    let text = match event.event.as_ref()? {
        Kind::Phase(change) => phase(change.phase()).to_owned(),
        Kind::Round(round) => self::round(round),
        Kind::Progress(progress) => self::progress(progress),
        Kind::Warning(warning) => format!("warning: {}", printable(&warning.message)),
        Kind::PolicyApplied(applied) => format!("not converging: {}", printable(&applied.message)),
        Kind::Done(_) | Kind::Failed(_) => return None,
    };
    Some(format!("[{:>8.2} s] {text}", event.at_ms as f64 / 1e3))
}

/// A phase and what it means for the container.
pub(crate) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified => "a phase that this pclivectl does not know",
        Phase::Queued => "queued: as many migrations as allowed are running",
        Phase::Negotiating => "negotiating: checks at both ends",
        Phase::PreCopy => "pre-copy: the container runs on while its memory is copied",
        Phase::Frozen => "frozen: the container is stopped",
        Phase::Ready => "ready: the destination has everything",
        Phase::Committed => "committed: the container goes on at the destination",
        Phase::Done => "done: it runs at the destination",
        Phase::Failed => "failed: it runs at the source",
        Phase::Unknown => "unknown: nobody has told whether it runs at the destination",
    }
}

/// A finished round.
pub(crate) fn round(round: &Round) -> String {
    let title = if round.r#final { "final round".to_owned() } else { format!("round {}", round.number) };
    let mut text = format!(
        "{title}: {}, {} in {}, {}",
        unit::pages(round.data_pages),
        unit::bytes(round.bytes),
        unit::duration(round.duration_ns),
        unit::rate(round.bytes_per_second),
    );
    if !round.r#final {
        text += &format!(
            "; {} dirty, predicted downtime {}",
            unit::pages(round.dirty_pages),
            unit::duration(round.predicted_downtime_ns)
        );
    }
    text
}

fn progress(progress: &Progress) -> String {
    let mut text = format!("round {}: {}", progress.round, unit::bytes(progress.bytes));
    if progress.total_bytes > 0 {
        text += &format!(" of about {}", unit::bytes(progress.total_bytes.max(progress.bytes)));
    }
    text + &format!(", {}", unit::rate(progress.bytes_per_second))
}

/// Lets through what is worth a line: everything but progress, and progress once in two seconds.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    last_progress_ms: Option<u64>,
}

impl Pace {
    const INTERVAL_MS: u64 = 2_000;

    /// Whether this event gets a line.
    pub(crate) fn lets_through(&mut self, event: &Event) -> bool {
        let Some(Kind::Progress(_)) = event.event else { return true };
        let due =
            self.last_progress_ms.is_none_or(|last| event.at_ms >= last.saturating_add(Self::INTERVAL_MS));
        if due {
            self.last_progress_ms = Some(event.at_ms);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use pclive_proto::control::{Done, Error, PhaseChanged, Warning};

    use super::*;
    use crate::render::report::tests::rounds_sample;

    fn at(at_ms: u64, event: Kind) -> Event {
        Event { at_ms, event: Some(event) }
    }

    fn progress_at(at_ms: u64) -> Event {
        at(
            at_ms,
            Kind::Progress(Progress {
                round: 0,
                bytes: 412 << 20,
                total_bytes: 1 << 30,
                bytes_per_second: 1 << 30,
            }),
        )
    }

    #[test]
    fn every_event_but_the_last_has_its_line() {
        let mut events =
            vec![at(3, Kind::Phase(PhaseChanged { phase: Phase::PreCopy.into() })), progress_at(410)];
        events.extend(rounds_sample().into_iter().map(|round| at(1_234_567, Kind::Round(round))));
        events.push(at(2_000, Kind::Warning(Warning { message: "clock\njump".into() })));
        let lines: Vec<_> = events.iter().filter_map(line).collect();
        let expected = [
            "[    0.00 s] pre-copy: the container runs on while its memory is copied",
            "[    0.41 s] round 0: 412 MiB of about 1.00 GiB, 1.00 GiB/s",
            "[ 1234.57 s] round 0: 262,144 pages, 1.00 GiB in 1.10 s, 931 MiB/s; 6,100 pages dirty, predicted \
             downtime 0 ns",
            "[ 1234.57 s] round 1: 6,100 pages, 23.8 MiB in 40.0 ms, 596 MiB/s; 1,024 pages dirty, predicted \
             downtime 38.0 ms",
            "[ 1234.57 s] final round: 1,068 pages, 4.17 MiB in 21.9 ms, 190 MiB/s",
            "[    2.00 s] warning: clock\\njump",
        ];
        assert_eq!(lines, expected);
        assert_eq!(line(&at(1, Kind::Done(Done::default()))), None);
        assert_eq!(line(&at(1, Kind::Failed(Error::default()))), None);
    }

    #[test]
    fn progress_gets_a_line_once_in_two_seconds() {
        let mut pace = Pace::default();
        let shown = [0, 200, 1_999, 2_000, 2_200, 9_000].map(|ms| pace.lets_through(&progress_at(ms)));
        assert_eq!(shown, [true, false, false, true, false, true]);
        assert!(pace.lets_through(&at(9_001, Kind::Round(Round::default()))));
    }
}
