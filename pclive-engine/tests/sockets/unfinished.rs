//! Connections that no descriptor leads to: seen while they are under way, and not when they are over.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use pclive_engine::capture::sockets::{Connections, SockDiag};

use crate::namespace::{Network, SERVER4, SERVER6};

const PATIENCE: Duration = Duration::from_secs(20);
const LONG: usize = 200_000;

/// What is unfinished at the server.
fn unfinished(network: &Network) -> Vec<String> {
    let diag = SockDiag::open(network.server.pid()).unwrap();
    let found = diag.unfinished(Connections::Carry).unwrap();
    assert!(found.iter().all(|refusal| refusal.transient), "{found:?}");
    found.into_iter().map(|refusal| refusal.what).collect()
}

/// Waits until what is unfinished at the server is as wanted; it.
fn wait_until(network: &Network, what: &str, wanted: impl Fn(&[String]) -> bool) -> Vec<String> {
    let start = Instant::now();
    loop {
        let found = unfinished(network);
        if wanted(&found) {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: {found:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A listener of the server, whose hosts know each other's link addresses: the deaf one could not ask for them.
fn listener(network: &Network, address: SocketAddr) -> TcpListener {
    let listener = network.server.run(|| TcpListener::bind(address).unwrap());
    let (server, client) = network.connect_to(&listener);
    drop(client);
    drop(server);
    wait_until(network, "nothing is left of the first connection", <[String]>::is_empty);
    listener
}

fn handshake_is_seen(address: &str) {
    let network = Network::new();
    let address: SocketAddr = address.parse().unwrap();
    let listener = listener(&network, address);
    let hear = network.deafen_client();
    std::thread::scope(|scope| {
        let client = scope.spawn(|| network.client.run(|| TcpStream::connect(address).unwrap()));
        let found = wait_until(&network, "the handshake is seen", |found| !found.is_empty());
        assert!(
            found[0].contains("TCP handshake of") && found[0].contains(&address.to_string()),
            "{found:?}"
        );
        hear();
        let mut client = client.join().unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.write_all(b"hello").unwrap();
        client.read_exact(&mut [0; 5]).unwrap();
        assert_eq!(unfinished(&network), Vec::<String>::new());
    });
}

#[test]
fn v4_handshake_under_way_is_seen() {
    handshake_is_seen(SERVER4);
}

#[test]
fn v6_handshake_under_way_is_seen() {
    handshake_is_seen(SERVER6);
}

#[test]
fn client_that_does_not_answer_holds_nothing_up() {
    let network = Network::new();
    let address: SocketAddr = SERVER4.parse().unwrap();
    let _listener = listener(&network, address);
    let _deaf = network.deafen_client();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let limit = Duration::from_secs(4);
            network.client.run(|| TcpStream::connect_timeout(&address, limit))
        });
        wait_until(&network, "the handshake is seen", |found| !found.is_empty());
        // The repetition of the SYN-ACK comes after a second.
        wait_until(&network, "the client is given up", <[String]>::is_empty);
    });
}

#[test]
fn closed_connection_with_unread_answer_is_seen_until_the_client_has_it() {
    let network = Network::new();
    let (mut server, mut client, _listener) = network.connect(SERVER4);
    server.set_nonblocking(true).unwrap();
    let mut written = 0;
    while let Ok(length) = server.write(&[7; LONG]) {
        written += length;
    }
    drop(server);
    // The client does not read: its window is full, and the kernel keeps the rest for it.
    let found = wait_until(&network, "the closed connection is seen", |found| !found.is_empty());
    assert!(found[0].contains("closed") && found[0].contains(SERVER4), "{found:?}");
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert_eq!(answer.len(), written);
    wait_until(&network, "it is over", <[String]>::is_empty);
}

#[test]
fn open_connections_and_those_in_time_wait_are_finished() {
    let network = Network::new();
    let (server, client, listener) = network.connect(SERVER4);
    let (second, other) = network.connect_to(&listener);
    // The server closes first, then the client: TIME_WAIT at the server.
    drop(second);
    drop(other);
    wait_until(&network, "the second is over", <[String]>::is_empty);
    drop((server, client));
}

#[test]
fn moment_without_unfinished_connections_is_waited_for() {
    let network = Network::new();
    let address: SocketAddr = SERVER4.parse().unwrap();
    let _listener = listener(&network, address);
    let diag = SockDiag::open(network.server.pid()).unwrap();
    let hear = network.deafen_client();
    std::thread::scope(|scope| {
        let client = scope.spawn(|| network.client.run(|| TcpStream::connect(address).unwrap()));
        wait_until(&network, "the handshake is seen", |found| !found.is_empty());
        let start = Instant::now();
        let limit = Duration::from_millis(20);
        diag.await_finish(limit, Connections::Carry).unwrap();
        assert!(start.elapsed() >= limit, "it is not over yet");
        hear();
        diag.await_finish(PATIENCE, Connections::Carry).unwrap();
        assert_eq!(unfinished(&network), Vec::<String>::new());
        client.join().unwrap();
    });
}

/// What it costs in the stop, told for people.
#[test]
fn looking_for_unfinished_connections_takes_a_moment() {
    let network = Network::new();
    let diag = SockDiag::open(network.server.pid()).unwrap();
    let mut times: Vec<Duration> = (0..20)
        .map(|_| {
            let start = Instant::now();
            diag.unfinished(Connections::Carry).unwrap();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!("looking for unfinished connections takes {:?}, at most {:?}", times[10], times[19]);
    assert!(times[10] < Duration::from_millis(10), "{times:?}");
}
