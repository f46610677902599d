//! Where a migration is shown while it is followed: on a terminal, as lines, or as JSON.

use std::io;

use pclive_proto::control::Event;

use super::ending;
use super::json::Line;
use super::line::{self, Pace};
use super::live::LiveScreen;
use super::text::printable;
use crate::follow::{Outcome, Subject};
use crate::output::Output;

/// Shows a migration. The calls come in this order: `started`, any number of `event` and `note`, `end`.
pub(crate) trait Screen {
    /// The migration exists.
    fn started(&mut self, subject: &Subject) -> io::Result<()>;
    /// Something happened to it (never the last events, which become the outcome).
    fn event(&mut self, subject: &Subject, event: &Event) -> io::Result<()>;
    /// Something that this program has to say.
    fn note(&mut self, subject: &Subject, message: &str) -> io::Result<()>;
    /// The outcome.
    fn end(&mut self, subject: &Subject, outcome: &Outcome) -> io::Result<()>;
}

/// The screen that fits the output.
pub(crate) fn screen(output: &mut Output) -> Box<dyn Screen + '_> {
    if output.is_json() {
        Box::new(JsonScreen { output })
    } else if output.is_live() {
        Box::new(LiveScreen::new(output))
    } else {
        Box::new(LineScreen { output, pace: Pace::default() })
    }
}

/// One JSON object a line.
struct JsonScreen<'a> {
    output: &'a mut Output,
}

impl Screen for JsonScreen<'_> {
    fn started(&mut self, subject: &Subject) -> io::Result<()> {
        self.output.document(&Line::started(subject))
    }

    fn event(&mut self, subject: &Subject, event: &Event) -> io::Result<()> {
        Line::event(subject, event).map_or(Ok(()), |line| self.output.document(&line))
    }

    fn note(&mut self, subject: &Subject, message: &str) -> io::Result<()> {
        self.output.document(&Line::note(subject, message))
    }

    fn end(&mut self, subject: &Subject, outcome: &Outcome) -> io::Result<()> {
        self.output.document(&Line::outcome(subject, outcome))
    }
}

/// Plain lines.
struct LineScreen<'a> {
    output: &'a mut Output,
    pace: Pace,
}

impl Screen for LineScreen<'_> {
    fn started(&mut self, subject: &Subject) -> io::Result<()> {
        self.output.text(&ending::title(subject))
    }

    fn event(&mut self, _subject: &Subject, event: &Event) -> io::Result<()> {
        if !self.pace.lets_through(event) {
            return Ok(());
        }
        line::line(event).map_or(Ok(()), |line| self.output.text(&line))
    }

    fn note(&mut self, _subject: &Subject, message: &str) -> io::Result<()> {
        self.output.text(&format!("note: {}", printable(message)))
    }

    fn end(&mut self, subject: &Subject, outcome: &Outcome) -> io::Result<()> {
        outcome_text(self.output, subject, outcome)
    }
}

/// Prints the outcome for people: a result to standard output, a complaint to standard error.
pub(super) fn outcome_text(output: &mut Output, subject: &Subject, outcome: &Outcome) -> io::Result<()> {
    match outcome {
        Outcome::Migrated(report) => output.text(&ending::migrated(subject, report.as_deref())),
        Outcome::Failed(error) => output.complaint(&ending::failed(subject, error)),
        Outcome::Unknown(error) => output.complaint(&ending::unknown(subject, error)),
        Outcome::Left => output.complaint(&ending::left(subject)),
    }
}
