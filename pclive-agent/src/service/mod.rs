//! The gRPC services: control for users, peer for other agents.

mod control;
mod listen;
mod peer;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pclive_proto::control::control_server::ControlServer;
use pclive_proto::peer::peer_server::PeerServer;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::transport::Server;
use tonic_health::server::HealthReporter;

pub use listen::{ControlSocket, ListenError};

use crate::agent::Agent;
use crate::config::Config;
use crate::error::{ErrorCode, MigrationError};
use crate::link::{self, Tuning};
use crate::tls::accept::Welcome;
use crate::tls::{Caller, Gate, GateLayer, Keeper};

/// How long open calls may take to end once the services stop.
const FAREWELL: Duration = Duration::from_secs(1);

/// Everything that the agent listens on.
#[derive(Debug)]
pub struct Listeners {
    control: ControlSocket,
    control_tcp: Option<listen::Tcp>,
    peer: listen::Tcp,
}

/// The services cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A server ended by itself.
    #[error("cannot serve on {place}")]
    Serve {
        /// Its address.
        place: String,
        /// Why.
        source: tonic::transport::Error,
    },
    /// The descriptors of the services are broken.
    #[error("cannot offer reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
}

impl Listeners {
    /// Binds everything, or nothing.
    pub fn bind(config: &Config, keeper: Option<&Arc<Keeper>>) -> Result<Self, ListenError> {
        let welcome = |insecure: bool, address: &str| match keeper {
            _ if insecure => Ok(Welcome::Anybody),
            Some(keeper) => Ok(Welcome::Certified(Arc::clone(keeper))),
            None => Err(ListenError::Uncertified { address: address.into() }),
        };
        let (control, peer) = (&config.control, &config.peer);
        let peer =
            listen::Tcp::bind(&peer.listen, Tuning::link(peer), welcome(peer.insecure, &peer.listen)?)?;
        let control_tcp = match control.tcp.as_str() {
            "" => None,
            address => {
                Some(listen::Tcp::bind(address, Tuning::default(), welcome(control.insecure, address)?)?)
            }
        };
        let control = ControlSocket::bind(&control.socket)?;
        Ok(Self { control, control_tcp, peer })
    }

    /// Where peers call; the port is known even when the configuration left it to the kernel.
    pub fn peer_address(&self) -> SocketAddr {
        self.peer.address()
    }

    /// Where control calls arrive on TCP.
    pub fn control_address(&self) -> Option<SocketAddr> {
        self.control_tcp.as_ref().map(listen::Tcp::address)
    }

    /// Where control calls arrive.
    pub fn control_socket(&self) -> &Path {
        self.control.path()
    }
}

/// The running services.
#[derive(Debug)]
pub struct Services {
    health: HealthReporter,
    stop: CancellationToken,
    servers: JoinSet<Result<(), ServiceError>>,
    /// Removed when the services have ended.
    socket: PathBuf,
}

impl Services {
    /// Starts to serve.
    pub async fn start(agent: &Arc<Agent>, listeners: Listeners) -> Result<Self, ServiceError> {
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<ControlServer<control::ControlService>>().await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pclive_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let control = Server::builder()
            .layer(GateLayer::new(Gate::control()))
            .add_service(ControlServer::new(control::ControlService::new(Arc::clone(agent))))
            .add_service(health_service)
            .add_service(reflection);
        let stop = CancellationToken::new();
        let mut servers = JoinSet::new();
        let socket = listeners.control.path().to_owned();
        if let Some(tcp) = listeners.control_tcp {
            let (place, stop) = (tcp.address().to_string(), stop.clone().cancelled_owned());
            let server = control.clone().serve_with_incoming_shutdown(tcp.incoming(), stop);
            servers
                .spawn(async move { server.await.map_err(|source| ServiceError::Serve { place, source }) });
        }
        let server = control
            .serve_with_incoming_shutdown(listeners.control.incoming(), stop.clone().cancelled_owned());
        let place = socket.display().to_string();
        servers.spawn(async move { server.await.map_err(|source| ServiceError::Serve { place, source }) });
        servers.spawn(peer_server(Arc::clone(agent), listeners.peer, stop.clone()));
        Ok(Self { health, stop, servers, socket })
    }

    /// Tells whoever asks for the agent's health that it takes no more work.
    pub async fn not_serving(&self) {
        self.health.set_not_serving::<ControlServer<control::ControlService>>().await;
    }

    /// Ends only when a server ends by itself, which is a failure.
    pub async fn failed(&mut self) -> ServiceError {
        loop {
            match self.servers.join_next().await {
                Some(Ok(Err(error))) => return error,
                Some(Ok(Ok(())) | Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Takes no more calls, gives open ones a moment to end, and removes the control socket.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let ended = async { while self.servers.join_next().await.is_some() {} };
        if tokio::time::timeout(FAREWELL, ended).await.is_err() {
            tracing::debug!("calls were still open");
        }
        if let Err(error) = std::fs::remove_file(&self.socket) {
            tracing::debug!("cannot remove {}: {error}", self.socket.display());
        }
    }
}

async fn peer_server(
    agent: Arc<Agent>,
    tcp: listen::Tcp,
    stop: CancellationToken,
) -> Result<(), ServiceError> {
    let place = tcp.address().to_string();
    let service = PeerServer::new(peer::PeerService::new(Arc::clone(&agent)))
        .max_decoding_message_size(link::MAX_MESSAGE)
        .max_encoding_message_size(link::MAX_MESSAGE);
    link::tune_server(Server::builder())
        .layer(GateLayer::new(Gate::peers(&agent.config)))
        .add_service(service)
        .serve_with_incoming_shutdown(tcp.incoming(), stop.cancelled_owned())
        .await
        .map_err(|source| ServiceError::Serve { place, source })
}

/// Who called, as the connection proved it.
fn caller<T>(request: &Request<T>) -> Result<Caller, MigrationError> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| MigrationError::new(ErrorCode::AccessDenied, "cannot tell who calls"))
}
