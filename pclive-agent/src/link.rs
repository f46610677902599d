//! The link to another agent: one tuning for both of its ends.
//!
//! HTTP/2 windows of 16 MiB and frames of 1 MiB keep a 10 Gbit/s link full; probes notice a dead peer long before
//! anything waits for it. Mutual TLS unless `peer.insecure` is set; the other agent must have the certificate of the
//! name, or of the host, that it was asked for by. Kernel: `TCP_NODELAY`, `TCP_CONGESTION` (tcp(7)).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use pclive_proto::peer::peer_client::PeerClient;
use pclive_tls::{Connector, End, Fault};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tonic::transport::{Channel, Endpoint, Server, Uri};

use crate::config::{Migration, Peer};
use crate::error::{ErrorCode, MigrationError, chain};
use crate::tls::Keeper;

/// Largest message, bytes: a batch of pages with as many runs as it may have, or a part of a document. It is no larger
/// because what a message decodes to may take tens of times its bytes.
pub const MAX_MESSAGE: usize = 8 << 20;

const WINDOW: u32 = 16 << 20;
const FRAME: u32 = 1 << 20;

/// The server's end.
pub fn tune_server(server: Server, config: &Peer) -> Server {
    server
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(FRAME)
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(Duration::from_millis(config.keepalive_interval_ms)))
        .http2_keepalive_timeout(Some(Duration::from_millis(config.keepalive_timeout_ms)))
}

/// Options of a TCP socket of the link. A congestion control that this kernel lacks is not a failure.
pub fn tune_socket(socket: &impl std::os::fd::AsFd, congestion: &str) {
    let _ = setsockopt(socket, sockopt::TcpNoDelay, &true);
    if congestion.is_empty() {
        return;
    }
    if let Err(error) = setsockopt(socket, sockopt::TcpCongestion, &congestion.into()) {
        tracing::debug!("cannot use congestion control {congestion}: {error}");
    }
}

/// Another agent: as it was asked for, and where it is.
#[derive(Debug, Clone)]
pub struct PeerAddress {
    /// A configured name, or `host:port` itself.
    pub name: String,
    /// `host:port`.
    pub address: String,
}

impl PeerAddress {
    /// What its certificate must carry: the configured name, else the host of `host:port`.
    fn certified_name(&self) -> &str {
        if self.name != self.address {
            return &self.name;
        }
        let host = self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }
}

impl std::fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.name == self.address {
            f.write_str(&self.name)
        } else {
            write!(f, "{} ({})", self.name, self.address)
        }
    }
}

/// Connects to another agent.
pub async fn connect(
    address: &PeerAddress,
    peer: &Peer,
    migration: &Migration,
    keeper: Option<&Arc<Keeper>>,
) -> Result<PeerClient<Channel>, MigrationError> {
    let unreachable = |why: &str| {
        MigrationError::new(ErrorCode::PeerUnreachable, format!("cannot reach the agent at {address}: {why}"))
    };
    let endpoint = Endpoint::from_shared(format!("http://{}", address.address))
        .map_err(|error| unreachable(&chain(&error)))?
        .connect_timeout(migration.connect_timeout())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(FRAME)
        .http2_keep_alive_interval(Duration::from_millis(peer.keepalive_interval_ms))
        .keep_alive_timeout(Duration::from_millis(peer.keepalive_timeout_ms))
        .keep_alive_while_idle(true);
    let dial = Dial { congestion: peer.congestion.clone(), security: security(address, peer, keeper)? };
    let connector = tower::service_fn(move |uri: Uri| dial.clone().open(uri));
    let connected =
        tokio::time::timeout(migration.connect_timeout(), endpoint.connect_with_connector(connector));
    let channel = match connected.await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => {
            return Err(mistrust(address, &error).unwrap_or_else(|| unreachable(&root_cause(&error))));
        }
        Err(_) => return Err(unreachable(&format!("no answer within {} ms", migration.connect_timeout_ms))),
    };
    Ok(PeerClient::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
}

/// How a connection is protected.
#[derive(Debug, Clone)]
enum Security {
    /// Not at all, on this host or everywhere.
    Plain { everywhere: bool },
    /// By TLS with the holder of this name.
    Tls { connector: Connector, name: String },
}

fn security(
    address: &PeerAddress,
    peer: &Peer,
    keeper: Option<&Arc<Keeper>>,
) -> Result<Security, MigrationError> {
    match keeper {
        _ if peer.insecure => Ok(Security::Plain { everywhere: peer.insecure_outside_loopback }),
        Some(keeper) => {
            let name = address.certified_name().to_owned();
            Ok(Security::Tls { connector: keeper.connector(), name })
        }
        None => Err(MigrationError::new(ErrorCode::Internal, "this agent has no certificates")),
    }
}

/// What a connection needs beside the address.
#[derive(Debug, Clone)]
struct Dial {
    congestion: String,
    security: Security,
}

impl Dial {
    async fn open(self, uri: Uri) -> io::Result<TokioIo<Either<TcpStream, TlsStream<TcpStream>>>> {
        let (Some(host), Some(port)) = (uri.host(), uri.port_u16()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not host:port"));
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((host, port)).await?;
        tune_socket(&stream, &self.congestion);
        let stream = match self.security {
            Security::Plain { everywhere } if everywhere || stream.peer_addr()?.ip().is_loopback() => {
                Either::Left(stream)
            }
            Security::Plain { .. } => {
                let why = "plain text beyond this host needs peer.insecure_outside_loopback = true";
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
            }
            Security::Tls { connector, name } => Either::Right(connector.connect(&name, stream).await?),
        };
        Ok(TokioIo::new(stream))
    }
}

/// The error of a handshake that one of the ends refused.
fn mistrust(address: &PeerAddress, error: &(dyn std::error::Error + 'static)) -> Option<MigrationError> {
    let Fault { what, hint } = Fault::of(error, End::Client)?;
    let message = format!("cannot agree on a secure link with the agent at {address}: {what}");
    let error = MigrationError::new(ErrorCode::TlsFailed, message);
    if address.name == address.address && what.contains("is not for") {
        let hint = "name a peer of [peers] instead of its address, or issue its certificate for the address \
                    (pclivectl certs issue NAME --address IP)";
        return Some(error.hint(hint));
    }
    Some(error.hint(hint))
}

/// The innermost cause: the transport's own words around it say nothing.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    innermost.to_string()
}
