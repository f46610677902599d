//! One command of a runtime: run it, with a deadline, and keep what it says when it fails.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::Command;

/// Longest text of a command that ends up in an error, bytes.
const MAX_WORDS: usize = 2048;

/// A command that did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It could not be started.
    #[error("cannot run {program}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It ran and failed.
    #[error("{program} {subcommand} failed ({status}): {words}")]
    Failed {
        /// The program.
        program: PathBuf,
        /// What it was to do.
        subcommand: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        words: String,
    },
    /// It did not end in time, and was killed.
    #[error("{program} {subcommand} took longer than {timeout:?}")]
    Timeout {
        /// The program.
        program: PathBuf,
        /// What it was to do.
        subcommand: &'static str,
        /// How long it was waited for.
        timeout: Duration,
    },
}

/// Runs a command and returns what it printed.
pub(super) async fn run(
    command: &mut Command,
    subcommand: &'static str,
    timeout: Duration,
) -> Result<Vec<u8>, CommandError> {
    let program = program_of(command);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|source| CommandError::Spawn { program: program.clone(), source })?;
    let output = tokio::time::timeout(timeout, child.wait_with_output())
        .await
        .map_err(|_| CommandError::Timeout { program: program.clone(), subcommand, timeout })?
        .map_err(|source| CommandError::Spawn { program: program.clone(), source })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(CommandError::Failed { program, subcommand, status: output.status, words: words(&output.stderr) })
}

/// Runs a command whose standard output and error belong to the container; it writes its own words to `log`, a
/// JSON object a line.
pub(super) async fn run_logged(
    mut command: Command,
    subcommand: &'static str,
    timeout: Duration,
    log: &Path,
) -> Result<(), CommandError> {
    let program = program_of(&command);
    let spawn_error = |source| CommandError::Spawn { program: program.clone(), source };
    let mut child = command.spawn().map_err(spawn_error)?;
    let status = tokio::time::timeout(timeout, child.wait())
        .await
        .map_err(|_| CommandError::Timeout { program: program.clone(), subcommand, timeout })?
        .map_err(spawn_error)?;
    if status.success() {
        return Ok(());
    }
    let words = std::fs::read(log).map(|text| logged_words(&text)).unwrap_or_default();
    Err(CommandError::Failed { program, subcommand, status, words })
}

fn program_of(command: &Command) -> PathBuf {
    command.as_std().get_program().into()
}

/// What a program said on its standard error: the end of it, on one line.
fn words(said: &[u8]) -> String {
    let said = said.get(said.len().saturating_sub(MAX_WORDS)..).unwrap_or(said);
    let text = String::from_utf8_lossy(said);
    let lines: Vec<&str> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(message_of).collect();
    if lines.is_empty() { "it said nothing".into() } else { lines.join("; ") }
}

/// runc prints `time="..." level=error msg="..."` on a pipe: only the message matters.
fn message_of(line: &str) -> &str {
    line.split_once("msg=").map_or(line, |(_, message)| message.trim_matches('"'))
}

/// The error messages of a JSON log, last first if they do not all fit.
fn logged_words(log: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    let lines = log.split(|byte| *byte == b'\n');
    let parsed = lines.filter_map(|line| serde_json::from_slice::<Line>(line).ok());
    let errors: Vec<String> =
        parsed.filter(|line| line.level == "error" || line.level == "fatal").map(|line| line.msg).collect();
    words(errors.join("\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_failure_says_so() {
        assert_eq!(words(b"  \n"), "it said nothing");
        assert_eq!(logged_words(b"not json"), "it said nothing");
    }

    #[test]
    fn log_decoration_is_taken_off() {
        let said = b"time=\"2026\" level=error msg=\"container does not exist\"\n";
        assert_eq!(words(said), "container does not exist");
        let log = br#"{"level":"info","msg":"hi"}
{"level":"error","msg":"no rootfs"}"#;
        assert_eq!(logged_words(log), "no rootfs");
    }

    #[test]
    fn a_flood_of_words_is_cut() {
        assert!(words(&[b'x'; 100_000]).len() <= MAX_WORDS);
    }
}
