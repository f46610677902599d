//! The view on a terminal: finished rounds and phases scroll by, the last two lines tell the present.

use std::io;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pclive_proto::control::Event;
use pclive_proto::control::event::Event as Kind;

use super::progress::View;
use super::screen::{Screen, outcome_text};
use super::text::printable;
use super::{ending, line};
use crate::follow::{Outcome, Subject};
use crate::output::Output;

/// The clock runs although no event comes.
const TICK: Duration = Duration::from_millis(100);
/// Redraws a second, at most.
const FRAME_RATE: u8 = 15;

/// Draws on standard error; the report goes to standard output.
pub(super) struct LiveScreen<'a> {
    output: &'a mut Output,
    view: View,
    bar: ProgressBar,
}

impl<'a> LiveScreen<'a> {
    /// An empty view.
    pub(super) fn new(output: &'a mut Output) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(FRAME_RATE));
        // The template is constant and valid; a plain spinner would do as well.
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}  {elapsed}\n  {wide_msg}") {
            bar.set_style(style.tick_chars("-\\|/ "));
        }
        Self { output, view: View::default(), bar }
    }

    fn draw(&self) {
        self.bar.set_prefix(self.view.head());
        self.bar.set_message(self.view.numbers());
    }
}

impl Screen for LiveScreen<'_> {
    fn started(&mut self, subject: &Subject) -> io::Result<()> {
        self.bar.println(ending::title(subject).trim_end());
        self.draw();
        self.bar.enable_steady_tick(TICK);
        Ok(())
    }

    fn event(&mut self, _subject: &Subject, event: &Event) -> io::Result<()> {
        self.view.apply(event);
        self.draw();
        if !matches!(event.event, Some(Kind::Progress(_)))
            && let Some(line) = line::line(event)
        {
            self.bar.println(line);
        }
        Ok(())
    }

    fn note(&mut self, _subject: &Subject, message: &str) -> io::Result<()> {
        self.bar.println(format!("note: {}", printable(message)));
        Ok(())
    }

    fn end(&mut self, subject: &Subject, outcome: &Outcome) -> io::Result<()> {
        self.bar.finish_and_clear();
        outcome_text(self.output, subject, outcome)
    }
}

impl Drop for LiveScreen<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
