//! `/proc/PID/auxv` (proc_pid_auxv(5)): the auxiliary vector that the kernel gave the program.

/// Longest vector of any kernel, in bytes; `PR_SET_MM_MAP` takes no longer one.
pub const MAX_BYTES: usize = 1024;

const ENTRY_BYTES: usize = 16;

/// A vector that no kernel makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuxvError {
    /// Not pairs of words, or too many.
    #[error("an auxiliary vector cannot be {0} bytes long")]
    Length(usize),
    /// The last pair is not `AT_NULL`.
    #[error("the auxiliary vector has no end")]
    Endless,
}

/// Checks that a vector consists of pairs of which the last, and only the last, is `AT_NULL`.
pub fn check(bytes: &[u8]) -> Result<(), AuxvError> {
    if bytes.len() > MAX_BYTES || !bytes.len().is_multiple_of(ENTRY_BYTES) || bytes.is_empty() {
        return Err(AuxvError::Length(bytes.len()));
    }
    let last = bytes.len() / ENTRY_BYTES - 1;
    let end = bytes.chunks_exact(ENTRY_BYTES).position(|entry| entry[..8] == [0; 8]);
    if end == Some(last) { Ok(()) } else { Err(AuxvError::Endless) }
}

/// The value of an entry (`libc::AT_*`).
pub fn value(bytes: &[u8], kind: u64) -> Option<u64> {
    let word = |entry: &[u8]| entry.try_into().map(u64::from_ne_bytes).ok();
    bytes
        .chunks_exact(ENTRY_BYTES)
        .find(|entry| word(&entry[..8]) == Some(kind))
        .and_then(|entry| word(&entry[8..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn own_vector_is_valid_and_tells_the_page_size() {
        let bytes = std::fs::read("/proc/self/auxv").unwrap();
        assert_eq!(check(&bytes), Ok(()));
        assert_eq!(value(&bytes, libc::AT_PAGESZ), Some(4096));
        assert_eq!(value(&bytes, 999), None);
    }

    #[test]
    fn vector_without_its_end_is_refused() {
        assert_eq!(check(&[1; 32]), Err(AuxvError::Endless));
        assert_eq!(check(&[0; 32]), Err(AuxvError::Endless));
        assert_eq!(check(&[0; 24]), Err(AuxvError::Length(24)));
        assert_eq!(check(&[]), Err(AuxvError::Length(0)));
        assert_eq!(check(&[0; MAX_BYTES + 16]), Err(AuxvError::Length(MAX_BYTES + 16)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_accepted_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (check(&bytes), value(&bytes, 6));
        }
    }
}
