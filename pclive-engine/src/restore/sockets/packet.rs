//! TCP and UDP packets as bytes, for what only a packet brings about: a FIN of the peer in a restored connection,
//! a datagram in a restored queue. Pure. The kernel fills in the IPv4 header's checksum and length.

use std::net::{IpAddr, SocketAddr};

const TCP: u8 = 6;
const UDP: u8 = 17;
const FIN_ACK: u8 = 0x11;

/// A segment without data that ends the sender's direction.
pub(super) fn fin(from: SocketAddr, to: SocketAddr, sequence: u32, acknowledge: u32) -> Vec<u8> {
    let mut segment = Vec::with_capacity(20);
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledge.to_be_bytes());
    // Five words of header; window; checksum and urgent pointer.
    segment.extend([5 << 4, FIN_ACK]);
    segment.extend(u16::MAX.to_be_bytes());
    segment.extend([0; 4]);
    let sum = checksum(from.ip(), to.ip(), TCP, &segment);
    put(&mut segment, 16, &sum.to_be_bytes());
    with_header(from.ip(), to.ip(), TCP, &segment)
}

/// A datagram.
pub(super) fn datagram(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(8 + payload.len());
    datagram.extend(from.port().to_be_bytes());
    datagram.extend(to.port().to_be_bytes());
    // The caller's payloads fit: validated as at most 65507 bytes.
    datagram.extend(u16::try_from(8 + payload.len()).unwrap_or(u16::MAX).to_be_bytes());
    datagram.extend([0; 2]);
    datagram.extend(payload);
    let sum = match checksum(from.ip(), to.ip(), UDP, &datagram) {
        // Zero means "no checksum".
        0 => u16::MAX,
        sum => sum,
    };
    put(&mut datagram, 6, &sum.to_be_bytes());
    with_header(from.ip(), to.ip(), UDP, &datagram)
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    for (slot, byte) in bytes.iter_mut().skip(at).zip(value) {
        *slot = *byte;
    }
}

fn with_header(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(40 + payload.len());
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX);
            packet.extend([0x45, 0]);
            packet.extend(total.to_be_bytes());
            packet.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
            packet.extend(from.octets());
            packet.extend(to.octets());
        }
        (from, to) => {
            let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(length.to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(octets(from));
            packet.extend(octets(to));
        }
    }
    packet.extend(payload);
    packet
}

/// Internet checksum over pseudo header and payload (RFC 1071, 8200).
fn checksum(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> u16 {
    let mut sum = u64::from(protocol) + payload.len() as u64;
    for bytes in [&octets(from), &octets(to), payload] {
        for pair in bytes.chunks(2) {
            let high = pair.first().copied().unwrap_or_default();
            let low = pair.get(1).copied().unwrap_or_default();
            sum += u64::from(u16::from_be_bytes([high, low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Summing a packet with its checksum in place gives zero.
    fn verifies(packet: &[u8], from: &str, to: &str, protocol: u8, header: usize) {
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        assert_eq!(checksum(from, to, protocol, &packet[header..]), 0);
    }

    #[test]
    fn checksums_of_both_families_verify() {
        let v4 = fin("10.0.0.1:80".parse().unwrap(), "10.0.0.2:4000".parse().unwrap(), 0xffff_fffe, 7);
        assert_eq!(v4.len(), 40);
        verifies(&v4, "10.0.0.1", "10.0.0.2", TCP, 20);
        let v6 = datagram("[fd00::1]:53".parse().unwrap(), "[fd00::2]:9".parse().unwrap(), b"odd");
        assert_eq!(v6.len(), 40 + 8 + 3);
        verifies(&v6, "fd00::1", "fd00::2", UDP, 40);
    }
}
