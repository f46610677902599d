//! Commands of the site that the agent runs at fixed points of a migration, so that the site can do its own routing.
//!
//! Invariants: none of them runs while the container is stopped, but for what comes after its end; each has a deadline;
//! none outlives its agent, nor its deadline, with all of its process group ([`supervisor`]). Only `before-freeze` can
//! end a migration; what fails later is a warning.
//!
//! A hook may run twice for one migration: an agent that was killed cannot know how far its own has come, and its
//! successor runs it again.

pub mod runner;
pub mod supervisor;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::agent::Agent;
use crate::config::Hooks;
use crate::error::{ErrorCode, MigrationError, chain};
use crate::journal::{Ending, Record, Role};
use crate::registry::Entry;

/// The agent's own program, which supervises them.
const PROGRAM: &str = "/proc/self/exe";

/// A point at which a command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Source: the rounds have ended, and the container still runs.
    BeforeFreeze,
    /// Destination: the copy runs.
    AfterResume,
    /// Source: the copy runs, and nothing of the original is left.
    AfterSourceDestroyed,
    /// Both: the migration has ended and the container runs on at the source.
    OnRollback,
}

impl Hook {
    /// As `PCLIVE_HOOK` says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::BeforeFreeze => "before-freeze",
            Self::AfterResume => "after-resume",
            Self::AfterSourceDestroyed => "after-source-destroyed",
            Self::OnRollback => "on-rollback",
        }
    }

    /// Program and arguments; empty: nothing is to be run.
    fn command(self, hooks: &Hooks) -> &[String] {
        match self {
            Self::BeforeFreeze => &hooks.before_freeze,
            Self::AfterResume => &hooks.after_resume,
            Self::AfterSourceDestroyed => &hooks.after_source_destroyed,
            Self::OnRollback => &hooks.on_rollback,
        }
    }

    /// The one that follows the end of a migration at this end of it.
    fn of(role: Role, ending: &Ending) -> Self {
        match (role, ending) {
            (Role::Source, Ending::Done) => Self::AfterSourceDestroyed,
            (Role::Destination, Ending::Done) => Self::AfterResume,
            (Role::Source | Role::Destination, Ending::Failed(_)) => Self::OnRollback,
        }
    }
}

/// Runs a hook, if the site has one for this point. When this is dropped, it is killed.
pub(crate) async fn run(agent: &Agent, record: &Record, hook: Hook) -> Result<(), MigrationError> {
    run_for(agent, record, hook, "").await
}

/// Runs what follows the end of a migration; what fails is a warning of it.
pub(crate) async fn after(agent: &Agent, entry: &Entry, record: &Record, ending: &Ending) {
    let reason = match ending {
        Ending::Done => "",
        Ending::Failed(reason) => reason.code.as_str(),
    };
    if let Err(error) = run_for(agent, record, Hook::of(record.role, ending), reason).await {
        entry.warn(error.message);
    }
}

/// The same beside everything else, for what an earlier agent has begun.
pub(crate) fn after_recovery(agent: &Arc<Agent>, entry: Arc<Entry>, record: &Record, ending: Ending) {
    let (agent, record) = (Arc::clone(agent), record.clone());
    tokio::spawn(async move { after(&agent, &entry, &record, &ending).await });
}

async fn run_for(agent: &Agent, record: &Record, hook: Hook, reason: &str) -> Result<(), MigrationError> {
    let hooks = &agent.config.hooks;
    let command = hook.command(hooks);
    if command.is_empty() {
        return Ok(());
    }
    let began = Instant::now();
    let ran =
        runner::run(Path::new(PROGRAM), command, &variables(record, hook, reason), hooks.timeout()).await;
    let said = ran.map_err(|error| {
        let message = format!("hook {} failed: {}", hook.name(), chain(&error));
        MigrationError::new(ErrorCode::HookFailed, message)
    })?;
    tracing::info!(hook = hook.name(), ms = began.elapsed().as_millis(), said, "hook has run");
    Ok(())
}

/// What a command is told, in variables of its environment.
fn variables(record: &Record, hook: Hook, reason: &str) -> Vec<(&'static str, String)> {
    let role = match record.role {
        Role::Source => "source",
        Role::Destination => "destination",
    };
    let mut variables = vec![
        ("PCLIVE_HOOK", hook.name().into()),
        ("PCLIVE_ROLE", role.into()),
        ("PCLIVE_CONTAINER", record.container.clone()),
        ("PCLIVE_MIGRATION", record.id.clone()),
        ("PCLIVE_PEER", record.peer.name.clone()),
        ("PCLIVE_RUNTIME", record.runtime.clone()),
        ("PCLIVE_BUNDLE", record.bundle.to_string_lossy().into_owned()),
    ];
    let init = record.init.filter(|_| matches!(hook, Hook::BeforeFreeze | Hook::AfterResume));
    variables.extend(init.map(|init| ("PCLIVE_PID", init.pid.to_string())));
    if hook == Hook::OnRollback {
        variables.push(("PCLIVE_REASON", reason.into()));
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Reason;

    #[test]
    fn every_end_has_its_hook() {
        let failed = Ending::Failed(Reason::new(ErrorCode::Cancelled, "", ""));
        assert_eq!(Hook::of(Role::Source, &Ending::Done), Hook::AfterSourceDestroyed);
        assert_eq!(Hook::of(Role::Destination, &Ending::Done), Hook::AfterResume);
        assert_eq!(Hook::of(Role::Source, &failed), Hook::OnRollback);
        assert_eq!(Hook::of(Role::Destination, &failed), Hook::OnRollback);
    }
}
