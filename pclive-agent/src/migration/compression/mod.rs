//! Page contents on the wire, as they are or by zstd: whatever is faster, found out by measuring.
//!
//! One packer at the source, one unpacker at the destination, each used by one thread. What comes from the peer is
//! unpacked into exactly as many bytes as its batch claims, which has a bound, or it is an error.

mod judge;

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use zstd::bulk;

use self::judge::Judge;

/// zstd's fastest level of the ordinary ones: half a gigabyte a second on one core.
const LEVEL: i32 = 1;
/// Smaller contents are sent as they are: there is little to win.
const LEAST_BYTES: usize = 16 << 10;

/// Contents as they travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Packed {
    /// As they are.
    Plain(Bytes),
    /// By zstd.
    Zstd(Bytes),
}

/// The source's end.
pub(super) struct Packer {
    /// `None`: nothing is ever compressed.
    compressor: Option<bulk::Compressor<'static>>,
    judge: Judge,
    last: Option<Instant>,
}

impl Packer {
    /// One that compresses when that pays, or never.
    pub(super) fn new(compress: bool) -> io::Result<Self> {
        let compressor = compress.then(|| bulk::Compressor::new(LEVEL)).transpose()?;
        Ok(Self { compressor, judge: Judge::default(), last: None })
    }

    /// Contents for the wire.
    pub(super) fn pack(&mut self, contents: Bytes) -> Packed {
        let Some(compressor) = &mut self.compressor else { return Packed::Plain(contents) };
        if contents.len() < LEAST_BYTES || !self.judge.wants() {
            return Packed::Plain(contents);
        }
        let began = Instant::now();
        // What cannot be compressed is sent as it is.
        let packed = compressor.compress(&contents).ok();
        let after = packed.as_ref().map_or(contents.len(), Vec::len);
        self.judge.compressed(contents.len(), after, began.elapsed());
        match packed {
            Some(packed) if packed.len() < contents.len() => Packed::Zstd(packed.into()),
            _ => Packed::Plain(contents),
        }
    }

    /// So many bytes were handed to the stream, which was full for some time before it took them.
    pub(super) fn sent(&mut self, bytes: u64, blocked: Duration) {
        let now = Instant::now();
        let elapsed = self.last.map_or(Duration::ZERO, |last| now - last);
        self.last = Some(now);
        self.judge.sent(bytes, elapsed, blocked);
    }

    /// The stream rests: the time until the next bytes is not the link's.
    pub(super) fn rest(&mut self) {
        self.last = None;
    }
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Packer").field("judge", &self.judge).finish_non_exhaustive()
    }
}

/// The destination's end.
#[derive(Default)]
pub(super) struct Unpacker {
    decompressor: Option<bulk::Decompressor<'static>>,
}

impl Unpacker {
    /// Contents of exactly `bytes` bytes.
    pub(super) fn unpack(&mut self, packed: Packed, bytes: usize) -> io::Result<Bytes> {
        let contents = match packed {
            Packed::Plain(contents) => contents,
            Packed::Zstd(packed) => {
                let decompressor = match &mut self.decompressor {
                    Some(decompressor) => decompressor,
                    None => self.decompressor.insert(bulk::Decompressor::new()?),
                };
                decompressor.decompress(&packed, bytes)?.into()
            }
        };
        if contents.len() == bytes {
            return Ok(contents);
        }
        Err(io::Error::other(format!("{} bytes instead of {bytes}", contents.len())))
    }
}

impl std::fmt::Debug for Unpacker {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Unpacker").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A packer whose link is slow enough.
    fn eager() -> Packer {
        let mut packer = Packer::new(true).unwrap();
        packer.judge.sent(1 << 30, Duration::from_secs(100), Duration::from_secs(100));
        packer
    }

    #[test]
    fn compressed_contents_come_out_as_they_went_in() {
        let contents = Bytes::from(b"pages ".repeat(50_000));
        let packed = eager().pack(contents.clone());
        assert!(matches!(&packed, Packed::Zstd(packed) if packed.len() < contents.len() / 10));
        assert_eq!(Unpacker::default().unpack(packed, contents.len()).unwrap(), contents);
    }

    #[test]
    fn noise_small_contents_and_a_packer_that_may_not_stay_plain() {
        let mut state = 1_u64;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        });
        let noise: Bytes = noise.take(1 << 20).collect();
        assert_eq!(eager().pack(noise.clone()), Packed::Plain(noise));
        let small = Bytes::from(vec![0; LEAST_BYTES - 1]);
        assert_eq!(eager().pack(small.clone()), Packed::Plain(small));
        let zeros = Bytes::from(vec![0; 1 << 20]);
        assert_eq!(Packer::new(false).unwrap().pack(zeros.clone()), Packed::Plain(zeros));
    }

    #[test]
    fn contents_of_another_length_than_claimed_are_an_error() {
        let packed = eager().pack(Bytes::from(vec![0; 1 << 20]));
        for claimed in [0, 4096, (1 << 20) - 1, (1 << 20) + 1] {
            assert!(Unpacker::default().unpack(packed.clone(), claimed).is_err(), "{claimed}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_nothing_worse(garbage in proptest::collection::vec(any::<u8>(), 0..300)) {
            let unpacked = Unpacker::default().unpack(Packed::Zstd(garbage.into()), 8192);
            prop_assert!(unpacked.is_err() || unpacked.is_ok_and(|contents| contents.len() == 8192));
        }
    }
}
