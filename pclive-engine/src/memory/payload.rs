//! Pages that were read -> a [`Batch`]: zero pages are told apart and leave the payload.

use bytes::BytesMut;

use crate::model::{Batch, Extent, ExtentKind, PAGE_SIZE, Target};

const PAGE: usize = PAGE_SIZE as usize;
const ZEROS: [u8; PAGE] = [0; PAGE];

/// The most extents in a batch without a payload; a batch with one has at most as many as it has pages.
pub(super) const MAX_EXTENTS: usize = 4096;

/// A batch that is being read.
pub(super) struct Payload {
    target: Target,
    buffer: BytesMut,
    limit: usize,
    /// Runs whose bytes are in the buffer, in its order.
    read: Vec<(u64, u64)>,
}

impl Payload {
    /// Room for `limit` bytes, rounded down to whole pages but at least one.
    pub(super) fn new(target: Target, limit: usize) -> Self {
        let limit = (limit / PAGE).max(1) * PAGE;
        Self { target, buffer: BytesMut::with_capacity(limit), limit, read: Vec::new() }
    }

    /// Bytes that still fit.
    pub(super) fn room(&self) -> usize {
        self.limit - self.buffer.len().min(self.limit)
    }

    /// Where to append bytes; [`Self::took`] must be told which.
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The bytes of `start..end` were appended.
    pub(super) fn took(&mut self, start: u64, end: u64) {
        match self.read.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => self.read.push((start, end)),
        }
    }

    /// The batch, `None` if nothing was read.
    pub(super) fn finish(mut self) -> Option<Batch> {
        if self.read.is_empty() {
            return None;
        }
        let extents = self.classify();
        Some(Batch { target: self.target, extents, payload: self.buffer.freeze() })
    }

    /// Finds the zero pages and closes the gaps that they leave in the buffer.
    fn classify(&mut self) -> Vec<Extent> {
        let mut extents = Vec::with_capacity(self.read.len());
        let (mut from, mut to) = (0, 0);
        let pages = self.read.iter().flat_map(|(start, end)| (*start..*end).step_by(PAGE));
        for address in pages {
            let Some(page) = self.buffer.get(from..from + PAGE) else { break };
            let kind = if page == ZEROS { ExtentKind::Zero } else { ExtentKind::Data };
            append(&mut extents, address, kind);
            if kind == ExtentKind::Data {
                if from != to {
                    self.buffer.copy_within(from..from + PAGE, to);
                }
                to += PAGE;
            }
            from += PAGE;
        }
        self.buffer.truncate(to);
        extents
    }
}

/// Adds a page to a list of extents.
fn append(extents: &mut Vec<Extent>, address: u64, kind: ExtentKind) {
    match extents.last_mut() {
        Some(last) if last.kind == kind && last.end() == address => last.pages += 1,
        _ => extents.push(Extent { start: address, pages: 1, kind }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_pages_leave_the_payload_and_contents_keep_their_places() {
        let mut payload = Payload::new(Target::Object(1), 1 << 20);
        for byte in [0u8, 1, 2, 0, 0, 3] {
            payload.buffer().extend_from_slice(&[byte; PAGE]);
        }
        payload.took(0x1000, 0x4000);
        payload.took(0x8000, 0xb000);
        let batch = payload.finish().unwrap();
        let extent = |start, pages, kind| Extent { start, pages, kind };
        assert_eq!(
            batch.extents,
            [
                extent(0x1000, 1, ExtentKind::Zero),
                extent(0x2000, 2, ExtentKind::Data),
                extent(0x8000, 2, ExtentKind::Zero),
                extent(0xa000, 1, ExtentKind::Data),
            ]
        );
        let bytes: Vec<u8> = batch.payload.chunks(PAGE).map(|page| page[PAGE - 1]).collect();
        assert_eq!(bytes, [1, 2, 3]);
        assert_eq!(batch.data_bytes(), batch.payload.len() as u64);
    }

    #[test]
    fn a_page_that_is_zero_but_for_its_last_byte_is_data() {
        let mut payload = Payload::new(Target::Object(1), PAGE);
        payload.buffer().extend_from_slice(&[0; PAGE - 1]);
        payload.buffer().extend_from_slice(&[1]);
        payload.took(0, PAGE_SIZE);
        assert_eq!(payload.finish().unwrap().extents[0].kind, ExtentKind::Data);
    }
}
