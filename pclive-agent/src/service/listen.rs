//! Where calls arrive: a unix socket for root, TCP for peers.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::Stream;

use crate::link::Tuning;
use crate::tls::Connection;
use crate::tls::accept::{self, Welcome};

/// Something cannot be listened on. Nothing else was left bound.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// TCP.
    #[error("cannot listen on {address}")]
    Tcp {
        /// `address:port`.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The control socket.
    #[error("cannot listen on {path}")]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A listener for certified callers, and no certificates.
    #[error("cannot listen on {address}: this agent has no certificates")]
    Uncertified {
        /// `address:port`.
        address: String,
    },
    /// Another agent answers on the control socket.
    #[error("cannot listen on {path}: another agent does")]
    Taken {
        /// Its path.
        path: PathBuf,
    },
}

/// A TCP listener with a known address.
#[derive(Debug)]
pub(super) struct Tcp {
    listener: TcpListener,
    address: SocketAddr,
    tuning: Tuning,
    welcome: Welcome,
}

impl Tcp {
    pub(super) fn bind(address: &str, tuning: Tuning, welcome: Welcome) -> Result<Self, ListenError> {
        let of = |source| ListenError::Tcp { address: address.into(), source };
        let listener = std::net::TcpListener::bind(address).map_err(of)?;
        listener.set_nonblocking(true).map_err(of)?;
        let listener = TcpListener::from_std(listener).map_err(of)?;
        let address = listener.local_addr().map_err(of)?;
        Ok(Self { listener, address, tuning, welcome })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn incoming(self) -> impl Stream<Item = io::Result<Connection>> {
        accept::tcp(self.listener, self.tuning, self.welcome)
    }
}

/// The control socket: 0600, in a directory with 0700.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Binds the socket. One that a dead agent left is replaced, one that answers is not.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let of = |source| ListenError::Socket { path: path.into(), source };
        if let Some(directory) = path.parent() {
            make_directory(directory).map_err(of)?;
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(ListenError::Taken { path: path.into() });
        }
        remove_stale(path).map_err(of)?;
        // The mask closes the moment between bind and chmod; nothing else of the process runs yet.
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(path);
        umask(before);
        let listener = bound.map_err(of)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(of)?;
        Ok(Self { listener, path: path.into() })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn incoming(self) -> impl Stream<Item = io::Result<Connection>> {
        accept::local(self.listener)
    }
}

fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.exists() {
        return Ok(());
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Removes a socket that nobody answers on; anything else at that path is left and will fail the bind.
fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/agent.sock");
        let _socket = ControlSocket::bind(&path).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
    }

    #[tokio::test]
    async fn a_second_agent_is_refused_and_a_dead_one_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let first = ControlSocket::bind(&path).unwrap();
        assert!(matches!(ControlSocket::bind(&path).unwrap_err(), ListenError::Taken { .. }));
        drop(first);
        assert!(path.exists());
        ControlSocket::bind(&path).unwrap();
    }

    #[tokio::test]
    async fn a_file_at_the_path_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(ControlSocket::bind(&path).unwrap_err(), ListenError::Socket { .. }));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named() {
        let first = Tcp::bind("127.0.0.1:0", Tuning::default(), Welcome::Anybody).unwrap();
        let address = first.address().to_string();
        assert!(
            Tcp::bind(&address, Tuning::default(), Welcome::Anybody)
                .unwrap_err()
                .to_string()
                .contains(&address)
        );
    }
}
