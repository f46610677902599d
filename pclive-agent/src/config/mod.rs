//! What the agent can be told: defaults, then a file, then `PCLIVE_*` variables of the environment.
//!
//! Invariants: every key has a default; a key that is not known is refused with its place; no value is used
//! before all of them have been checked; nothing is bound before the configuration is whole.
//!
//! Units are part of the key's name (`_ms`, `_bytes`). A variable names a key by its path with two underscores
//! between the parts: `PCLIVE_MIGRATION__MAX_ROUNDS=5` is `max_rounds` in `[migration]`.

mod defaults;
mod load;
mod place;
mod validate;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use pclive_tls::Files;
use serde::{Deserialize, Serialize};

use crate::conversation;
use crate::migration::convergence::Policy;
use crate::network::NetworkConfig;

pub(crate) use load::parse;
pub use load::{ConfigError, load};
pub use place::Places;
pub use validate::Problem;
pub(crate) use validate::is_host_port;

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// This agent.
    pub agent: Agent,
    /// What is logged, and how.
    pub log: Log,
    /// Where administrators and orchestrators call.
    pub control: Control,
    /// Where other agents call, and how they are called.
    pub peer: Peer,
    /// Certificates of the links and of the control listener on TCP.
    pub tls: Tls,
    /// Other agents: name -> `host:port`.
    pub peers: BTreeMap<String, String>,
    /// Container runtimes by name.
    pub runtimes: Runtimes,
    /// How this host attaches containers.
    pub network: Network,
    /// Limits and choices of migrations.
    pub migration: Migration,
    /// Commands that are run at points of a migration.
    pub hooks: Hooks,
}

/// This agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Agent {
    /// Name that other agents and logs show; empty: the host's name.
    pub name: String,
    /// What must outlive the agent.
    pub state_dir: PathBuf,
    /// Size at which the audit record is rotated, bytes; one older file is kept.
    pub audit_max_bytes: u64,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Log {
    /// `text` or `json`.
    pub format: LogFormat,
    /// A level (`error`, `warn`, `info`, `debug`, `trace`) or a filter of levels by module.
    pub filter: String,
}

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Where administrators and orchestrators call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Control {
    /// Unix socket, for root only.
    pub socket: PathBuf,
    /// `address:port`, empty for none. Callers need a certificate with a role.
    pub tcp: String,
    /// Plain text on TCP, for whoever can reach it.
    pub insecure: bool,
    /// The same where others than this host can reach it.
    pub insecure_outside_loopback: bool,
}

/// The link to other agents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Peer {
    /// `address:port` to listen on.
    pub listen: String,
    /// Plain text, and no check of who calls.
    pub insecure: bool,
    /// The same where others than this host can reach it.
    pub insecure_outside_loopback: bool,
    /// Whether agents may call that are not in `[peers]`, with a certificate of the CA.
    pub accept_unlisted: bool,
    /// TCP congestion control of the page stream, empty for the host's default.
    pub congestion: String,
    /// Quiet time after which the kernel probes the link, rounded up to seconds.
    pub keepalive_interval_ms: u64,
    /// A link that stays silent for this much longer is at its end.
    pub keepalive_timeout_ms: u64,
}

/// Certificates of the links and of the control listener on TCP, PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tls {
    /// The CA's certificate.
    pub ca: PathBuf,
    /// This agent's certificate; empty: `NAME.pem` beside the CA's.
    pub certificate: PathBuf,
    /// Its key; empty: `NAME.key` beside the CA's certificate.
    pub key: PathBuf,
}

/// Container runtimes by name. `runc` is always there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Runtimes(pub BTreeMap<String, Runtime>);

/// A runtime with runc's command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Runtime {
    /// Program, by path or found in `PATH`.
    pub binary: PathBuf,
    /// The runtime's state directory (`--root`).
    pub root: PathBuf,
}

/// How this host attaches containers that arrive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    /// Bridge for interfaces that the runtime does not make; empty: the runtime makes them all.
    pub bridge: String,
    /// Most that is kept, sent and injected of what reaches a container during its stop; 0: nothing.
    pub capture_bytes: u64,
}

/// Limits and choices of migrations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Migration {
    /// Strategy of a request that names none.
    pub strategy: Strategy,
    /// Delayed restoration: rounds before this one are merged at the destination, then the copy is built.
    pub restore_after: u32,
    /// The container is stopped once the predicted downtime is below this.
    pub max_downtime_ms: u64,
    /// What every round carries; the rest goes with the stop.
    pub capture_each_round: Vec<RoundKind>,
    /// Most rounds while the container runs.
    pub max_rounds: u32,
    /// Longest time from a migration's begin to the end of its rounds; 0: no limit.
    pub max_time_ms: u64,
    /// What is done when the predicted downtime stays above the limit.
    pub policy: Policy,
    /// Most bytes a second of the page stream while the container runs; 0: no limit.
    pub bandwidth_bytes_per_second: u64,
    /// Whether pages are compressed on the wire.
    pub compression: Compression,
    /// Memory of both ends is compared before the commit.
    pub verify: bool,
    /// Contents in one message of the page stream.
    pub batch_bytes: u64,
    /// Page contents on their way, beside the link's own windows: what a source and a destination with this value
    /// hold together.
    pub in_flight_bytes: u64,
    /// Most migrations at once of each role; the others wait for their turn.
    pub max_concurrent: u32,
    /// Most memory that waits at the destination before it is put in place; 0: half of what is available.
    pub staging_limit_bytes: u64,
    /// Ended migrations that stay listed.
    pub history: u32,
    /// Where restored containers write what goes to their standard output and error.
    pub stdio_dir: PathBuf,
    /// Longest wait for a connection to the other agent.
    pub connect_timeout_ms: u64,
    /// Connections that a migration's pages spread over; 0: one for four CPUs, at most eight.
    pub streams: u32,
    /// How long a migration whose connections broke waits for a new one, while the container runs.
    pub reconnect_timeout_ms: u64,
    /// Longest wait for the destination to check, create and adopt its container.
    pub prepare_timeout_ms: u64,
    /// Longest wait for the other end to make progress during rounds.
    pub progress_timeout_ms: u64,
    /// Longest wait for a task to stop.
    pub stop_timeout_ms: u64,
    /// Longest wait, while the container is stopped, for each answer of the destination.
    pub handover_timeout_ms: u64,
    /// How long a destination that does not confirm the commit is asked before the migration is in doubt.
    pub commit_grace_ms: u64,
    /// Longest run of a command of the runtime.
    pub runtime_timeout_ms: u64,
    /// How long running migrations may go on after SIGTERM.
    pub shutdown_grace_ms: u64,
}

/// Commands of the site, program and arguments, that are run at points of a migration; empty: none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hooks {
    /// Source, when the rounds have ended and the container still runs. Its failure ends the migration.
    pub before_freeze: Vec<String>,
    /// Destination, when the copy runs.
    pub after_resume: Vec<String>,
    /// Source, when the copy runs and nothing of the original is left.
    pub after_source_destroyed: Vec<String>,
    /// Both, when the migration has ended and the container runs on at the source.
    pub on_rollback: Vec<String>,
    /// Longest run of one of them.
    pub timeout_ms: u64,
}

/// How memory gets to its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", rename_all = "kebab-case")]
pub enum Strategy {
    /// The copy is built from round 0 on; pages go straight into it.
    #[default]
    Global,
    /// The copy is built from round 0 on; a round waits until it is whole, and is put in place while the next one is
    /// on its way.
    Pipelined,
    /// Everything waits at the destination and is restored after the stop.
    OneShot,
}

/// Whether pages are compressed on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", rename_all = "kebab-case")]
pub enum Compression {
    /// By zstd, while that is measured to be faster.
    Auto,
    /// Never.
    #[default]
    Off,
}

/// A kind of state that rounds can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", rename_all = "kebab-case")]
pub enum RoundKind {
    /// Pages, private and shared.
    Memory,
    /// Processes and threads.
    Tree,
    /// Mappings.
    Vmas,
    /// Files that are open by a path.
    Files,
    /// Listening TCP sockets.
    Sockets,
}

impl RoundKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Memory, Self::Tree, Self::Vmas, Self::Files, Self::Sockets];
    /// Those that have no meaning without each other.
    pub const NEEDED: [Self; 3] = [Self::Memory, Self::Tree, Self::Vmas];
}

impl TryFrom<String> for RoundKind {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "memory" => Ok(Self::Memory),
            "tree" => Ok(Self::Tree),
            "vmas" => Ok(Self::Vmas),
            "files" => Ok(Self::Files),
            "sockets" => Ok(Self::Sockets),
            other => {
                Err(format!("{other:?} is none of \"memory\", \"tree\", \"vmas\", \"files\" and \"sockets\""))
            }
        }
    }
}

impl TryFrom<String> for Compression {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            other => Err(format!("{other:?} is neither \"auto\" nor \"off\"")),
        }
    }
}

impl Strategy {
    /// Every strategy.
    pub const ALL: [Self; 3] = [Self::Global, Self::Pipelined, Self::OneShot];
}

impl TryFrom<String> for LogFormat {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("{other:?} is neither \"text\" nor \"json\"")),
        }
    }
}

impl TryFrom<String> for Strategy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "global" => Ok(Self::Global),
            "pipelined" => Ok(Self::Pipelined),
            "one-shot" => Ok(Self::OneShot),
            other => Err(format!("{other:?} is none of \"global\", \"pipelined\" and \"one-shot\"")),
        }
    }
}

impl Hooks {
    /// [`Self::timeout_ms`].
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

impl Agent {
    /// The configured name, else the host's.
    pub fn display_name(&self) -> String {
        if !self.name.is_empty() {
            return self.name.clone();
        }
        match nix::unistd::gethostname() {
            Ok(name) => name.to_string_lossy().into_owned(),
            Err(_) => "unnamed".into(),
        }
    }
}

impl Tls {
    /// The files of the agent `name`.
    pub fn files(&self, name: &str) -> Files {
        let or_beside = |path: &PathBuf, kind: &str| {
            if path.as_os_str().is_empty() {
                self.ca.with_file_name(format!("{name}.{kind}"))
            } else {
                path.clone()
            }
        };
        Files {
            ca: self.ca.clone(),
            certificate: or_beside(&self.certificate, "pem"),
            key: or_beside(&self.key, "key"),
        }
    }
}

impl From<&Network> for NetworkConfig {
    fn from(network: &Network) -> Self {
        Self { bridge: Some(network.bridge.clone()).filter(|bridge| !bridge.is_empty()) }
    }
}

impl Strategy {
    /// As users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Global => "global",
            Self::Pipelined => "pipelined",
            Self::OneShot => "one-shot",
        }
    }
}

impl Migration {
    /// The source's part of [`Self::in_flight_bytes`]: what waits for the link, and what may have to go again.
    pub(crate) fn conversation_limits(&self) -> conversation::Limits {
        let queued = self.in_flight_bytes / 8 / self.batch_bytes.max(1);
        conversation::Limits {
            queued: usize::try_from(queued.max(1)).unwrap_or(1),
            unconfirmed_bytes: usize::try_from(self.in_flight_bytes / 4).unwrap_or(usize::MAX),
        }
    }

    /// The destination's part of [`Self::in_flight_bytes`], KiB: what waits for the restorers. More than a message
    /// holds.
    pub fn in_flight_kib_at_destination(&self) -> usize {
        usize::try_from(self.in_flight_bytes / 8 * 5 / 1024).unwrap_or(usize::MAX)
    }

    /// [`Self::connect_timeout_ms`].
    pub fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    /// [`Self::reconnect_timeout_ms`].
    pub fn reconnect_timeout(&self) -> Duration {
        Duration::from_millis(self.reconnect_timeout_ms)
    }

    /// [`Self::prepare_timeout_ms`].
    pub fn prepare_timeout(&self) -> Duration {
        Duration::from_millis(self.prepare_timeout_ms)
    }

    /// [`Self::progress_timeout_ms`].
    pub fn progress_timeout(&self) -> Duration {
        Duration::from_millis(self.progress_timeout_ms)
    }

    /// [`Self::stop_timeout_ms`].
    pub fn stop_timeout(&self) -> Duration {
        Duration::from_millis(self.stop_timeout_ms)
    }

    /// [`Self::handover_timeout_ms`].
    pub fn handover_timeout(&self) -> Duration {
        Duration::from_millis(self.handover_timeout_ms)
    }

    /// [`Self::commit_grace_ms`].
    pub fn commit_grace(&self) -> Duration {
        Duration::from_millis(self.commit_grace_ms)
    }

    /// [`Self::runtime_timeout_ms`].
    pub fn runtime_timeout(&self) -> Duration {
        Duration::from_millis(self.runtime_timeout_ms)
    }

    /// [`Self::shutdown_grace_ms`].
    pub fn shutdown_grace(&self) -> Duration {
        Duration::from_millis(self.shutdown_grace_ms)
    }
}
