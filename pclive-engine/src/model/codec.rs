//! Model <-> bytes.
//!
//! The document is `postcard`: compact, and its decoder takes memory only for what is really there, so that a
//! hostile length cannot make it allocate without a bound. The caller bounds the size of the document.
//!
//! Strings of bytes are marked as such (`serde_bytes`), so that they are copied, not read byte by byte: queues of sockets
//! take megabytes of a stop. The document is the same either way. Lists of pairs (extended attributes) are short.

use postcard::ser_flavors::Size;
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
    // Its size first: a document of megabytes that grows takes new memory twice over, which costs more than counting.
    postcard::serialize_with_flavor(value, Size::default())
        .and_then(|bytes| postcard::to_extend(value, Vec::with_capacity(bytes)))
        .map_err(|source| CodecError::Encode { what, source })
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

/// `#[serde(with)]` for a list of strings of bytes.
pub(super) mod byte_strings {
    use serde::{Deserialize, Deserializer, Serializer};
    use serde_bytes::{ByteBuf, Bytes};

    pub(in crate::model) fn serialize<S: Serializer>(
        list: &[Vec<u8>],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(list.iter().map(|bytes| Bytes::new(bytes)))
    }

    pub(in crate::model) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Vec<u8>>, D::Error> {
        let list = Vec::<ByteBuf>::deserialize(deserializer)?;
        Ok(list.into_iter().map(ByteBuf::into_vec).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FinalState, Layout};

    #[test]
    fn strings_of_bytes_are_what_lists_of_bytes_would_be() {
        #[derive(Serialize)]
        struct Plain(Vec<u8>, Option<Vec<u8>>, Vec<Vec<u8>>);
        #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
        struct Marked(
            #[serde(with = "serde_bytes")] Vec<u8>,
            #[serde(with = "serde_bytes")] Option<Vec<u8>>,
            #[serde(with = "byte_strings")] Vec<Vec<u8>>,
        );
        let (bytes, list) = (vec![0, 127, 128, 255], vec![vec![1; 300], Vec::new()]);
        let marked = Marked(bytes.clone(), Some(bytes.clone()), list.clone());
        let document = encode(&marked).unwrap();
        assert_eq!(document, encode(&Plain(bytes.clone(), Some(bytes), list)).unwrap());
        assert_eq!(decode::<Marked>(&document).unwrap(), marked);
        assert!(decode::<Marked>(&document[..document.len() - 2]).is_err());
    }

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
