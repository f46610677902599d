//! Frames that tell and ask who has an address: ARP (RFC 826, 5227) and neighbour discovery (RFC 4861). Pure.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::interface::Mac;

/// ETH_P_ARP.
pub(super) const ARP: u16 = 0x0806;
/// ETH_P_IPV6.
pub(super) const IPV6: u16 = 0x86dd;

const BROADCAST: [u8; 6] = [0xff; 6];
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Override flag of an advertisement: replaces what the receiver knows.
const OVERRIDE: u32 = 0x2000_0000;
const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Operation of an ARP frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Request = 1,
    Reply = 2,
}

/// "`ip` is at `mac`", to everybody. Some hosts listen to requests only, some to replies only.
pub(super) fn gratuitous_arp(operation: Operation, mac: Mac, ip: Ipv4Addr) -> Vec<u8> {
    let target = match operation {
        Operation::Request => [0; 6],
        Operation::Reply => BROADCAST,
    };
    arp(operation, mac, ip, target, ip)
}

/// "Who has `target`? Tell `ip` at `mac`", to everybody.
pub(super) fn arp_request(mac: Mac, ip: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    arp(Operation::Request, mac, ip, [0; 6], target)
}

fn arp(operation: Operation, mac: Mac, ip: Ipv4Addr, target_mac: [u8; 6], target: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, mac, ARP);
    // Ethernet, IPv4, lengths of their addresses.
    frame.extend([0, 1, 8, 0, 6, 4, 0, operation as u8]);
    frame.extend(mac.0);
    frame.extend(ip.octets());
    frame.extend(target_mac);
    frame.extend(target.octets());
    frame
}

/// "`ip` is at `mac`", to all nodes.
pub(super) fn unsolicited_advertisement(mac: Mac, ip: Ipv6Addr) -> Vec<u8> {
    discovery(mac, ip, ALL_NODES, ADVERTISEMENT, OVERRIDE, ip, TARGET_MAC)
}

/// "Who has `target`? Tell `ip` at `mac`", to those whose address ends as the target's does.
pub(super) fn solicitation(mac: Mac, ip: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = target.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    discovery(mac, ip, group, SOLICITATION, 0, target, SOURCE_MAC)
}

fn discovery(
    mac: Mac,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    kind: u8,
    flags: u32,
    target: Ipv6Addr,
    option: u8,
) -> Vec<u8> {
    let mut body = vec![kind, 0, 0, 0];
    body.extend(flags.to_be_bytes());
    body.extend(target.octets());
    // One unit of 8 bytes.
    body.extend([option, 1]);
    body.extend(mac.0);
    let sum = checksum(source, destination, &body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());

    let [.., a, b, c, d] = destination.octets();
    let mut frame = ethernet([0x33, 0x33, a, b, c, d], mac, IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((body.len() as u16).to_be_bytes());
    // The hop limit proves that no router forwarded it.
    frame.extend([ICMPV6, 255]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    frame.extend(body);
    frame
}

fn ethernet(destination: [u8; 6], source: Mac, protocol: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(96);
    frame.extend(destination);
    frame.extend(source.0);
    frame.extend(protocol.to_be_bytes());
    frame
}

/// ICMPv6 over the pseudo header (RFC 8200, 8.1). The body has an even length.
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, body: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u32 {
        bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum()
    };
    let mut sum = words(&source.octets()) + words(&destination.octets()) + words(body);
    sum += body.len() as u32 + u32::from(ICMPV6);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);

    #[test]
    fn gratuitous_arp_names_the_address_twice() {
        let frame = gratuitous_arp(Operation::Reply, MAC, Ipv4Addr::new(10, 0, 0, 7));
        assert_eq!(frame.len(), 42);
        assert_eq!(frame[..6], BROADCAST);
        assert_eq!(frame[12..14], [0x08, 0x06]);
        assert_eq!(frame[20..22], [0, 2]);
        assert_eq!(frame[28..32], frame[38..42]);
    }

    #[test]
    fn checksum_of_a_whole_message_is_zero() {
        let (source, target) = ("fe80::7".parse().unwrap(), "fd00::1:2:3".parse().unwrap());
        let frame = solicitation(MAC, source, target);
        let group: Ipv6Addr = "ff02::1:ff02:3".parse().unwrap();
        assert_eq!(frame[38..54], group.octets());
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 2, 0, 3]);
        assert_eq!(checksum(source, group, &frame[54..]), 0);
    }
}
