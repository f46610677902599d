//! An agent inside the test process: its services on a socket and ports of their own.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

pub mod authority;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pclive_agent::agent::Agent;
use pclive_agent::config::Config;
use pclive_agent::service::{Listeners, Services};
use pclive_agent::tls::Keeper;
use pclive_proto::control::control_client::ControlClient;
use pclive_proto::peer::peer_client::PeerClient;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// A serving agent; it ends with the value.
pub struct Served {
    pub directory: TempDir,
    pub agent: Arc<Agent>,
    pub services: Services,
    pub control: Option<SocketAddr>,
    peer: String,
}

impl Served {
    /// Serves with a runtime that has no containers.
    pub async fn start() -> Self {
        Self::start_with(|config, _| config.peer.insecure = true).await
    }

    /// The same with changes to the configuration, which may use the directory.
    pub async fn start_with(change: impl FnOnce(&mut Config, &Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.agent.name = "host-t".into();
        config.agent.state_dir = directory.path().join("state");
        config.control.socket = directory.path().join("run/agent.sock");
        config.peer.listen = "127.0.0.1:0".into();
        config.runtimes.0.values_mut().for_each(|runtime| runtime.root = directory.path().join("runc"));
        config.migration.stdio_dir = directory.path().join("stdio");
        change(&mut config, directory.path());
        let keeper = Keeper::load(&config).unwrap();
        let listeners = Listeners::bind(&config, keeper.as_ref()).unwrap();
        let control = listeners.control_address();
        let peer = listeners.peer_address().to_string();
        let agent = Agent::new(config, keeper);
        let services = Services::start(&agent, listeners).await.unwrap();
        Self { directory, agent, services, control, peer }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub async fn channel(&self) -> Channel {
        let socket = format!("unix://{}", self.agent.config.control.socket.display());
        Endpoint::from_shared(socket).unwrap().connect().await.unwrap()
    }

    pub async fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel().await)
    }

    pub async fn peer(&self) -> PeerClient<Channel> {
        PeerClient::connect(format!("http://{}", self.peer)).await.unwrap()
    }

    pub fn peer_address(&self) -> &str {
        &self.peer
    }
}
