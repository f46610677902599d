//! Migrations as a user starts them: `pclivectl --json`, and what it says.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::command::{finish, words};
use crate::host::Host;

/// `pclivectl` says that a migration failed and the source runs on, or that a command could not be carried out.
pub const FAILED: i32 = 1;

/// A finished round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// 0 is everything.
    pub number: u32,
    /// Whether it is the round of the final dump.
    pub r#final: bool,
    /// Pages sent with contents.
    pub data_pages: u64,
    /// Bytes on the wire.
    pub bytes: u64,
    /// How long it took, nanoseconds.
    pub duration_ns: u64,
    /// Its rate.
    pub bytes_per_second: u64,
}

/// Where the downtime went, nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the parts are described where the report is made")]
pub struct Ledger {
    pub freeze_ns: u64,
    pub final_scan_ns: u64,
    pub capture_ns: u64,
    pub transfer_ns: u64,
    pub fill_ns: u64,
    pub restore_ns: u64,
    pub commit_ns: u64,
    pub resume_ns: u64,
    pub verify_ns: u64,
    #[serde(default)]
    pub round_trips: u32,
}

/// Memory that was found to be the same at both ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Private mappings.
    pub mappings: u64,
    /// Shared memory objects.
    pub objects: u64,
    /// Contents.
    pub bytes: u64,
}

/// What a migration cost an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time, nanoseconds.
    pub cpu_ns: u64,
    /// Memory beyond the container's at most.
    pub peak_memory_bytes: u64,
}

/// The report of a migration that is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// From the begin of the freeze to the destination's word that it runs, by the source's clock.
    pub downtime_ns: u64,
    /// Its parts.
    pub ledger: Option<Ledger>,
    /// From the last byte of the final state to the resume, by the destination's clock.
    pub restore_ns: u64,
    /// All rounds.
    pub rounds: Vec<Round>,
    /// From request to end.
    pub total_ns: u64,
    /// Bytes on the wire.
    pub bytes: u64,
    /// The agent that sent.
    pub source: Option<Usage>,
    /// The agent that received.
    pub destination: Option<Usage>,
    /// Most memory that waited at the destination.
    pub staging_peak_bytes: u64,
    /// Why the rounds ended.
    pub verdict: String,
    /// What the downtime was expected to be; `None` when that was not known, or pages came later.
    #[serde(default)]
    pub predicted_downtime_ns: Option<u64>,
    /// What was compared before the commit.
    pub verification: Option<Verification>,
    /// What came after the container ran; `None` when everything came before.
    #[serde(default)]
    pub tail: Option<Tail>,
}

/// Pages that came after the container ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// All that it went on without.
    pub pages: u64,
    /// Of these, fetched because a task waited for them.
    pub demand_pages: u64,
    /// How long a task waited for a page, in the median, nanoseconds.
    pub fault_median_ns: u64,
    /// A question to the source and its answer, the shortest, nanoseconds.
    pub round_trip_ns: u64,
    /// From the first moment in which the container ran to the last page, nanoseconds.
    pub duration_ns: u64,
}

/// One thing that stands in the way of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Blocker {
    /// The process, as the host sees it.
    pub pid: Option<i32>,
    /// Which part of it.
    pub place: Option<String>,
    /// What it is.
    pub what: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Why something could not be done.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Problem {
    /// For programs.
    pub code: String,
    /// What happened.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    /// What stands in the way, when the code says so.
    #[serde(default)]
    pub blockers: Vec<Blocker>,
}

/// How a command ended that did not do what it was asked.
#[derive(Debug)]
pub struct Refusal {
    /// `pclivectl`'s exit code.
    pub exit: Option<i32>,
    /// What it printed as the reason.
    pub problem: Problem,
}

/// A running `pclivectl migrate`.
#[derive(Debug)]
pub struct Following {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    /// Every line so far.
    said: Vec<Value>,
}

impl Following {
    /// Starts `pclivectl --json migrate CONTAINER --to PEER OPTIONS...` on `host`.
    pub fn start(host: &Host, container: &str, to: &str, options: &[&str]) -> Result<Self> {
        Self::by(host.ctl()?, container, to, options)
    }

    /// The same by a `pclivectl` that knows its agent.
    pub fn by(mut command: Command, container: &str, to: &str, options: &[&str]) -> Result<Self> {
        command.args(["--json", "migrate", container, "--to", to]).args(options);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", words(&command)))?;
        let out = child.stdout.take().context("pclivectl has no standard output")?;
        Ok(Self { child, lines: BufReader::new(out).lines(), said: Vec::new() })
    }

    /// The next line; `None` after the last.
    fn line(&mut self) -> Result<Option<&Value>> {
        let Some(line) = self.lines.next() else { return Ok(None) };
        let line = line.context("cannot read from pclivectl")?;
        let value = serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?;
        self.said.push(value);
        Ok(self.said.last())
    }

    /// Waits for the first line for which `wanted` holds; the line.
    pub fn wait_for(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        loop {
            match self.line()? {
                Some(line) if wanted(line) => return Ok(line.clone()),
                Some(_) => {}
                None => bail!("the migration ended without {what}: {:?}", self.said),
            }
        }
    }

    /// The migration's id, once a line has told it.
    pub fn id(&self) -> Option<String> {
        self.said.iter().find_map(|line| Some(line["migration_id"].as_str()?.to_owned()))
    }

    /// Every line, until the last.
    pub fn everything(mut self) -> Result<Vec<Value>> {
        while self.line()?.is_some() {}
        self.child.wait().context("cannot wait for pclivectl")?;
        Ok(std::mem::take(&mut self.said))
    }

    /// The end: the report, or why there is none.
    pub fn finish(self) -> Result<std::result::Result<Report, Refusal>> {
        self.watch(|_| {})
    }

    /// The same; `look` sees every line that is still to come.
    pub fn watch(mut self, mut look: impl FnMut(&Value)) -> Result<std::result::Result<Report, Refusal>> {
        while let Some(line) = self.line()? {
            look(line);
        }
        let exit = self.child.wait().context("cannot wait for pclivectl")?.code();
        let last = self.said.last().context("pclivectl printed nothing")?;
        if exit == Some(0) {
            let report = last.get("report").filter(|report| !report.is_null());
            let report = report.with_context(|| format!("no report: {last}"))?;
            return Ok(Ok(Report::deserialize(report).context("a report that cannot be read")?));
        }
        Ok(Err(Refusal { exit, problem: problem(last)? }))
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        // Without effect when it has ended; the migration itself is the agent's.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn problem(line: &Value) -> Result<Problem> {
    let error = line.get("error").with_context(|| format!("no error: {line}"))?;
    Problem::deserialize(error).with_context(|| format!("an error that cannot be read: {error}"))
}

impl Host {
    /// Migrates a container and waits for the end.
    ///
    /// # Errors
    /// When it fails; with both agents' last words, because that is what one wants to see.
    pub fn migrate(&self, container: &str, to: &Host, options: &[&str]) -> Result<Report> {
        let following = Following::start(self, container, to.name(), options)?;
        following.finish()?.map_err(|refusal| {
            let Problem { code, message, hint, blockers } = refusal.problem;
            anyhow!(
                "{container} was not migrated from {} to {} ({code}, exit {:?}): {message}; {hint:?} {blockers:?}\n{}{}",
                self.name(),
                to.name(),
                refusal.exit,
                self.last_words(),
                to.last_words()
            )
        })
    }

    /// Asks for a migration that must not succeed; why it did not.
    pub fn migrate_in_vain(&self, container: &str, to: &str, options: &[&str]) -> Result<Refusal> {
        match Following::start(self, container, to, options)?.finish()? {
            Err(refusal) => Ok(refusal),
            Ok(report) => bail!("{container} was migrated to {to}: {report:?}"),
        }
    }

    /// `pclivectl check`: what stands in the way, and the exit code.
    pub fn check(&self, container: &str) -> Result<(Vec<Blocker>, Option<i32>)> {
        let output = finish(self.ctl()?.args(["--json", "check", container]))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let document: Value =
            serde_json::from_str(text.trim()).with_context(|| format!("not JSON: {text}"))?;
        let blockers =
            document.get("blockers").with_context(|| format!("no list of blockers: {document}"))?;
        Ok((Vec::deserialize(blockers)?, output.status.code()))
    }
}
