//! Sockets before and after a connection: listening, half-closed, over.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use pclive_engine::capture::sockets::{Connections, Mode, Reading, RepairGuard, capture_socket};
use pclive_engine::model::FileId;
use pclive_engine::model::socket::{Socket, SocketKind, TcpState};
use pclive_engine::sys::socket::{Queue, queue_length};
use pclive_engine::sys::tcp;

use crate::namespace::{Namespace, Network, SERVER4, SERVER6, silence};

const PATIENCE: Duration = Duration::from_secs(10);

fn state(fd: impl AsFd) -> u8 {
    tcp::info(fd.as_fd()).unwrap().state
}

fn waiting(stream: &TcpStream, queue: Queue) -> i32 {
    queue_length(stream.as_fd(), queue).unwrap()
}

fn wait_for_state(fd: impl AsFd, wanted: u8) {
    let start = Instant::now();
    while state(&fd) != wanted {
        assert!(start.elapsed() < PATIENCE, "state {} instead of {wanted}", state(&fd));
        std::thread::yield_now();
    }
}

fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

fn peer_has_finished(address: &str) {
    let network = Network::new();
    let (server, mut client, _listener) = network.connect(address);
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    wait_for_state(&server, 8);
    let dumped = network.server.take(server.into());
    let mut server = TcpStream::from(network.server.revive(&dumped));
    assert_eq!(state(&server), 8);
    assert_eq!(read_to_end(&mut server), b"question");
    server.write_all(&[7; 100_000]).unwrap();
    drop(server);
    assert_eq!(read_to_end(&mut client), vec![7; 100_000]);
    network.assert_no_reset();
}

#[test]
fn v4_connection_whose_peer_has_finished_can_still_answer() {
    peer_has_finished(SERVER4);
}

#[test]
fn v6_connection_whose_peer_has_finished_can_still_answer() {
    peer_has_finished(SERVER6);
}

#[test]
fn peer_that_has_finished_behind_a_full_window_is_still_seen() {
    let network = Network::new();
    let (server, mut client, _listener) = network.connect(SERVER4);
    client.set_nonblocking(true).unwrap();
    let mut written = 0;
    // Full: what was sent is acknowledged, and the rest cannot be sent.
    loop {
        match client.write(&[3; 8192]) {
            Ok(length) => written += length,
            Err(_) if waiting(&client, Queue::Unsent) == waiting(&client, Queue::Unacknowledged) => break,
            Err(_) => std::thread::yield_now(),
        }
    }
    client.shutdown(Shutdown::Write).unwrap();
    client.set_nonblocking(false).unwrap();
    let mut server = TcpStream::from(network.server.again(server.into()));
    assert_eq!(read_to_end(&mut server).len(), written);
    server.write_all(b"answer").unwrap();
    drop(server);
    assert_eq!(read_to_end(&mut client), b"answer");
    network.assert_no_reset();
}

#[test]
fn connection_that_we_have_finished_can_still_receive() {
    let network = Network::new();
    let (mut server, mut client, _listener) = network.connect(SERVER4);
    server.write_all(b"bye").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    wait_for_state(&server, 5);
    let mut server = TcpStream::from(network.server.again(server.into()));
    assert_eq!(server.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    wait_for_state(&server, 5);
    assert_eq!(read_to_end(&mut client), b"bye");
    client.write_all(b"last words").unwrap();
    drop(client);
    assert_eq!(read_to_end(&mut server), b"last words");
    network.assert_no_reset();
}

#[test]
fn lost_fin_of_ours_is_repeated() {
    let network = Network::new();
    let (mut server, mut client, _listener) = network.connect(SERVER4);
    let hear = network.deafen_client();
    server.write_all(b"bye").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(state(&server), 4);
    let dumped = network.server.take(server.into());
    hear();
    let server = TcpStream::from(network.server.revive(&dumped));
    assert_eq!(read_to_end(&mut client), b"bye");
    wait_for_state(&server, 5);
    network.assert_no_reset();
}

#[test]
fn connection_that_both_have_finished_ends() {
    let network = Network::new();
    let (server, mut client, _listener) = network.connect(SERVER4);
    client.shutdown(Shutdown::Write).unwrap();
    wait_for_state(&server, 8);
    let hear = network.deafen_client();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(state(&server), 9);
    let dumped = network.server.take(server.into());
    let SocketKind::TcpConnection(connection) = &dumped.kind else { panic!() };
    assert_eq!(connection.state, TcpState::LastAck);
    hear();
    let server = TcpStream::from(network.server.revive(&dumped));
    assert_eq!(read_to_end(&mut client), b"");
    wait_for_state(&server, 7);
    network.assert_no_reset();
}

#[test]
fn connection_that_is_over_reads_as_ended() {
    let network = Network::new();
    let (mut server, client, _listener) = network.connect(SERVER4);
    server.shutdown(Shutdown::Write).unwrap();
    drop(client);
    wait_for_state(&server, 7);
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    let mut server = TcpStream::from(network.server.again(server.into()));
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    assert_eq!(server.write(&[0]).unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[test]
fn reset_that_the_application_has_not_seen_is_transient() {
    let network = Network::new();
    let (server, client, _listener) = network.connect(SERVER4);
    network.client.run(|| drop(reset_on_close(client)));
    wait_for_state(&server, 7);
    let refusal = network.server.capture(&server, Mode::Dump).unwrap_err();
    assert!(refusal.transient, "{refusal}");
    network.server.capture(&server, Mode::Check).unwrap();
}

fn reset_on_close(stream: TcpStream) -> TcpStream {
    let linger = [1_i32.to_ne_bytes(), 0_i32.to_ne_bytes()].concat();
    pclive_engine::sys::socket::set_option(stream.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &linger)
        .unwrap();
    stream
}

#[test]
fn receiving_side_that_the_application_shut_stays_shut() {
    let network = Network::new();
    let (server, mut client, _listener) = network.connect(SERVER4);
    server.shutdown(Shutdown::Read).unwrap();
    let mut server = TcpStream::from(network.server.again(server.into()));
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    server.write_all(b"still here").unwrap();
    drop(server);
    assert_eq!(read_to_end(&mut client), b"still here");
}

#[test]
fn listener_comes_back_beside_its_connections() {
    for address in [SERVER4, SERVER6, "0.0.0.0:7000", "[::]:7000"] {
        let network = Network::new();
        let listener = network.server.run(|| TcpListener::bind(address).unwrap());
        let reachable = if address.starts_with('[') { SERVER6 } else { SERVER4 };
        let connect = || network.client.run(|| TcpStream::connect(reachable).unwrap());
        let mut clients: Vec<TcpStream> = (0..3).map(|_| connect()).collect();
        let servers = clients.iter().map(|_| listener.accept().unwrap().0);
        let fds: Vec<OwnedFd> = servers.map(OwnedFd::from).collect();
        let (sockets, guards) = dump(&network.server, fds.into_iter().chain([listener.into()]).collect());
        guards.into_iter().for_each(silence);
        let SocketKind::TcpListener { backlog, .. } = sockets[3].kind else { panic!() };
        assert_eq!(backlog, 128, "std asks for 128");
        let mut built = network.server.build(&sockets);
        let mut take = |id| built.fds.remove(&FileId(id)).unwrap();
        let servers: Vec<TcpStream> = (0..3).map(|id| take(id).into()).collect();
        let listener = TcpListener::from(take(3));
        built.go().unwrap();
        clients.push(connect());
        for mut server in servers.into_iter().chain([listener.accept().unwrap().0]) {
            server.write_all(b"hello").unwrap();
        }
        for mut client in clients {
            assert_eq!(read_to_end(&mut client), b"hello");
        }
        network.assert_no_reset();
    }
}

/// Dumps several sockets and closes the originals.
fn dump(host: &Namespace, fds: Vec<OwnedFd>) -> (Vec<Socket>, Vec<RepairGuard>) {
    let diag = host.diag();
    let captured = fds.into_iter().map(|fd| capture_socket(fd, &diag, Mode::Dump).unwrap());
    let (sockets, guards): (Vec<_>, Vec<_>) = captured.map(|c| (c.socket, c.guard)).unzip();
    (sockets, guards.into_iter().flatten().collect())
}

#[test]
fn connection_that_waits_to_be_accepted_is_transient() {
    let network = Network::new();
    let listener = network.server.run(|| TcpListener::bind(SERVER4).unwrap());
    let _client = network.client.run(|| TcpStream::connect(SERVER4).unwrap());
    let refusal = network.server.capture(&listener, Mode::Dump).unwrap_err();
    assert!(refusal.transient && refusal.what.contains("1 connections not yet accepted"), "{refusal}");
    network.server.capture(&listener, Mode::Check).unwrap();
}

/// A dump that ends connections with others.
const CLOSING: Reading = Reading { mode: Mode::Dump, connections: Connections::Close };

#[test]
fn connections_that_are_to_end_are_over_afterwards_and_their_listener_goes_on() {
    let network = Network::new();
    let (server, mut client, listener) = network.connect(SERVER4);
    client.write_all(b"unread").unwrap();
    let diag = network.server.diag();
    let take = |fd: &OwnedFd| capture_socket(fd.try_clone().unwrap(), &diag, CLOSING).unwrap();
    let originals = [OwnedFd::from(server), OwnedFd::from(listener)];
    let captured = originals.each_ref().map(take);
    let sockets = captured.map(|captured| captured.socket);
    // As of a program that is killed: the peers hear of it.
    drop(originals);
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let mut built = network.server.build(&sockets);
    let mut server = TcpStream::from(built.fds.remove(&FileId(0)).unwrap());
    let listener = TcpListener::from(built.fds.remove(&FileId(1)).unwrap());
    built.go().unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    assert_eq!(server.write(&[0]).unwrap_err().kind(), ErrorKind::BrokenPipe);
    let mut client = network.client.run(|| TcpStream::connect(SERVER4).unwrap());
    listener.accept().unwrap().0.write_all(b"hello").unwrap();
    assert_eq!(read_to_end(&mut client), b"hello");
}

#[test]
fn reset_that_the_application_has_not_seen_is_in_no_way_where_connections_end() {
    let network = Network::new();
    let (server, client, _listener) = network.connect(SERVER4);
    network.client.run(|| drop(reset_on_close(client)));
    wait_for_state(&server, 7);
    let captured = capture_socket(server.into(), &network.server.diag(), CLOSING).unwrap();
    assert!(matches!(captured.socket.kind, SocketKind::TcpClosed { dead: true, .. }));
}

#[test]
fn mute_connection_that_is_disconnected_tells_its_program_and_nobody_else() {
    let network = Network::new();
    let (mut server, mut client, _listener) = network.connect(SERVER4);
    let captured = capture_socket(server.try_clone().unwrap().into(), &network.server.diag(), Mode::Dump);
    let guard = captured.unwrap().guard.unwrap();
    guard.silence().unwrap();
    pclive_engine::sys::socket::disconnect(server.as_fd()).unwrap();
    drop(guard);
    assert_eq!(server.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
    network.assert_no_reset();
    client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "nothing was said");
}

#[test]
fn connection_of_a_container_with_itself_is_carried_where_others_end() {
    let host = Namespace::new();
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (client, _server) = host.run(|| {
            let listener = TcpListener::bind(address).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (client, listener.accept().unwrap().0)
        });
        let captured = capture_socket(client.into(), &host.diag(), CLOSING).unwrap();
        assert!(matches!(captured.socket.kind, SocketKind::TcpConnection(_)), "{address}");
        assert!(captured.guard.is_some());
    }
}

#[test]
fn fresh_and_bound_sockets_come_back() {
    let host = Namespace::new();
    let fresh =
        host.run(|| pclive_engine::sys::socket::socket(libc::AF_INET6, libc::SOCK_STREAM, 0).unwrap());
    let again = host.again(fresh);
    assert_eq!(state(&again), 7);
    let host_address = "127.0.0.1:7001".parse::<std::net::SocketAddr>().unwrap();
    let bound = host.run(|| pclive_engine::sys::socket::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap());
    let address = nix::sys::socket::SockaddrStorage::from(host_address);
    nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&bound), &address).unwrap();
    let dumped = host.take(bound.try_clone().unwrap());
    drop(bound);
    let again = host.revive(&dumped);
    pclive_engine::sys::socket::listen(again.as_fd(), 5).unwrap();
    assert_eq!(TcpListener::from(again).local_addr().unwrap(), host_address);
}
