//! Model <-> bytes.
//!
//! The document is `postcard`: compact, and its decoder takes memory only for what is really there, so that a
//! hostile length cannot make it allocate without a bound. The caller bounds the size of the document.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A state document that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Truncated, or not of this type.
    #[error("cannot decode {what} of {bytes} bytes")]
    Decode {
        /// The type's name.
        what: &'static str,
        /// Length of the document.
        bytes: usize,
        /// Position and kind.
        source: postcard::Error,
    },
    /// Bytes after the end.
    #[error("{left} bytes follow the {what}")]
    Trailing {
        /// The type's name.
        what: &'static str,
        /// How many.
        left: usize,
    },
    /// A value that cannot be written (never for our types).
    #[error("cannot encode {what}")]
    Encode {
        /// The type's name.
        what: &'static str,
        /// The encoder's reason.
        source: postcard::Error,
    },
}

/// Encodes a model value.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let what = std::any::type_name::<T>();
    postcard::to_stdvec(value).map_err(|source| CodecError::Encode { what, source })
}

/// Decodes a model value; every byte must belong to it.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let what = std::any::type_name::<T>();
    let (value, rest) = postcard::take_from_bytes(bytes).map_err(|source| CodecError::Decode {
        what,
        bytes: bytes.len(),
        source,
    })?;
    if rest.is_empty() { Ok(value) } else { Err(CodecError::Trailing { what, left: rest.len() }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FinalState, Layout};

    #[test]
    fn empty_documents_survive_the_round_trip() {
        let bytes = encode(&FinalState::default()).unwrap();
        assert_eq!(decode::<FinalState>(&bytes).unwrap(), FinalState::default());
    }

    #[test]
    fn hostile_length_is_refused_without_allocating_it() {
        let bytes = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert!(matches!(decode::<Layout>(&bytes), Err(CodecError::Decode { .. })));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&Layout::default()).unwrap();
        bytes.push(0);
        assert!(matches!(decode::<Layout>(&bytes), Err(CodecError::Trailing { left: 1, .. })));
    }
}
