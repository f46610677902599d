//! Engine values <-> messages of the peer protocol. Nothing that the peer says is believed unchecked.

use pclive_proto::control;
use tonic::Status;

use crate::error::{ErrorCode, MigrationError};

/// What a status of the other agent says: its own error if it carries one, else the transport's.
pub(super) fn status_error(status: &Status) -> MigrationError {
    if let Some(error) = control::Error::from_status(status) {
        let code = ErrorCode::from_peer(&error.code);
        return MigrationError { retryable: error.retryable, ..MigrationError::new(code, error.message) }
            .hint(error.hint);
    }
    let message = format!("the link to the other agent failed: {}", status.message());
    MigrationError::new(ErrorCode::PeerLost, message)
}
