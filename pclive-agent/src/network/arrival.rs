//! Frames that arrive at a container while nothing may be delivered to it: what they are, and which of them a
//! copy is given. Pure.
//!
//! A frame comes with its `struct virtio_net_hdr` (linux/virtio_net.h): inside a host the kernel leaves checksums
//! unfinished and segments together, and the header says so. Without it both break.
//!
//! Invariant: a frame that [`Arrival::check`] lets pass is addressed to the container, and its header speaks of
//! bytes that the frame has. The source is not trusted.

use bytes::Bytes;
use pclive_engine::sys::packet::OFFLOAD_HEADER_BYTES;
use pclive_proto::peer;

use super::frames::{ARP, IPV6};
use super::interface::Mac;

/// Destination, source, EtherType.
pub(super) const ETHERNET_BYTES: usize = 14;
/// Longest frame: the most that the kernel keeps together for IPv4 (GSO_LEGACY_MAX_SIZE), and its link-layer header.
pub(super) const MAX_FRAME_BYTES: usize = ETHERNET_BYTES + 65_536;
/// Most frames of a migration: thousands of clients with some frames each.
const MAX_FRAMES: u32 = 65_536;

/// ETH_P_IP.
const IPV4: u16 = 0x0800;
/// First bit of an address: broadcast or multicast.
const GROUP: u8 = 1;

/// VIRTIO_NET_HDR_F_NEEDS_CSUM: the checksum is that of the pseudo header.
const NEEDS_CHECKSUM: u8 = 1;
/// VIRTIO_NET_HDR_F_DATA_VALID: the checksum was verified.
const CHECKSUM_VERIFIED: u8 = 2;
/// VIRTIO_NET_HDR_GSO_*.
const NOT_SEGMENTED: u8 = 0;
const TCP_IPV4: u8 = 1;
const TCP_IPV6: u8 = 4;
const UDP: u8 = 5;
/// VIRTIO_NET_HDR_GSO_ECN, beside one of TCP.
const ECN: u8 = 0x80;

/// One frame that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Which of the container's interfaces, by its place in their list.
    pub interface: u32,
    /// `struct virtio_net_hdr`, little endian.
    pub offload: Bytes,
    /// From the Ethernet header on.
    pub contents: Bytes,
}

impl Arrival {
    /// Out of the peer's message; nothing is checked.
    pub fn decode(message: peer::Frame) -> Self {
        Self { interface: message.interface, offload: message.offload, contents: message.contents }
    }

    /// To the peer's message.
    pub fn encode(self) -> peer::Frame {
        peer::Frame { interface: self.interface, offload: self.offload, contents: self.contents }
    }

    /// Bytes that it takes on its way.
    pub(super) fn bytes(&self) -> usize {
        self.offload.len() + self.contents.len()
    }

    /// For one receiver; not broadcast, not multicast.
    pub fn is_unicast(&self) -> bool {
        self.contents.first().is_some_and(|byte| byte & GROUP == 0)
    }

    /// Whether a container whose interface had the address `mac` may be given it; if not, why.
    pub(super) fn check(&self, mac: Mac) -> Result<(), &'static str> {
        if self.contents.len() > MAX_FRAME_BYTES {
            return Err("too long");
        }
        let Some((ethernet, _)) = self.contents.split_first_chunk::<ETHERNET_BYTES>() else {
            return Err("shorter than its header");
        };
        let [destination @ .., _, _, _, _, _, _, high, low] = ethernet;
        if self.is_unicast() && *destination != mac.0 {
            return Err("not addressed to the container");
        }
        if ![IPV4, IPV6, ARP].contains(&u16::from_be_bytes([*high, *low])) {
            return Err("neither IP nor ARP");
        }
        self.check_offload()
    }

    fn check_offload(&self) -> Result<(), &'static str> {
        let header: Result<[u8; OFFLOAD_HEADER_BYTES], _> = self.offload.as_ref().try_into();
        let Ok([flags, kind, h0, h1, s0, s1, c0, c1, o0, o1]) = header else {
            return Err("without an offload header");
        };
        let number = |low, high| usize::from(u16::from_le_bytes([low, high]));
        let (header_bytes, segment_bytes) = (number(h0, h1), number(s0, s1));
        let (checksum_start, checksum_offset) = (number(c0, c1), number(o0, o1));
        let unfinished = flags & NEEDS_CHECKSUM != 0;
        if flags & !(NEEDS_CHECKSUM | CHECKSUM_VERIFIED) != 0 || header_bytes > self.contents.len() {
            return Err("with an offload header that cannot be");
        }
        // The checksum is two bytes, behind the Ethernet header.
        let inside =
            checksum_start >= ETHERNET_BYTES && checksum_start + checksum_offset + 2 <= self.contents.len();
        if unfinished && !inside {
            return Err("with a checksum outside");
        }
        let segments = match kind & !ECN {
            NOT_SEGMENTED => kind == NOT_SEGMENTED,
            TCP_IPV4 | TCP_IPV6 => unfinished && segment_bytes > 0,
            UDP => kind == UDP && unfinished && segment_bytes > 0,
            _ => false,
        };
        if segments { Ok(()) } else { Err("with segments that cannot be") }
    }
}

/// What may still pass in one migration: bytes, and frames.
#[derive(Debug)]
pub(super) struct Allowance {
    bytes: u64,
    frames: u32,
}

impl Allowance {
    /// This many bytes.
    pub(super) fn new(bytes: u64) -> Self {
        Self { bytes, frames: MAX_FRAMES }
    }

    /// Whether another frame may pass; if so it is counted.
    pub(super) fn take(&mut self, frame: &Arrival) -> bool {
        let bytes = self.bytes.checked_sub(frame.bytes() as u64);
        let frames = self.frames.checked_sub(1);
        let (Some(bytes), Some(frames)) = (bytes, frames) else { return false };
        (self.bytes, self.frames) = (bytes, frames);
        true
    }
}

/// Frames that wait for a container, within the limits of a migration; what comes beyond them is dropped.
#[derive(Debug)]
pub struct Waiting {
    arrivals: Vec<Arrival>,
    allowance: Allowance,
}

impl Waiting {
    /// Room for this many bytes.
    pub fn new(limit_bytes: u64) -> Self {
        Self { arrivals: Vec::new(), allowance: Allowance::new(limit_bytes) }
    }

    /// Lets the frames of a message wait behind the others.
    pub fn take(&mut self, message: peer::Frames) {
        let arrivals = message.frames.into_iter().map(Arrival::decode);
        self.arrivals.extend(arrivals.filter(|arrival| self.allowance.take(arrival)));
    }

    /// In the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = &Arrival> {
        self.arrivals.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);
    const WHOLE: [u8; 10] = [0; 10];

    /// A frame of `length` bytes to `destination`.
    fn frame(destination: [u8; 6], protocol: u16, offload: [u8; 10], length: usize) -> Arrival {
        let mut contents = [&destination[..], &[2, 0, 0, 0, 0, 9], &protocol.to_be_bytes()].concat();
        contents.resize(length, 0);
        Arrival { interface: 1, offload: offload.to_vec().into(), contents: contents.into() }
    }

    fn offload(flags: u8, kind: u8, header: u16, segment: u16, start: u16, offset: u16) -> [u8; 10] {
        let mut bytes = [flags, kind, 0, 0, 0, 0, 0, 0, 0, 0];
        for (slot, number) in bytes[2..].chunks_exact_mut(2).zip([header, segment, start, offset]) {
            slot.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn frames_to_the_container_and_to_everybody_pass() {
        for destination in [MAC.0, [0xff; 6], [0x33, 0x33, 0, 0, 0, 1]] {
            for protocol in [IPV4, IPV6, ARP] {
                assert_eq!(frame(destination, protocol, WHOLE, 60).check(MAC), Ok(()));
            }
        }
    }

    #[test]
    fn frames_to_others_and_of_other_protocols_are_refused() {
        assert!(frame([2, 0, 0, 0, 0, 8], IPV4, WHOLE, 60).check(MAC).is_err());
        for protocol in [0x8100, 0x88a8, 0x88cc, 0x0026] {
            assert!(frame(MAC.0, protocol, WHOLE, 60).check(MAC).is_err());
        }
    }

    #[test]
    fn frames_that_are_too_short_or_too_long_are_refused() {
        assert!(frame(MAC.0, IPV4, WHOLE, ETHERNET_BYTES - 1).check(MAC).is_err());
        assert!(frame(MAC.0, IPV4, WHOLE, ETHERNET_BYTES).check(MAC).is_ok());
        assert!(frame(MAC.0, IPV4, WHOLE, MAX_FRAME_BYTES).check(MAC).is_ok());
        assert!(frame(MAC.0, IPV4, WHOLE, MAX_FRAME_BYTES + 1).check(MAC).is_err());
    }

    #[test]
    fn offload_headers_that_the_kernel_makes_pass() {
        let large = 14 + 20 + 32 + 30_000;
        for (header, length) in [
            (offload(CHECKSUM_VERIFIED, NOT_SEGMENTED, 0, 0, 0, 0), 60),
            (offload(NEEDS_CHECKSUM, NOT_SEGMENTED, 0, 0, 34, 16), 66),
            (offload(NEEDS_CHECKSUM, TCP_IPV4, 66, 1448, 34, 16), large),
            (offload(NEEDS_CHECKSUM, TCP_IPV6 | ECN, 86, 1428, 54, 16), large),
            (offload(NEEDS_CHECKSUM, UDP, 42, 1200, 34, 6), large),
        ] {
            assert_eq!(frame(MAC.0, IPV4, header, length).check(MAC), Ok(()), "{header:?}");
        }
    }

    #[test]
    fn offload_headers_that_lie_are_refused() {
        for header in [
            offload(4, NOT_SEGMENTED, 0, 0, 0, 0),
            offload(0, NOT_SEGMENTED, 61, 0, 0, 0),
            offload(NEEDS_CHECKSUM, NOT_SEGMENTED, 0, 0, 34, 25),
            offload(NEEDS_CHECKSUM, NOT_SEGMENTED, 0, 0, 13, 16),
            offload(NEEDS_CHECKSUM, NOT_SEGMENTED, 0, 0, u16::MAX, u16::MAX),
            offload(NEEDS_CHECKSUM, TCP_IPV4, 54, 0, 34, 16),
            offload(0, TCP_IPV4, 54, 1448, 0, 0),
            offload(NEEDS_CHECKSUM, UDP | ECN, 42, 1200, 34, 6),
            offload(NEEDS_CHECKSUM, 3, 42, 1200, 34, 6),
            offload(0, ECN, 0, 0, 0, 0),
        ] {
            assert!(frame(MAC.0, IPV4, header, 60).check(MAC).is_err(), "{header:?}");
        }
        let bare = Arrival { offload: Bytes::new(), ..frame(MAC.0, IPV4, WHOLE, 60) };
        assert!(bare.check(MAC).is_err());
    }

    #[test]
    fn nothing_passes_beyond_the_allowance() {
        let mut allowance = Allowance::new(200);
        let small = frame(MAC.0, IPV4, WHOLE, 60);
        assert!(allowance.take(&small) && allowance.take(&small));
        assert!(!allowance.take(&small));
        let mut allowance = Allowance::new(u64::MAX);
        assert_eq!((0..=MAX_FRAMES).filter(|_| allowance.take(&small)).count(), MAX_FRAMES as usize);
    }

    #[test]
    fn frames_wait_in_order_and_within_their_limit() {
        let mut waiting = Waiting::new(200);
        let frames = [60, 70, 80].map(|length| frame(MAC.0, IPV4, WHOLE, length));
        waiting.take(peer::Frames { frames: frames.iter().cloned().map(Arrival::encode).collect() });
        assert!(waiting.iter().eq(&frames[..2]));
    }

    #[test]
    fn a_frame_survives_the_wire() {
        let sent = frame(MAC.0, IPV4, offload(NEEDS_CHECKSUM, TCP_IPV4, 66, 1448, 34, 16), 3000);
        assert_eq!(Arrival::decode(sent.clone().encode()), sent);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(
            offload in proptest::collection::vec(any::<u8>(), 0..12),
            contents in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let arrival = Arrival { interface: 0, offload: offload.into(), contents: contents.into() };
            let _ = arrival.check(MAC);
        }
    }
}
