//! UDP sockets.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use pclive_engine::capture::sockets::{Connections, Mode, Reading, capture_socket};
use pclive_engine::model::socket::SocketKind;

use crate::namespace::{Namespace, Network};

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut buffer = vec![0; 65_536];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    buffer.truncate(length);
    (buffer, from)
}

/// Waits until `count` datagrams are in the queue (dumps leave it in place).
fn wait_for(host: &Namespace, socket: &UdpSocket, count: usize) {
    let start = Instant::now();
    loop {
        match host.capture(socket, Mode::Dump).unwrap().socket.kind {
            SocketKind::Udp { queue, .. } if queue.len() == count => return,
            kind => assert!(start.elapsed() < Duration::from_secs(10), "{kind:?}"),
        }
    }
}

fn queue_survives(server: &str, reachable: &str, client: &str) {
    let network = Network::new();
    let server = network.server.run(|| UdpSocket::bind(server).unwrap());
    let client = network.client.run(|| UdpSocket::bind(client).unwrap());
    let target: SocketAddr = reachable.parse().unwrap();
    let messages = [b"one".to_vec(), vec![2; 9_000], b"three".to_vec(), vec![4; 60_000]];
    for message in &messages {
        client.send_to(message, target).unwrap();
    }
    wait_for(&network.server, &server, messages.len());
    let local = server.local_addr().unwrap();
    let server = UdpSocket::from(network.server.again(server.into()));
    assert_eq!(server.local_addr().unwrap(), local);
    for message in &messages {
        let (payload, from) = receive(&server);
        assert_eq!(payload, *message);
        assert_eq!(from.ip().to_canonical(), client.local_addr().unwrap().ip());
        server.send_to(&payload[..3], from).unwrap();
        assert_eq!(receive(&client).0, &payload[..3]);
    }
}

#[test]
fn connected_socket_takes_another_address_where_connections_end() {
    let closing = Reading { mode: Mode::Dump, connections: Connections::Close };
    for (server, client) in [("10.77.0.1:7000", "10.77.0.2:0"), ("[fd77::1]:7000", "[fd77::2]:0")] {
        let network = Network::new();
        let peer = network.client.run(|| UdpSocket::bind(client).unwrap());
        let socket = network.server.run(|| UdpSocket::bind(server).unwrap());
        socket.connect(peer.local_addr().unwrap()).unwrap();
        let diag = network.server.diag();
        let captured = capture_socket(socket.into(), &diag, closing).unwrap().socket;
        let SocketKind::Udp { local: Some(local), .. } = captured.kind else { panic!("{captured:?}") };
        assert!(local.ip().is_unspecified() && local.port() == 7000, "{local}");
        let again = UdpSocket::from(network.server.revive(&captured));
        again.send(b"here").unwrap();
        assert_eq!(receive(&peer), (b"here".to_vec(), server.parse().unwrap()));
    }
    let host = Namespace::new();
    let inside = host.run(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    inside.connect(inside.local_addr().unwrap()).unwrap();
    let local = inside.local_addr().unwrap();
    let captured = capture_socket(inside.into(), &host.diag(), closing).unwrap().socket;
    assert!(matches!(captured.kind, SocketKind::Udp { local: Some(kept), .. } if kept == local));
}

#[test]
fn v4_queue_survives() {
    queue_survives("10.77.0.1:7000", "10.77.0.1:7000", "10.77.0.2:7001");
}

#[test]
fn v6_queue_survives() {
    queue_survives("[fd77::1]:7000", "[fd77::1]:7000", "[fd77::2]:7001");
}

#[test]
fn queue_of_a_socket_bound_to_all_addresses_survives() {
    queue_survives("0.0.0.0:7000", "10.77.0.1:7000", "10.77.0.2:7001");
    queue_survives("[::]:7000", "10.77.0.1:7000", "10.77.0.2:7001");
    queue_survives("[::]:7000", "[fd77::1]:7000", "[fd77::2]:7001");
}

#[test]
fn connected_socket_keeps_its_peer_and_queue() {
    let network = Network::new();
    let server = network.server.run(|| UdpSocket::bind("10.77.0.1:7000").unwrap());
    let client = network.client.run(|| UdpSocket::bind("10.77.0.2:7001").unwrap());
    server.connect("10.77.0.2:7001").unwrap();
    client.connect("10.77.0.1:7000").unwrap();
    client.send(b"hello").unwrap();
    wait_for(&network.server, &server, 1);
    let dumped = network.server.take(server.into());
    let SocketKind::Udp { peer, queue, .. } = &dumped.kind else { panic!() };
    assert_eq!((peer.is_some(), queue.len()), (true, 1));
    let server = UdpSocket::from(network.server.revive(&dumped));
    assert_eq!(receive(&server).0, b"hello");
    server.send(b"and back").unwrap();
    assert_eq!(receive(&client).0, b"and back");
}

#[test]
fn dump_leaves_the_queue_in_place() {
    let network = Network::new();
    let server = network.server.run(|| UdpSocket::bind("0.0.0.0:7000").unwrap());
    let client = network.client.run(|| UdpSocket::bind("10.77.0.2:7001").unwrap());
    for number in 0..5 {
        client.send_to(&[number], "10.77.0.1:7000").unwrap();
    }
    wait_for(&network.server, &server, 5);
    let first = network.server.take(server.try_clone().unwrap().into());
    let second = network.server.take(server.try_clone().unwrap().into());
    assert_eq!(first, second);
    assert_eq!((0..5).map(|_| receive(&server).0[0]).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
}
