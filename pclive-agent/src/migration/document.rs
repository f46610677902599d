//! Documents of the engine on the wire: a layout or a final state, in as many messages as its size asks for.
//!
//! The end of a document travels in the message that it belongs to, and is all of it nearly always; what is before it
//! goes ahead in messages of its own. What the peer sends is bounded by [`MAX_BYTES`], and by what this host has to
//! spare.

use bytes::{Bytes, BytesMut};
use pclive_proto::peer::DocumentPart;
use serde::Serialize;
use xxhash_rust::xxh3::Xxh3Default;

use super::wire;
use crate::error::{ErrorCode, MigrationError};

/// Largest piece in one message: far below what a message may be, and so small that one is packed and another unpacked while
/// a third is on its way.
const PART_BYTES: usize = 512 << 10;
/// Largest document: the contents of many thousand full queues.
const MAX_BYTES: usize = 1 << 30;
/// What a document decodes to takes at most about so many times its bytes: a list of empty lists.
const GROWTH: u64 = 32;
/// A document up to this size is taken whatever memory there is.
const SMALL_BYTES: usize = 16 << 20;

/// Encodes a document and cuts it: what goes ahead, and the end.
pub(super) fn encode<T: Serialize>(value: &T) -> Result<(Vec<DocumentPart>, Bytes), MigrationError> {
    let document = Bytes::from(wire::encode(value)?);
    if document.len() > MAX_BYTES {
        let message =
            format!("the container's state takes {} bytes, the limit is {MAX_BYTES}", document.len());
        let hint = "try again when less waits in its sockets and pipes";
        return Err(MigrationError::new(ErrorCode::CaptureFailed, message).hint(hint));
    }
    Ok(cut(document))
}

/// The digest (xxh3) of a document that was cut.
pub(super) fn digest(parts: &[DocumentPart], end: &[u8]) -> u64 {
    let mut digest = Xxh3Default::new();
    parts.iter().for_each(|part| digest.update(&part.part));
    digest.update(end);
    digest.digest()
}

fn cut(mut document: Bytes) -> (Vec<DocumentPart>, Bytes) {
    let mut parts = Vec::new();
    let document_bytes = document.len() as u64;
    while document.len() > PART_BYTES {
        parts.push(DocumentPart { part: document.split_to(PART_BYTES), document_bytes });
    }
    (parts, document)
}

/// A document that is arriving.
#[derive(Debug)]
pub(super) struct Arriving {
    parts: BytesMut,
    limit_bytes: usize,
}

impl Arriving {
    /// Nothing has come. `available`: memory of this host, bytes.
    pub(super) fn new(available: u64) -> Self {
        let share = usize::try_from(available / GROWTH).unwrap_or(usize::MAX);
        Self { parts: BytesMut::new(), limit_bytes: share.clamp(SMALL_BYTES, MAX_BYTES) }
    }

    /// Takes a piece. What it says of the whole is refused at once if that is too large, and otherwise only makes room.
    pub(super) fn add(&mut self, message: &DocumentPart) -> Result<(), MigrationError> {
        let whole = usize::try_from(message.document_bytes).unwrap_or(usize::MAX);
        self.allow(whole)?;
        if self.parts.is_empty() {
            self.parts.reserve(whole);
        }
        self.append(&message.part)
    }

    fn append(&mut self, part: &[u8]) -> Result<(), MigrationError> {
        self.allow(self.parts.len().saturating_add(part.len()))?;
        self.parts.extend_from_slice(part);
        Ok(())
    }

    fn allow(&self, bytes: usize) -> Result<(), MigrationError> {
        let limit = self.limit_bytes;
        if bytes > limit {
            return Err(wire::bad(format!("a document of {bytes} bytes or more, the limit is {limit}")));
        }
        Ok(())
    }

    /// The document whose end this is; the next one begins.
    pub(super) fn finish(&mut self, end: Bytes) -> Result<Bytes, MigrationError> {
        if self.parts.is_empty() {
            return Ok(end);
        }
        self.append(&end)?;
        Ok(std::mem::take(&mut self.parts).freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put_together(document: &Bytes) -> (usize, Bytes) {
        let (parts, end) = cut(document.clone());
        assert!(parts.iter().all(|message| message.part.len() <= PART_BYTES) && end.len() <= PART_BYTES);
        let mut arriving = Arriving::new(u64::MAX);
        parts.iter().for_each(|message| arriving.add(message).unwrap());
        let whole = arriving.finish(end).unwrap();
        assert_eq!(arriving.finish(Bytes::from_static(b"next")).unwrap(), "next");
        (parts.len(), whole)
    }

    #[test]
    fn a_document_of_any_size_arrives_as_it_was() {
        for (bytes, parts) in [(0, 0), (1, 0), (PART_BYTES, 0), (PART_BYTES + 1, 1), (3 * PART_BYTES + 5, 3)]
        {
            let document: Bytes = (0..bytes).map(|index| (index % 251) as u8).collect();
            assert_eq!(put_together(&document), (parts, document), "{bytes} bytes");
        }
    }

    #[test]
    fn a_peer_cannot_send_a_document_without_end() {
        // It tells less than it sends.
        let part = DocumentPart { part: vec![0; PART_BYTES].into(), document_bytes: 1 };
        for (available, limit) in [(u64::MAX, MAX_BYTES), (0, SMALL_BYTES), (1 << 30, (1 << 30) / 32)] {
            let mut arriving = Arriving::new(available);
            let taken = (0..).take_while(|_| arriving.add(&part).is_ok()).count();
            assert_eq!(taken, limit / PART_BYTES, "{available} bytes available");
            assert!(arriving.finish(Bytes::from(vec![0; PART_BYTES])).is_err());
            let boast = DocumentPart { part: Bytes::new(), document_bytes: limit as u64 + 1 };
            assert!(Arriving::new(available).add(&boast).is_err());
        }
    }
}
