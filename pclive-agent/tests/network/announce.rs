use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use pclive_agent::network::{Announcer, Applied, NetworkConfig, apply, capture};

use crate::site::{BRIDGE, BRIDGE_IP, Container, IP, IP6, MAC, Site, bridge_mac, run, wait_for};

/// Sees every frame of the host's interfaces.
fn tap() -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC;
    let tap = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
    setsockopt(&tap, sockopt::ReceiveTimeout, &TimeVal::milliseconds(200)).unwrap();
    tap
}

fn mac() -> Vec<u8> {
    MAC.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

/// Receives until every kind of frame was seen.
fn wait_for_frames(tap: &OwnedFd, wanted: &[fn(&[u8]) -> bool]) {
    let mut missing = wanted.to_vec();
    wait_for("the announcement", || {
        let mut frame = [0; 2048];
        if let Ok(length) = recv(tap.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            missing.retain(|is| !is(&frame[..length]));
        }
        missing.is_empty()
    });
}

fn octets4(ip: &str) -> [u8; 4] {
    ip.parse::<std::net::Ipv4Addr>().unwrap().octets()
}

fn octets6(ip: &str) -> [u8; 16] {
    ip.parse::<std::net::Ipv6Addr>().unwrap().octets()
}

fn is_arp(frame: &[u8], operation: u8, sender: &str, target: &str) -> bool {
    frame.len() >= 42
        && frame[12..14] == [8, 6]
        && frame[21] == operation
        && frame[22..28] == mac()
        && frame[28..32] == octets4(sender)
        && frame[38..42] == octets4(target)
}

fn is_advertisement(frame: &[u8], address: &str) -> bool {
    frame.len() >= 86
        && frame[12..14] == [0x86, 0xdd]
        && frame[54] == 136
        && frame[62..78] == octets6(address)
        && frame[80..86] == mac()
}

fn opened(site: &Site, container: &Container) -> (Applied, Announcer) {
    let source = site.connected();
    let wanted = capture(&source.namespace()).unwrap();
    run("ip link del network-src");
    let config = NetworkConfig { bridge: Some(BRIDGE.to_owned()) };
    let mut applied = apply(container.namespace(), "redis-1", &wanted, &config).unwrap();
    let announcer = Announcer::prepare(&container.namespace(), &wanted).unwrap();
    applied.open().unwrap();
    (applied, announcer)
}

const WANTED: [fn(&[u8]) -> bool; 5] = [
    |frame| is_arp(frame, 1, IP, IP),
    |frame| is_arp(frame, 2, IP, IP),
    |frame| is_arp(frame, 1, IP, BRIDGE_IP),
    |frame| is_advertisement(frame, IP6),
    |frame| is_advertisement(frame, "fe80::77"),
];

#[test]
fn announcement_reaches_the_bridge() {
    let site = Site::new();
    let container = Container::new();
    let (_applied, announcer) = opened(&site, &container);
    let tap = tap();
    announcer.announce().unwrap();
    wait_for_frames(&tap, &WANTED);
    assert!(run(&format!("bridge fdb show br {BRIDGE}")).contains(MAC));
}

#[test]
fn announcement_corrects_a_stale_neighbour_of_a_peer_and_of_the_container() {
    let site = Site::new();
    let container = Container::new();
    let stale = "02:00:00:00:00:99";
    let (_applied, announcer) = opened(&site, &container);
    run(&format!("ip neigh replace {IP} lladdr {stale} nud reachable dev {BRIDGE}"));
    run(&format!("ip -6 neigh replace {IP6} lladdr {stale} nud reachable dev {BRIDGE}"));
    container.run(&format!("ip neigh replace {BRIDGE_IP} lladdr {stale} nud stale dev eth0"));
    // The kernel takes no reply for an entry that is younger than a second.
    let young = Instant::now() + Duration::from_millis(1100);
    wait_for("the entry to age", || Instant::now() > young);
    announcer.announce().unwrap();
    let right = bridge_mac();
    wait_for("the peer to learn", || run(&format!("ip neigh show {IP}")).contains(MAC));
    wait_for("the peer to learn", || run(&format!("ip -6 neigh show {IP6}")).contains(MAC));
    wait_for("the container to learn", || {
        container.run(&format!("ip neigh show {BRIDGE_IP}")).contains(&right)
    });
}

#[test]
fn announcement_is_repeated() {
    let site = Site::new();
    let container = Container::new();
    let (_applied, announcer) = opened(&site, &container);
    let tap = tap();
    let started = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(announcer.repeat()).unwrap();
    assert!(started.elapsed() >= Duration::from_millis(1100));
    wait_for_frames(&tap, &WANTED);
    wait_for_frames(&tap, &WANTED);
}

#[test]
fn announcement_of_an_interface_that_is_down_is_an_error() {
    let site = Site::new();
    let container = Container::new();
    let (_applied, announcer) = opened(&site, &container);
    container.run("ip link set eth0 down");
    assert!(announcer.announce().is_err());
}
