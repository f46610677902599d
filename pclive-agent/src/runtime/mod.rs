//! Container runtimes with runc's command line: what is there, create, start, delete.
//!
//! The runtime makes the destination's container from the bundle (namespaces, mounts, cgroups, devices, labels)
//! and stops before the program starts; the engine takes it over there. After that the runtime sees a container
//! like any other.
//!
//! Invariants: every command has a deadline and is killed at it; a command's own words are in the error; a
//! container id never leads out of the runtime's directories. Nothing here runs while a container is stopped.

mod bundle;
mod command;
mod id;
mod start;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;

pub use bundle::{Bundle, BundleError};
pub use command::CommandError;
pub use id::ContainerId;

use crate::config;

/// Failure of something that was asked of a runtime.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A command of the runtime.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// What the runtime printed.
    #[error("cannot read the answer of {program} {subcommand}")]
    Answer {
        /// The program.
        program: PathBuf,
        /// Its subcommand.
        subcommand: &'static str,
        /// Where it stops making sense.
        source: serde_json::Error,
    },
    /// The file for the container's output.
    #[error("cannot open {path} for the container's output")]
    Stdio {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The pipe on which a created container waits.
    #[error("cannot release {path}, on which the created container waits")]
    Fifo {
        /// The pipe.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A container as its runtime sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Container {
    /// Name.
    pub id: String,
    /// `created`, `running`, `paused` or `stopped`.
    pub status: String,
    /// Its init as this host sees it; 0 when stopped.
    #[serde(default)]
    pub pid: i32,
    /// Directory of `config.json`.
    pub bundle: PathBuf,
}

/// One configured runtime.
#[derive(Debug, Clone)]
pub struct Runtime {
    name: String,
    binary: PathBuf,
    root: PathBuf,
    timeout: Duration,
}

impl Runtime {
    /// A runtime as configured; every command ends within `timeout`.
    pub fn new(name: &str, config: &config::Runtime, timeout: Duration) -> Self {
        Self { name: name.into(), binary: config.binary.clone(), root: config.root.clone(), timeout }
    }

    /// Its configured name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// True if the runtime knows a container of this name, in whatever state.
    pub fn knows(&self, id: &ContainerId) -> bool {
        self.state_dir(id).exists()
    }

    /// A container that the runtime knows.
    pub async fn state(&self, id: &ContainerId) -> Result<Container, RuntimeError> {
        let output =
            command::run(self.command().arg("state").arg(id.as_str()), "state", self.timeout).await?;
        self.parse("state", &output)
    }

    /// All containers of the runtime.
    pub async fn list(&self) -> Result<Vec<Container>, RuntimeError> {
        if !self.root.exists() {
            return Ok(Vec::new());
        }
        let output = command::run(self.command().args(["list", "-f", "json"]), "list", self.timeout).await?;
        Ok(self.parse::<Option<Vec<Container>>>("list", &output)?.unwrap_or_default())
    }

    /// Makes a container that waits before its program's start. Its standard input is empty, its output goes to
    /// `log`, the runtime's own words to `log` with the extension `runtime.log`. On `Err` nothing is left of it.
    pub async fn create(
        &self,
        id: &ContainerId,
        bundle: &Path,
        log: &Path,
    ) -> Result<Container, RuntimeError> {
        let stdio_error = |source| RuntimeError::Stdio { path: log.into(), source };
        let output = open_log(log).map_err(stdio_error)?;
        let again = output.try_clone().map_err(stdio_error)?;
        let own_log = log.with_extension("runtime.log");
        let mut command = self.command();
        command.arg("--log").arg(&own_log).args(["--log-format", "json"]);
        command.args(["create", "--bundle"]).arg(bundle).arg(id.as_str());
        command.stdout(output).stderr(again);
        if let Err(error) = command::run_logged(command, "create", self.timeout, &own_log).await {
            self.delete_quietly(id).await;
            return Err(error.into());
        }
        self.state(id).await
    }

    /// Tells the runtime that a created container runs now: see the module `start`.
    pub async fn start(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let fifo = self.state_dir(id).join("exec.fifo");
        let mut command = self.command();
        command.arg("start").arg(id.as_str());
        start::release(command, &fifo, self.timeout).await
    }

    /// Kills whatever is left of a container and makes the runtime forget it.
    pub async fn delete(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let mut command = self.command();
        command.args(["delete", "--force"]).arg(id.as_str());
        command::run(&mut command, "delete", self.timeout).await?;
        Ok(())
    }

    async fn delete_quietly(&self, id: &ContainerId) {
        if self.knows(id)
            && let Err(error) = self.delete(id).await
        {
            tracing::warn!(container = id.as_str(), "{}", crate::error::chain(&error));
        }
    }

    fn state_dir(&self, id: &ContainerId) -> PathBuf {
        self.root.join(id.as_str())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--root").arg(&self.root).stdin(Stdio::null()).kill_on_drop(true);
        // The agent's readiness is not the container's.
        command.env_remove("NOTIFY_SOCKET");
        command
    }

    fn parse<'a, T: Deserialize<'a>>(
        &self,
        subcommand: &'static str,
        answer: &'a [u8],
    ) -> Result<T, RuntimeError> {
        serde_json::from_slice(answer).map_err(|source| RuntimeError::Answer {
            program: self.binary.clone(),
            subcommand,
            source,
        })
    }
}

fn open_log(path: &Path) -> io::Result<std::fs::File> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// All configured runtimes.
pub fn configured(config: &config::Config) -> BTreeMap<String, Runtime> {
    let timeout = config.migration.runtime_timeout();
    let runtimes = config.runtimes.0.iter();
    runtimes.map(|(name, runtime)| (name.clone(), Runtime::new(name, runtime, timeout))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::command::CommandError;

    fn runtime(binary: &str, root: &Path) -> Runtime {
        let config = config::Runtime { binary: binary.into(), root: root.into() };
        Runtime::new("runc", &config, Duration::from_secs(20))
    }

    fn id(name: &str) -> ContainerId {
        ContainerId::parse(name).unwrap()
    }

    #[tokio::test]
    async fn a_runtime_that_is_not_installed_is_named() {
        let root = tempfile::tempdir().unwrap();
        let error = runtime("/nonexistent/runc", root.path()).list().await.unwrap_err();
        assert!(crate::error::chain(&error).contains("/nonexistent/runc"), "{error}");
    }

    #[tokio::test]
    async fn the_words_of_the_runtime_are_in_the_error() {
        let root = tempfile::tempdir().unwrap();
        let error = runtime("runc", root.path()).state(&id("nobody")).await.unwrap_err();
        assert!(matches!(&error, RuntimeError::Command(CommandError::Failed { .. })), "{error:?}");
        assert!(error.to_string().contains("does not exist"), "{error}");
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_killed_at_its_deadline() {
        let root = tempfile::tempdir().unwrap();
        let script = root.path().join("hangs");
        std::fs::write(&script, "#!/bin/sh\nexec sleep 1000\n").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let mut runtime = runtime(script.to_str().unwrap(), root.path());
        runtime.timeout = Duration::from_millis(50);
        let error = runtime.list().await.unwrap_err();
        assert!(matches!(error, RuntimeError::Command(CommandError::Timeout { .. })), "{error:?}");
    }

    #[tokio::test]
    async fn a_missing_bundle_fails_with_the_reason_of_runc_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let runtime = runtime("runc", root.path());
        let log = root.path().join("logs/out.log");
        let id = id("agent-test-missing");
        let error = runtime.create(&id, Path::new("/nonexistent"), &log).await.unwrap_err();
        assert!(error.to_string().contains("/nonexistent"), "{error}");
        assert!(!runtime.knows(&id));
    }
}
