//! Runs programs and keeps what they said when they fail.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Runs `command` to its end and returns its standard output; a failure carries everything it printed.
pub fn output(command: &mut Command) -> Result<String> {
    let output = finish(command)?;
    if !output.status.success() {
        bail!(
            "{} ended with {}: {}{}",
            words(command),
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command` to its end, whatever its exit status.
pub fn finish(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {}", words(command)))
}

/// The command line, for messages.
pub fn words(command: &Command) -> String {
    let mut words = vec![command.get_program()];
    words.extend(command.get_args());
    words.join(OsStr::new(" ")).to_string_lossy().into_owned()
}

/// A binary of this workspace, from the build directory that the running program comes from.
///
/// # Errors
/// When it is not built: `cargo build --workspace` (with the same profile) makes all of them.
pub fn workspace_binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell which program this is")?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("cannot find {name} beside {}: run `make build` first", own.display()))
}

/// The agent with its feature `fault-injection`, a program of its own: the feature must not get into the agent that is
/// delivered.
///
/// # Errors
/// When it is not built: `make faulty-agent` does.
pub fn faulty_agent() -> Result<PathBuf> {
    workspace_binary("pclive-agent-faulty").context("run `make faulty-agent` first")
}

/// Where Debian keeps programs, beyond what PATH of an unprivileged login shows.
const PLACES: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The full path of an installed program.
pub fn installed(name: &str) -> Option<PathBuf> {
    PLACES.iter().map(|place| PathBuf::from(place).join(name)).find(|path| path.is_file())
}
