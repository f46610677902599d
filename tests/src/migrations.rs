//! What an agent says of its migrations.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
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
        listed["migrations"].as_array().cloned().with_context(|| format!("no list of migrations: {listed}"))
    }

    /// The audit record has one line of every migration that the agent lists, which all have ended, and says the same of
    /// its end; the order came from root at the source, and from the other agent's certificate at the destination.
    pub fn audit_agrees(&self) -> Result<()> {
        let mut migrations = Vec::new();
        // Its phase says done as soon as the container runs there, its line is written when all is cleaned up.
        until(&format!("the last word on every migration of {}", self.name()), LIMIT, || {
            migrations = self.migrations()?;
            Ok(migrations.iter().all(|migration| !migration["ended_unix_ms"].is_null()))
        })?;
        if migrations.is_empty() {
            return Ok(());
        }
        let lines = self.audit_lines()?;
        for migration in migrations {
            let of_it = lines.iter().filter(|line| line["id"] == migration["migration_id"]);
            let of_it: Vec<&Value> = of_it.collect();
            let failed = migration["phase"] == "failed";
            let undone_here = migration["error"]["code"] == "undone" && migration["role"] == "destination";
            ensure!(of_it.len() == 1 + usize::from(undone_here), "the lines of {migration}: {of_it:?}");
            let line = of_it.last().context("no line")?;
            let outcome = if failed { &migration["error"]["code"] } else { &migration["phase"] };
            let asker = &line["asked_by"];
            let asked = match line["role"].as_str() {
                Some("source") => asker["kind"] == "local" && asker["uid"] == 0,
                _ => asker["kind"] == "agent" && asker["names"][0] == line["from"],
            };
            let same = ["role", "container"].iter().all(|key| line[key] == migration[key]);
            ensure!(line["outcome"] == *outcome && asked && same, "{line} is not {migration}");
            // At the destination it was the source that gave up; an agent that was restarted has not heard who cancelled.
            let heard = line["role"] == "source" && !line["bytes"].is_null();
            let decided = !heard || line["outcome"] != "cancelled" || line["decided_by"]["uid"] == 0;
            ensure!(decided, "nobody has cancelled it: {line}");
            let digest = line["state_digest"].as_str().map(str::len);
            ensure!(
                failed || line["bytes"].is_null() || digest == Some(16),
                "no digest of what was moved: {line}"
            );
        }
        Ok(())
    }

    /// Its audit record.
    pub fn audit_lines(&self) -> Result<Vec<Value>> {
        let path = self.audit();
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
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
