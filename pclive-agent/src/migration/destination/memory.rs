//! Whether this host still has the memory that a source's pages take. What the source said that its container uses was
//! checked before anything was created; nothing but this holds it to that.

use std::io;

use crate::error::{ErrorCode, MigrationError};

/// So much may come between two looks, bytes.
const STEP: u64 = 64 << 20;
/// Least that this host keeps for itself, bytes.
const RESERVE: u64 = 64 << 20;

/// What may still come.
#[derive(Debug, Default)]
pub(super) struct MemoryWatch {
    left: u64,
}

impl MemoryWatch {
    /// Pages of this many bytes have come and are not in place yet. `available` tells what this host has, bytes.
    pub(super) fn take(
        &mut self,
        bytes: u64,
        available: impl FnOnce() -> io::Result<u64>,
    ) -> Result<(), MigrationError> {
        if let Some(left) = self.left.checked_sub(bytes) {
            self.left = left;
            return Ok(());
        }
        let available = available().map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?;
        if available < RESERVE {
            let message = format!(
                "cannot take more pages: {} MiB of memory are available here, and {} MiB are kept free",
                available >> 20,
                RESERVE >> 20
            );
            return Err(MigrationError::new(ErrorCode::NoMemory, message));
        }
        self.left = STEP;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_looked_at_once_a_step() {
        let mut watch = MemoryWatch::default();
        let mut looks = 0;
        for _ in 0..1024 {
            watch
                .take(1 << 20, || {
                    looks += 1;
                    Ok(1 << 40)
                })
                .unwrap();
        }
        assert_eq!(looks, 1024 / 65 + 1);
    }

    #[test]
    fn a_host_that_runs_out_of_memory_refuses() {
        let mut watch = MemoryWatch::default();
        assert!(watch.take(1, || Ok(RESERVE)).is_ok());
        assert!(watch.take(STEP, || panic!("looked too early")).is_ok());
        let refused = watch.take(1, || Ok(RESERVE - 1)).unwrap_err();
        assert_eq!(refused.code, ErrorCode::NoMemory);
        assert!(refused.message.contains("63 MiB"), "{refused}");
    }
}
