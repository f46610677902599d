//! What an agent says of its migrations.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command::finish;
use crate::host::Host;
use crate::wait::until;

/// How long recovery may take: the questions to the other agent have growing pauses.
const LIMIT: Duration = Duration::from_secs(90);

impl Host {
    /// What `pclivectl --json WORDS...` says.
    pub fn ask(&self, words: &[&str]) -> Result<Value> {
        let said = finish(self.ctl()?.arg("--json").args(words))?;
        let text = String::from_utf8_lossy(&said.stdout);
        serde_json::from_str(text.trim()).with_context(|| format!("not JSON: {text}"))
    }

    /// The migrations that it lists, newest first.
    pub fn migrations(&self) -> Result<Vec<Value>> {
        let listed = self.ask(&["list"])?;
        Ok(listed["migrations"].as_array().cloned().unwrap_or_default())
    }

    /// Waits until every migration that it lists has an end.
    pub fn await_ends(&self) -> Result<()> {
        let open = |migration: &Value| migration["phase"] != "done" && migration["phase"] != "failed";
        let mut left = Vec::new();
        let ended = until(&format!("the end of every migration on {}", self.name()), LIMIT, || {
            left = self.migrations()?.into_iter().filter(open).collect();
            Ok(left.is_empty())
        });
        ended.with_context(|| format!("{left:?}"))
    }
}
