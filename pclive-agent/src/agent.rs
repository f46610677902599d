//! The state that all services and migrations of one agent share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use pclive_proto::control;

use crate::audit::Audit;
use crate::config::{Config, Strategy};
use crate::conversation;
use crate::error::{ErrorCode, MigrationError, chain};
use crate::journal::Journal;
use crate::link::PeerAddress;
use crate::migration::convergence::{Experience, Measured};
use crate::registry::Registry;
use crate::runtime::{self, Container, ContainerId, Runtime};
use crate::tail::Tails;
use crate::tls::Keeper;

/// Most peers whose migrations are remembered.
const MOST_PEERS: usize = 1024;

/// One agent.
#[derive(Debug)]
pub struct Agent {
    /// As loaded; it does not change while the agent runs.
    pub config: Config,
    /// What other agents and logs show.
    pub name: String,
    /// Certificates; `None` when every listener is insecure.
    pub keeper: Option<Arc<Keeper>>,
    /// By configured name.
    pub runtimes: BTreeMap<String, Runtime>,
    /// All migrations, both roles.
    pub registry: Registry,
    /// What migrations to each peer have cost, by its address.
    experience: Mutex<BTreeMap<String, Experience>>,
    /// What other agents say to this one as a destination.
    pub(crate) conversations: conversation::Register,
    /// What outlives this agent.
    pub journal: Journal,
    /// What an administrator can look up later.
    pub audit: Arc<Audit>,
    /// Containers that stand still here while their last pages are fetched.
    pub(crate) tails: Tails,
}

/// A container and the runtime that knows it.
#[derive(Debug, Clone)]
pub struct Located {
    /// Its name.
    pub id: ContainerId,
    /// The runtime.
    pub runtime: Runtime,
    /// What the runtime says of it.
    pub container: Container,
}

impl Agent {
    /// An agent of this configuration. Nothing is bound or started.
    pub fn new(config: Config, keeper: Option<Arc<Keeper>>) -> Arc<Self> {
        Arc::new(Self {
            keeper,
            name: config.agent.display_name(),
            runtimes: runtime::configured(&config),
            registry: Registry::new(config.migration.max_concurrent, config.migration.history),
            experience: Mutex::default(),
            conversations: conversation::Register::default(),
            journal: Journal::new(&config.agent.state_dir, config.migration.history),
            audit: Arc::new(Audit::new(&config.agent.state_dir, config.agent.audit_max_bytes)),
            tails: Tails::default(),
            config,
        })
    }

    /// A runtime by its configured name.
    pub fn runtime(&self, name: &str) -> Result<&Runtime, MigrationError> {
        self.runtimes.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.runtimes.keys().map(String::as_str).collect();
            let message =
                format!("cannot find runtime {name:?}: configured on {} are {}", self.name, known.join(", "));
            MigrationError::new(ErrorCode::RuntimeUnknown, message)
        })
    }

    /// Finds a container by name; with `runtime` empty, at whichever runtime knows it.
    pub async fn locate(&self, name: &str, runtime: &str) -> Result<Located, MigrationError> {
        let id = container_id(name)?;
        let candidates: Vec<&Runtime> = match runtime {
            "" => self.runtimes.values().collect(),
            runtime => vec![self.runtime(runtime)?],
        };
        let mut knowing = candidates.into_iter().filter(|runtime| runtime.knows(&id));
        let Some(runtime) = knowing.next() else {
            let message = format!("cannot find container {name} on {}", self.name);
            return Err(MigrationError::new(ErrorCode::ContainerNotFound, message));
        };
        if let Some(other) = knowing.next() {
            let (first, second) = (runtime.name(), other.name());
            let message = format!("cannot choose between container {name} of {first} and of {second}");
            return Err(MigrationError::new(ErrorCode::ContainerAmbiguous, message));
        }
        let container = runtime.state(&id).await;
        let container =
            container.map_err(|error| MigrationError::caused(ErrorCode::RuntimeFailed, &error))?;
        Ok(Located { id, runtime: runtime.clone(), container })
    }

    /// Finds a container that runs.
    pub async fn locate_running(&self, name: &str, runtime: &str) -> Result<Located, MigrationError> {
        let located = self.locate(name, runtime).await?;
        let container = &located.container;
        if container.status == "running" && container.pid > 0 {
            return Ok(located);
        }
        let message = format!("cannot migrate container {name}: it is {}", container.status);
        Err(MigrationError::new(ErrorCode::ContainerNotRunning, message))
    }

    /// The address of a peer that is given by its configured name or as `host:port`.
    pub fn peer_address(&self, destination: &str) -> Result<PeerAddress, MigrationError> {
        if let Some(address) = self.config.peers.get(destination) {
            return Ok(PeerAddress { name: destination.into(), address: address.clone() });
        }
        if crate::config::is_host_port(destination) {
            return Ok(PeerAddress { name: destination.into(), address: destination.into() });
        }
        let known: Vec<&str> = self.config.peers.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none".into() } else { known.join(", ") };
        let message = format!(
            "cannot find peer {destination:?}: it is neither a configured peer ({known}) nor host:port"
        );
        Err(MigrationError::new(ErrorCode::InvalidRequest, message)
            .hint("add it to [peers] of the agent's configuration, or give host:port"))
    }

    /// What migrations to this peer have cost so far.
    pub fn experience(&self, peer: &PeerAddress) -> Experience {
        let known = self.experience.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&peer.address).copied().unwrap_or_default()
    }

    /// Remembers what one more has cost. For as many peers as a fleet has; beyond that the old is forgotten.
    pub fn learn(&self, peer: &PeerAddress, measured: Measured) {
        let learned = self.experience(peer).with(measured);
        let mut known = self.experience.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST_PEERS {
            known.clear();
        }
        known.insert(peer.address.clone(), learned);
    }

    /// The strategy that a request means.
    pub fn strategy(&self, asked: control::Strategy) -> Strategy {
        match asked {
            control::Strategy::Unspecified => self.config.migration.strategy,
            control::Strategy::OneShot => Strategy::OneShot,
            control::Strategy::Global => Strategy::Global,
            control::Strategy::Pipelined => Strategy::Pipelined,
        }
    }

    /// Every container of every runtime. A runtime that fails is logged and left out.
    pub async fn containers(&self) -> Vec<control::Container> {
        let mut all = Vec::new();
        for runtime in self.runtimes.values() {
            match runtime.list().await {
                Ok(list) => all.extend(list.into_iter().map(|container| self.describe(runtime, container))),
                Err(error) => tracing::warn!(runtime = runtime.name(), "{}", chain(&error)),
            }
        }
        all
    }

    fn describe(&self, runtime: &Runtime, container: Container) -> control::Container {
        control::Container {
            migration_id: self.registry.of_container(&container.id).unwrap_or_default(),
            id: container.id,
            runtime: runtime.name().into(),
            status: container.status,
            pid: container.pid,
            bundle: container.bundle.to_string_lossy().into_owned(),
        }
    }
}

/// A container's name, checked.
pub fn container_id(name: &str) -> Result<ContainerId, MigrationError> {
    ContainerId::parse(name).ok_or_else(|| {
        let shown: String = name.chars().take(80).collect();
        MigrationError::new(ErrorCode::InvalidRequest, format!("cannot use {shown:?} as a container's name"))
            .hint("letters, digits, _ + - and . are allowed")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent() -> Arc<Agent> {
        let mut config = Config::default();
        config.peers.insert("host-b".into(), "10.0.0.2:7413".into());
        if let Some(runc) = config.runtimes.0.get_mut("runc") {
            runc.root = "/nonexistent".into();
        }
        Agent::new(config, None)
    }

    #[test]
    fn peers_are_found_by_name_and_by_address() {
        let agent = agent();
        assert_eq!(agent.peer_address("host-b").unwrap().address, "10.0.0.2:7413");
        assert_eq!(agent.peer_address("10.0.0.9:1").unwrap().address, "10.0.0.9:1");
        let error = agent.peer_address("host-c").unwrap_err();
        assert!(error.message.contains("host-c") && error.message.contains("host-b"), "{error}");
    }

    #[tokio::test]
    async fn a_container_that_does_not_exist_is_not_found() {
        assert_eq!(agent().locate("nobody", "").await.unwrap_err().code, ErrorCode::ContainerNotFound);
    }

    #[tokio::test]
    async fn names_and_runtimes_that_make_no_sense_are_refused() {
        assert_eq!(agent().locate("../x", "").await.unwrap_err().code, ErrorCode::InvalidRequest);
        let error = agent().locate("web", "docker").await.unwrap_err();
        assert_eq!(error.code, ErrorCode::RuntimeUnknown);
        assert!(error.message.contains("runc"), "{error}");
    }

    #[tokio::test]
    async fn a_runtime_without_containers_lists_none() {
        assert!(agent().containers().await.is_empty());
    }
}
