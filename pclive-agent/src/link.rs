//! The link to another agent: one tuning for both of its ends.
//!
//! HTTP/2 windows of 16 MiB and frames of 1 MiB keep a 10 Gbit/s link full; probes notice a dead peer long before
//! anything waits for it. Kernel: `TCP_NODELAY`, `TCP_CONGESTION` (tcp(7)).

use std::io;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use pclive_proto::peer::peer_client::PeerClient;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Server, Uri};

use crate::config::{Migration, Peer};
use crate::error::{ErrorCode, MigrationError, chain};

/// Largest message, bytes: the final state of a container with thousands of threads is the largest that there is.
pub const MAX_MESSAGE: usize = 64 << 20;

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
    let congestion = peer.congestion.clone();
    let connector = tower::service_fn(move |uri: Uri| open(uri, congestion.clone()));
    let connected =
        tokio::time::timeout(migration.connect_timeout(), endpoint.connect_with_connector(connector));
    let channel = match connected.await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => return Err(unreachable(&root_cause(&error))),
        Err(_) => return Err(unreachable(&format!("no answer within {} ms", migration.connect_timeout_ms))),
    };
    Ok(PeerClient::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
}

async fn open(uri: Uri, congestion: String) -> io::Result<TokioIo<TcpStream>> {
    let (Some(host), Some(port)) = (uri.host(), uri.port_u16()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not host:port"));
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, port)).await?;
    tune_socket(&stream, &congestion);
    Ok(TokioIo::new(stream))
}

/// The innermost cause: the transport's own words around it say nothing.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    innermost.to_string()
}
