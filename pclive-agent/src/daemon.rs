//! The life of the agent: bind, recover what an earlier one left, serve, and go down in order.
//!
//! Going down: nothing new begins; running migrations get the grace period to end, then they are cancelled and
//! roll back; then the services end. A second signal cuts the grace short.

use std::io;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::agent::Agent;
use crate::config::Config;
use crate::error::{ErrorCode, MigrationError};
use crate::journal::JournalError;
use crate::notify;
use crate::recovery;
use crate::service::{ListenError, Listeners, ServiceError, Services};
use crate::tls::Keeper;

/// The agent ended otherwise than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Something cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A service failed.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// Signals cannot be received.
    #[error("cannot watch for signals")]
    Signals(#[source] io::Error),
    /// What an earlier agent left cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A directory of the agent.
    #[error("cannot make {path}")]
    Directory {
        /// The directory.
        path: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn watch() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Runs an agent until a signal ends it.
pub async fn run(config: Config, keeper: Option<Arc<Keeper>>) -> Result<(), DaemonError> {
    let mut signals = Signals::watch().map_err(DaemonError::Signals)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(DaemonError::Signals)?;
    adopt_orphans();
    raise_descriptor_limit();
    let state_dir = &config.agent.state_dir;
    std::fs::create_dir_all(state_dir)
        .map_err(|source| DaemonError::Directory { path: state_dir.clone(), source })?;
    warn_of_plain_text(&config);
    let listeners = Listeners::bind(&config, keeper.as_ref())?;
    let agent = Agent::new(config, keeper);
    tracing::info!(
        name = agent.name,
        version = env!("CARGO_PKG_VERSION"),
        control = %listeners.control_socket().display(),
        control_tcp = listeners.control_address().map(tracing::field::display),
        peer = %listeners.peer_address(),
        "agent serves"
    );
    // Bound by now, so that no other agent lives; not served yet, so that nobody is told half of it.
    recovery::recover(&agent).await?;
    let mut services = Services::start(&agent, listeners).await?;
    notify::ready();
    let signal = loop {
        tokio::select! {
            signal = signals.next() => break signal,
            _ = hangup.recv() => reload(agent.keeper.as_deref()),
            error = services.failed() => return Err(error.into()),
        }
    };
    tracing::info!(signal, running = agent.registry.live(), "agent goes down");
    notify::stopping();
    services.not_serving().await;
    wind_down(&agent, &mut signals).await;
    services.stop().await;
    tracing::info!("agent ended");
    Ok(())
}

/// What is not protected is said at every start.
fn warn_of_plain_text(config: &Config) {
    if config.peer.insecure {
        tracing::warn!(
            listen = config.peer.listen,
            "links to other agents are plain text and not authenticated (peer.insecure)"
        );
    }
    if config.control.insecure && !config.control.tcp.is_empty() {
        tracing::warn!(
            listen = config.control.tcp,
            "whoever reaches the control listener controls this agent (control.insecure)"
        );
    }
}

/// SIGHUP: new connections use the certificates that are in the files now.
fn reload(keeper: Option<&Keeper>) {
    match keeper.map(Keeper::reload) {
        Some(Ok(())) => tracing::info!("certificates reloaded"),
        Some(Err(error)) => {
            tracing::error!("the certificates stay as they were: {}", crate::error::chain(&error));
        }
        None => tracing::info!("no certificates to reload"),
    }
}

/// Containers that the runtime starts for the agent become its children, so that it sees them end.
fn adopt_orphans() {
    if let Err(error) = nix::sys::prctl::set_child_subreaper(true) {
        tracing::debug!("cannot adopt orphans: {error}");
    }
}

/// While a container moves, the agent holds all of its descriptors. Containers that the runtime creates inherit the
/// limit until they are given that of their original.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::debug!("cannot raise the limit of descriptors: {error}");
    }
}

/// Waits for the running migrations; first patiently, then after telling them to roll back.
async fn wind_down(agent: &Arc<Agent>, signals: &mut Signals) {
    let migration = &agent.config.migration;
    let why = MigrationError::new(ErrorCode::ShuttingDown, format!("agent {} is going down", agent.name));
    agent.registry.close(&why);
    tokio::select! {
        done = agent.registry.idle(migration.shutdown_grace()) => if done { return },
        signal = signals.next() => tracing::info!(signal, "no more patience"),
    }
    agent.registry.cancel_all(&why);
    if !agent.registry.idle(migration.handover_timeout()).await {
        tracing::error!("migrations did not end; the kernel lets their containers go");
    }
}
