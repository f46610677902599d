//! Standard output and standard error.
//!
//! Results go to standard output; so do errors with `--json`, because the reader is a program. Otherwise errors go
//! to standard error.

use std::io::{self, IsTerminal, Write};

use pclive_proto::control::Error;
use serde::Serialize;

use crate::render::{json, problem};

/// Where results and errors go.
#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    /// Output as text, or as JSON.
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether a program reads the output.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Whether somebody looks at a terminal, where lines can be drawn again.
    pub(crate) fn is_live(&self) -> bool {
        !self.json && io::stderr().is_terminal()
    }

    /// Prints a result: the document, or the text for people.
    pub(crate) fn result(
        &mut self,
        document: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> io::Result<()> {
        if self.json { self.document(document) } else { self.text(&text()) }
    }

    /// Prints text for people.
    pub(crate) fn text(&mut self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        if !text.ends_with('\n') {
            out.write_all(b"\n")?;
        }
        out.flush()
    }

    /// Prints a JSON document on one line.
    pub(crate) fn document(&mut self, document: &impl Serialize) -> io::Result<()> {
        let line = serde_json::to_string(document)?;
        self.text(&line)
    }

    /// Prints text for people that is no result.
    pub(crate) fn complaint(&mut self, text: &str) -> io::Result<()> {
        io::stderr().lock().write_all(text.as_bytes())
    }

    /// Reports why the command ends. That the error cannot be written has nowhere to go, so it is dropped.
    pub(crate) fn failure(&mut self, error: &Error) {
        let _ = if self.json {
            self.document(&json::Failed::from(error))
        } else {
            self.complaint(&problem::text(error))
        };
    }
}
