//! Runs one hook: starts its supervisor, waits for it, and keeps the end of what the command says.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, Command};

use super::supervisor::{MAX_REPORT, Outcome, SUBCOMMAND};
use crate::error::printable;

/// The end of what a command says that is kept: bytes and lines.
const MAX_WORDS: usize = 1024;
const MAX_LINES: usize = 5;
/// How long a supervisor may take to end its command.
const END: Duration = Duration::from_secs(2);
/// How long last words may take when the command has ended: a process that has left its group may hold them open.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// A hook that did not do what it should. Nothing of it runs any more.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The supervisor, the agent's own program, could not be run.
    #[error("cannot supervise {command:?}")]
    Supervisor {
        /// The command.
        command: String,
        /// Why.
        source: io::Error,
    },
    /// The command could not be started.
    #[error("cannot run {command:?}: {why}")]
    NotStarted {
        /// The command.
        command: String,
        /// Why.
        why: String,
    },
    /// It ran and failed.
    #[error("{command:?} ended with {status}, {words}")]
    Failed {
        /// The command.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said last.
        words: String,
    },
    /// It did not end in time, and was killed.
    #[error("{command:?} took longer than {timeout:?} and was killed, {words}")]
    Timeout {
        /// The command.
        command: String,
        /// How long it was waited for.
        timeout: Duration,
        /// What it said last.
        words: String,
    },
}

/// Runs a command, program and arguments, with these variables added to its environment. What it said last, when it
/// succeeds. `supervisor` is the agent's program. When the future is dropped the command is killed.
pub async fn run(
    supervisor: &Path,
    command: &[String],
    variables: &[(&str, String)],
    timeout: Duration,
) -> Result<String, HookError> {
    let shown = command.join(" ");
    let cannot = |source| HookError::Supervisor { command: shown.clone(), source };
    let mut child = Command::new(supervisor)
        .arg(SUBCOMMAND)
        .arg("--")
        .args(command)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A terminal's signals are for the agent.
        .process_group(0)
        .spawn()
        .map_err(cannot)?;
    // The command lives as long as this is open.
    let lifeline = child.stdin.take();
    let mut supervised = std::pin::pin!(supervised(child));
    let in_time = tokio::time::timeout(timeout, &mut supervised).await;
    let timed_out = in_time.is_err();
    let (report, words) = match in_time {
        Ok(done) => done,
        Err(_) => {
            drop(lifeline);
            let late = |_| cannot(io::Error::new(io::ErrorKind::TimedOut, "its supervisor does not end"));
            tokio::time::timeout(END, supervised).await.map_err(late)?
        }
    };
    let report = report.map_err(cannot)?;
    let command = shown.clone();
    if timed_out {
        return Err(HookError::Timeout { command, timeout, words });
    }
    match serde_json::from_slice(&report).map_err(|error| cannot(error.into()))? {
        Outcome::NotStarted(why) => Err(HookError::NotStarted { command, why }),
        Outcome::Ended(raw) => match ExitStatus::from_raw(raw) {
            status if status.success() => Ok(words),
            status => Err(HookError::Failed { command, status, words }),
        },
    }
}

/// Waits for a supervisor's end: its report, and what the command said last.
async fn supervised(mut child: Child) -> (io::Result<Vec<u8>>, String) {
    let (reporting, mut saying) = (child.stdout.take(), child.stderr.take());
    let mut said = Vec::new();
    let report = async {
        let mut report = Vec::new();
        if let Some(reporting) = reporting {
            reporting.take(MAX_REPORT).read_to_end(&mut report).await?;
        }
        child.wait().await.map(|_| report)
    };
    let mut report = std::pin::pin!(report);
    let report = tokio::select! {
        report = &mut report => report,
        () = listen(&mut saying, &mut said) => report.await,
    };
    let _ = tokio::time::timeout(LAST_WORDS, listen(&mut saying, &mut said)).await;
    (report, last_words(&said))
}

/// Reads what is said until there is no more, and keeps the end of it.
async fn listen(saying: &mut Option<ChildStderr>, said: &mut Vec<u8>) {
    let Some(saying) = saying else { return };
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = saying.read(&mut buffer).await {
        said.extend_from_slice(buffer.get(..length).unwrap_or_default());
        said.drain(..said.len().saturating_sub(MAX_WORDS));
    }
}

/// The last lines, in words for an error.
fn last_words(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        return "it said nothing".into();
    }
    let last = lines.get(lines.len().saturating_sub(MAX_LINES)..).unwrap_or_default();
    format!("it said: {}", printable(last.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_cannot_act_on_a_terminal() {
        assert_eq!(last_words(b" \n"), "it said nothing");
        assert_eq!(last_words(b"1\n2\n\n3\n4\n5\n6\n"), "it said: 2; 3; 4; 5; 6");
        assert_eq!(last_words(b"\x1b[2J"), "it said: \u{fffd}[2J");
    }
}
