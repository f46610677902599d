//! The link to another agent: one tuning for both of its ends.
//!
//! HTTP/2 windows of 16 MiB and frames of 1 MiB keep a 10 Gbit/s link full. Whether the link still carries anything is
//! asked of the kernel: a probe of HTTP/2 would wait behind the pages that are on their way, on a slow link for longer
//! than anybody waits for its answer. Mutual TLS unless `peer.insecure` is set; the other agent must have the certificate
//! of the name, or of the host, that it was asked for by. Kernel: `TCP_NODELAY`, `TCP_CONGESTION`, `TCP_KEEPIDLE`,
//! `TCP_USER_TIMEOUT` (tcp(7)).

mod pacing;

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
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

use self::pacing::Paced;
pub use self::pacing::Pacing;
use crate::config::{Migration, Peer};
use crate::error::{ErrorCode, MigrationError, chain};
use crate::tls::Keeper;

/// Largest message, bytes: a batch of pages with as many runs as it may have, or a part of a document. It is no larger
/// because what a message decodes to may take tens of times its bytes.
pub const MAX_MESSAGE: usize = 8 << 20;

const WINDOW: u32 = 16 << 20;
const FRAME: u32 = 1 << 20;

/// The server's end.
pub fn tune_server(server: Server) -> Server {
    server
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(FRAME)
        .tcp_nodelay(true)
}

/// Options of a TCP socket.
#[derive(Debug, Clone, Default)]
pub struct Tuning {
    /// Congestion control; empty: the host's default.
    congestion: String,
    /// Quiet time after which the kernel probes, and after which of silence it gives the connection up.
    silence: Option<(Duration, Duration)>,
}

impl Tuning {
    /// Those of the link.
    pub fn link(peer: &Peer) -> Self {
        let quiet = Duration::from_millis(peer.keepalive_interval_ms);
        let silence = quiet + Duration::from_millis(peer.keepalive_timeout_ms);
        Self { congestion: peer.congestion.clone(), silence: Some((quiet, silence)) }
    }

    /// Sets them. A congestion control that this kernel lacks is not a failure.
    pub fn set(&self, socket: &impl AsFd) {
        let _ = setsockopt(socket, sockopt::TcpNoDelay, &true);
        if let Some((quiet, silence)) = self.silence
            && let Err(error) = watch(socket, quiet, silence)
        {
            tracing::warn!("a link that is cut will be noticed late: {error}");
        }
        if !self.congestion.is_empty()
            && let Err(error) = setsockopt(socket, sockopt::TcpCongestion, &OsString::from(&self.congestion))
        {
            tracing::debug!("cannot use congestion control {}: {error}", self.congestion);
        }
    }
}

/// Lets the kernel end a connection on which it hears nothing, neither an answer to probes nor that data has arrived, and
/// one whose other end takes nothing for as long. The configuration's limits are within the kernel's.
fn watch(socket: &impl AsFd, quiet: Duration, silence: Duration) -> nix::Result<()> {
    // The kernel probes by the second.
    let seconds = u32::try_from(quiet.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
    setsockopt(socket, sockopt::TcpKeepIdle, &seconds)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &1)?;
    setsockopt(socket, sockopt::TcpUserTimeout, &u32::try_from(silence.as_millis()).unwrap_or(u32::MAX))?;
    setsockopt(socket, sockopt::KeepAlive, &true)
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
    connect_paced(address, peer, migration, keeper, Pacing::default()).await
}

/// Connects to another agent; what is sent there is paced.
pub async fn connect_paced(
    address: &PeerAddress,
    peer: &Peer,
    migration: &Migration,
    keeper: Option<&Arc<Keeper>>,
    pacing: Pacing,
) -> Result<PeerClient<Channel>, MigrationError> {
    let unreachable = |why: &str| {
        MigrationError::new(ErrorCode::PeerUnreachable, format!("cannot reach the agent at {address}: {why}"))
    };
    let endpoint = Endpoint::from_shared(format!("http://{}", address.address))
        .map_err(|error| unreachable(&chain(&error)))?
        .connect_timeout(migration.connect_timeout())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(FRAME);
    let dial = Dial { tuning: Tuning::link(peer), security: security(address, peer, keeper)?, pacing };
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
    tuning: Tuning,
    security: Security,
    pacing: Pacing,
}

impl Dial {
    async fn open(self, uri: Uri) -> io::Result<TokioIo<Either<Paced, TlsStream<Paced>>>> {
        let (Some(host), Some(port)) = (uri.host(), uri.port_u16()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not host:port"));
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((host, port)).await?;
        self.tuning.set(&stream);
        let is_loopback = stream.peer_addr()?.ip().is_loopback();
        let stream = Paced::new(stream, self.pacing);
        let stream = match self.security {
            Security::Plain { everywhere } if everywhere || is_loopback => Either::Left(stream),
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

#[cfg(test)]
mod tests {
    use nix::sys::socket::getsockopt;

    use super::*;

    #[test]
    fn sockets_of_the_link_are_watched_by_the_kernel() {
        let peer = Peer { keepalive_interval_ms: 1_200, keepalive_timeout_ms: 3_000, ..Peer::default() };
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Tuning::link(&peer).set(&socket);
        assert!(getsockopt(&socket, sockopt::KeepAlive).unwrap());
        assert_eq!(getsockopt(&socket, sockopt::TcpKeepIdle).unwrap(), 2);
        assert_eq!(getsockopt(&socket, sockopt::TcpUserTimeout).unwrap(), 4_200);
    }
}
