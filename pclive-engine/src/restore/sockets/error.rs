//! How building sockets fails.

use std::net::SocketAddr;

use nix::errno::Errno;

use crate::model::{FileId, Pid};

/// A socket of the copy cannot be built. Nothing of the copy has run; what was built is closed without a packet.
#[derive(Debug, thiserror::Error)]
pub enum SocketsError {
    /// The container's namespaces.
    #[error("cannot open the {namespace} namespace of process {pid}")]
    Namespace {
        /// A process of the container.
        pid: Pid,
        /// "network" or "mount".
        namespace: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The container's namespaces.
    #[error("cannot enter the container's {namespace} namespace")]
    Enter {
        /// "network" or "mount".
        namespace: &'static str,
        /// Why.
        source: Errno,
    },
    /// The building thread ended without a result.
    #[error("cannot build sockets: the building thread ended early")]
    Thread,
    /// The source sent a socket that contradicts itself.
    #[error("open file {} is a socket that cannot exist: {what}", file.0)]
    Invalid {
        /// The socket.
        file: FileId,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The container's address is not on an interface (yet).
    #[error(
        "cannot bind the socket of open file {} to {address}: no interface of the container has this address \
         (IPv6: or duplicate address detection is not over)", file.0
    )]
    AddressAbsent {
        /// The socket.
        file: FileId,
        /// The address.
        address: SocketAddr,
    },
    /// A system call.
    #[error("cannot {what} of open file {}", file.0)]
    Call {
        /// The socket.
        file: FileId,
        /// "connect the socket": completes "cannot ... of open file 7".
        what: String,
        /// Why.
        source: Errno,
    },
}

/// Names the file in the error of a call.
pub(super) trait Of<T> {
    /// `what` completes "cannot ... of open file 7".
    fn of(self, file: FileId, what: &str) -> Result<T, SocketsError>;
}

impl<T> Of<T> for Result<T, Errno> {
    fn of(self, file: FileId, what: &str) -> Result<T, SocketsError> {
        self.map_err(|source| SocketsError::Call { file, what: what.to_owned(), source })
    }
}
