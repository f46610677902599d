use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use pclive_agent::network::{Error, Lock, Tenure, capture, remove_stale_lock};

use crate::site::{BRIDGE_IP, BRIDGE_IP6, Container, IP, IP6, Site, host_udp, passes, wait_until_passes};

fn prepared(container: &Container, tenure: Tenure) -> Lock {
    let namespace = container.namespace();
    Lock::prepare(&namespace, "redis-1", &capture(&namespace).unwrap(), tenure).unwrap()
}

/// Sockets on both sides that have found each other: nothing waits for an address to be resolved.
fn warm(container: &Container) -> (UdpSocket, UdpSocket) {
    let (outside, inside) = (host_udp(BRIDGE_IP), container.udp(IP));
    wait_until_passes(&outside, &inside);
    wait_until_passes(&inside, &outside);
    (outside, inside)
}

#[test]
fn lock_stops_both_ways_and_release_restores() {
    let site = Site::new();
    let container = site.connected();
    for (outside, inside) in [(BRIDGE_IP, IP), (BRIDGE_IP6, IP6)] {
        let (outside, inside) = (host_udp(outside), container.udp(inside));
        let mut lock = prepared(&container, Tenure::Agent);
        wait_until_passes(&outside, &inside);
        wait_until_passes(&inside, &outside);

        lock.engage().unwrap();
        assert!(lock.is_engaged());
        assert!(!passes(&outside, &inside));
        assert!(!passes(&inside, &outside));

        lock.release().unwrap();
        assert!(passes(&outside, &inside));
        assert!(passes(&inside, &outside));
    }
    assert_eq!(container.run("nft list tables"), "");
}

#[test]
fn loopback_is_not_locked() {
    let site = Site::new();
    let container = site.connected();
    let mut lock = prepared(&container, Tenure::Agent);
    lock.engage().unwrap();
    assert!(passes(&container.udp("127.0.0.1"), &container.udp("127.0.0.1")));
}

#[test]
fn preparing_lets_everything_pass_and_leaves_no_table() {
    let site = Site::new();
    let container = site.connected();
    let (outside, inside) = warm(&container);
    let _lock = prepared(&container, Tenure::Agent);
    assert!(passes(&outside, &inside));
    assert_eq!(container.run("nft list tables"), "");
}

#[test]
fn dropped_lock_is_released() {
    let site = Site::new();
    let container = site.connected();
    let (outside, inside) = warm(&container);
    for tenure in [Tenure::Agent, Tenure::Namespace] {
        let mut lock = prepared(&container, tenure);
        lock.engage().unwrap();
        lock.outlive_agent().unwrap();
        drop(lock);
        assert!(passes(&outside, &inside));
        assert_eq!(container.run("nft list tables"), "");
    }
}

#[test]
fn lock_of_a_dead_agent_is_released_by_the_kernel() {
    let site = Site::new();
    let container = site.connected();
    let (outside, inside) = warm(&container);
    let mut lock = prepared(&container, Tenure::Agent);
    lock.engage().unwrap();
    assert!(!passes(&outside, &inside));
    // As in a crash, the socket is closed and nothing is said.
    lock.abandon();
    wait_until_passes(&outside, &inside);
    assert_eq!(container.run("nft list tables"), "");
}

#[test]
fn lock_that_outlives_the_agent_stays_until_it_is_removed() {
    let site = Site::new();
    let container = site.connected();
    let (outside, inside) = warm(&container);
    let mut lock = prepared(&container, Tenure::Agent);
    lock.engage().unwrap();
    lock.outlive_agent().unwrap();
    lock.abandon();
    assert!(!passes(&outside, &inside));
    assert!(!passes(&inside, &outside));

    remove_stale_lock(&container.namespace(), "redis-1").unwrap();
    assert!(passes(&outside, &inside));
    assert_eq!(container.run("nft list tables"), "");
    remove_stale_lock(&container.namespace(), "redis-1").unwrap();
}

#[test]
fn lock_takes_the_place_of_a_stale_one() {
    let site = Site::new();
    let container = site.connected();
    let (outside, inside) = warm(&container);
    let mut stale = prepared(&container, Tenure::Namespace);
    stale.engage().unwrap();
    stale.outlive_agent().unwrap();
    stale.abandon();

    let mut lock = prepared(&container, Tenure::Agent);
    assert!(!passes(&outside, &inside));
    lock.engage().unwrap();
    assert!(!passes(&outside, &inside));
    lock.release().unwrap();
    assert!(passes(&outside, &inside));
    assert_eq!(container.run("nft list tables"), "");
}

#[test]
fn foreign_tables_are_left_alone() {
    let site = Site::new();
    let container = site.connected();
    container.run("nft add table inet network_other");
    let mut lock = prepared(&container, Tenure::Agent);
    lock.engage().unwrap();
    lock.release().unwrap();
    remove_stale_lock(&container.namespace(), "redis-1").unwrap();
    assert_eq!(container.run("nft list tables"), "table inet network_other\n");
}

#[test]
fn engaging_and_releasing_twice_is_once() {
    let site = Site::new();
    let container = site.connected();
    let (outside, inside) = warm(&container);
    let mut lock = prepared(&container, Tenure::Agent);
    lock.engage().unwrap();
    lock.engage().unwrap();
    assert!(!passes(&outside, &inside));
    lock.release().unwrap();
    lock.release().unwrap();
    assert!(passes(&outside, &inside));
    lock.engage().unwrap();
    assert!(!passes(&outside, &inside));
}

#[test]
fn lock_of_an_interface_that_is_not_there_is_an_error() {
    let site = Site::new();
    let interfaces = capture(&site.connected().namespace()).unwrap();
    let empty = Container::new();
    let refused = Lock::prepare(&empty.namespace(), "redis-1", &interfaces, Tenure::Agent);
    assert!(matches!(refused.err(), Some(Error::InterfaceMissing { .. })));
}

#[test]
fn container_with_only_loopback_needs_no_lock() {
    let _site = Site::new();
    let container = Container::new();
    let mut lock = prepared(&container, Tenure::Agent);
    lock.engage().unwrap();
    lock.outlive_agent().unwrap();
    lock.release().unwrap();
}

#[test]
fn established_connection_survives_a_lock() {
    let site = Site::new();
    let container = site.connected();
    let listener = container.namespace().run(|| TcpListener::bind((IP, 0))).unwrap().unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    }
    let mut lock = prepared(&container, Tenure::Agent);
    let echo = std::thread::spawn(move || {
        let mut word = [0; 4];
        while server.read_exact(&mut word).is_ok() {
            server.write_all(&word).expect("the connection stands");
        }
    });

    client.write_all(&1u32.to_ne_bytes()).unwrap();
    assert_eq!(read_word(&mut client), 1);
    lock.engage().unwrap();
    // Both directions have something unacknowledged, and it is retransmitted against the lock.
    for word in 2u32..=50 {
        client.write_all(&word.to_ne_bytes()).unwrap();
    }
    std::thread::sleep(Duration::from_millis(300));
    lock.release().unwrap();
    for word in 2..=50 {
        assert_eq!(read_word(&mut client), word);
    }
    drop(client);
    echo.join().unwrap();
}

fn read_word(stream: &mut TcpStream) -> u32 {
    let mut word = [0; 4];
    stream.read_exact(&mut word).expect("the connection stands");
    u32::from_ne_bytes(word)
}

/// Says what the hot path costs (`--nocapture`); the time is not asserted.
#[test]
fn twenty_locks_in_a_row_leave_the_path_open() {
    let site = Site::new();
    let container = site.connected();
    let (outside, inside) = warm(&container);
    let (mut engage, mut release) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let mut lock = prepared(&container, Tenure::Agent);
        let start = Instant::now();
        lock.engage().unwrap();
        engage.push(start.elapsed());
        let start = Instant::now();
        lock.release().unwrap();
        release.push(start.elapsed());
    }
    engage.sort();
    release.sort();
    println!(
        "engage: median {:?}, most {:?}; release: median {:?}, most {:?}",
        engage[10], engage[19], release[10], release[19]
    );
    assert!(passes(&outside, &inside));
}

#[test]
fn interface_that_is_gone_since_the_lock_was_prepared_is_named() {
    let site = Site::new();
    let container = site.connected();
    let lock = prepared(&container, Tenure::Agent);
    lock.recheck(&container.namespace()).unwrap();
    container.run("ip link set eth0 down");
    container.run("ip link set eth0 name other0");
    let error = lock.recheck(&container.namespace()).unwrap_err();
    assert!(matches!(&error, Error::InterfaceMissing { interface, .. } if interface == "eth0"), "{error}");
}
