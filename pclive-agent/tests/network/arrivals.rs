//! Frames that arrive during a lock are heard and can be given to the container afterwards.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use pclive_agent::network::{Arrival, Injector, Interface, Lock, Namespace, Tally, Tap, Tenure, capture};

use crate::site::{
    BRIDGE, BRIDGE_IP, BRIDGE_IP6, Container, IP, IP6, Site, host_udp, run, wait_for, wait_until_passes,
};

/// More than any test sends.
const LIMIT: u64 = 4 << 20;
/// Enough for a look at everything.
const ALL: usize = usize::MAX;

/// A locked container whose arrivals are heard.
struct Stopped {
    namespace: Namespace,
    interfaces: Vec<Interface>,
    tap: Tap,
    lock: Lock,
}

impl Stopped {
    fn new(container: &Container, limit: u64) -> Self {
        let namespace = container.namespace();
        let interfaces = capture(&namespace).unwrap();
        let tap = Tap::prepare(&namespace, &interfaces, limit).unwrap();
        let mut lock = Lock::prepare(&namespace, "redis-1", &interfaces, Tenure::Agent).unwrap();
        tap.listen().unwrap();
        lock.engage().unwrap();
        Self { namespace, interfaces, tap, lock }
    }

    /// Waits until as many frames as wanted have come for the container.
    fn hear(&mut self, wanted: usize) -> Vec<Arrival> {
        let mut heard = Vec::new();
        wait_for("frames", || {
            heard.extend(self.tap.take(ALL).into_iter().filter(Arrival::is_unicast));
            heard.len() >= wanted
        });
        heard
    }

    fn injector(&self, limit: u64) -> Injector {
        Injector::prepare(&self.namespace, &self.interfaces, limit).unwrap()
    }
}

/// Sockets that have found each other.
fn warm(container: &Container, outside: &str, inside: &str) -> (UdpSocket, UdpSocket) {
    let (outside, inside) = (host_udp(outside), container.udp(inside));
    wait_until_passes(&outside, &inside);
    wait_until_passes(&inside, &outside);
    inside.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (outside, inside)
}

fn received(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).expect("a datagram");
    buffer[..length].to_vec()
}

#[test]
fn datagrams_of_a_lock_arrive_after_it_in_order() {
    let site = Site::new();
    let container = site.connected();
    for (outside, inside) in [(BRIDGE_IP, IP), (BRIDGE_IP6, IP6)] {
        let (outside, inside) = warm(&container, outside, inside);
        let mut stopped = Stopped::new(&container, LIMIT);
        for word in ["one", "two", "three"] {
            outside.send_to(word.as_bytes(), inside.local_addr().unwrap()).unwrap();
        }
        let heard = stopped.hear(3);
        stopped.lock.release().unwrap();
        let mut injector = stopped.injector(LIMIT);
        heard.iter().for_each(|arrival| injector.inject(arrival));
        assert_eq!(injector.tally(), Tally { injected: 3, dropped: 0 });
        for word in ["one", "two", "three"] {
            assert_eq!(received(&inside), word.as_bytes());
        }
    }
}

/// Segments that the kernel keeps together and has not summed: nothing else could bring them, the client is cut off.
#[test]
fn segments_with_unfinished_checksums_arrive() {
    let site = Site::new();
    let container = site.connected();
    for ip in [IP, IP6] {
        let listener = container.namespace().run(|| TcpListener::bind((ip, 0))).unwrap().unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut stopped = Stopped::new(&container, LIMIT);
        let sent: Vec<u8> = (0..12_000u32).map(|number| number as u8).collect();
        client.write_all(&sent).unwrap();
        let heard = stopped.hear(2);
        assert!(heard.iter().any(|arrival| arrival.contents.len() > 1500), "no segments are kept together");
        run("ip link set network-src nomaster");
        stopped.lock.release().unwrap();
        let mut injector = stopped.injector(LIMIT);
        heard.iter().for_each(|arrival| injector.inject(arrival));
        assert_eq!(injector.tally().dropped, 0);
        let mut got = vec![0; sent.len()];
        server.read_exact(&mut got).expect("what was injected");
        assert!(got == sent, "the data differ");
        run(&format!("ip link set network-src master {BRIDGE}"));
    }
}

#[test]
fn an_interface_with_another_address_takes_the_frames_of_the_original() {
    let site = Site::new();
    let container = site.connected();
    let (outside, inside) = warm(&container, BRIDGE_IP, IP);
    let mut stopped = Stopped::new(&container, LIMIT);
    outside.send_to(b"word", inside.local_addr().unwrap()).unwrap();
    let heard = stopped.hear(1);
    container.run("ip link set eth0 address 02:77:00:00:00:55");
    stopped.lock.release().unwrap();
    stopped.injector(LIMIT).inject(&heard[0]);
    assert_eq!(received(&inside), b"word");
}

#[test]
fn what_comes_before_the_tap_listens_is_not_heard() {
    let site = Site::new();
    let container = site.connected();
    let (outside, inside) = warm(&container, BRIDGE_IP, IP);
    let namespace = container.namespace();
    let mut tap = Tap::prepare(&namespace, &capture(&namespace).unwrap(), LIMIT).unwrap();
    outside.send_to(b"before", inside.local_addr().unwrap()).unwrap();
    assert_eq!(received(&inside), b"before");
    assert!(tap.take(ALL).is_empty());
    tap.listen().unwrap();
    outside.send_to(b"after", inside.local_addr().unwrap()).unwrap();
    // What the container sends is not what arrives.
    inside.send_to(b"answer", outside.local_addr().unwrap()).unwrap();
    assert_eq!(received(&inside), b"after");
    let heard: Vec<Arrival> = tap.take(ALL).into_iter().filter(Arrival::is_unicast).collect();
    assert_eq!(heard.len(), 1);
    assert!(heard[0].contents.ends_with(b"after"));
}

#[test]
fn nothing_is_taken_or_injected_beyond_the_limit() {
    let site = Site::new();
    let container = site.connected();
    let (outside, inside) = warm(&container, BRIDGE_IP, IP);
    let mut stopped = Stopped::new(&container, 4096);
    let mut few = stopped.injector(2048);
    for _ in 0..20 {
        outside.send_to(&[0; 1000], inside.local_addr().unwrap()).unwrap();
    }
    wait_for("frames that are too many", || {
        let heard = stopped.tap.take(ALL);
        heard.iter().for_each(|arrival| few.inject(arrival));
        few.tally().injected > 0 && stopped.tap.lost() > 0
    });
    assert_eq!(few.tally().injected, 1);
    let mut none = Tap::prepare(&stopped.namespace, &stopped.interfaces, 0).unwrap();
    none.listen().unwrap();
    outside.send_to(b"word", inside.local_addr().unwrap()).unwrap();
    assert!(none.take(ALL).is_empty());
}

#[test]
fn frames_for_others_and_for_interfaces_that_are_not_there_are_dropped() {
    let site = Site::new();
    let container = site.connected();
    let (outside, inside) = warm(&container, BRIDGE_IP, IP);
    let mut stopped = Stopped::new(&container, LIMIT);
    outside.send_to(b"word", inside.local_addr().unwrap()).unwrap();
    let heard = stopped.hear(1).remove(0);
    let mut injector = stopped.injector(LIMIT);
    let mut stranger = heard.contents.to_vec();
    stranger[5] ^= 1;
    injector.inject(&Arrival { contents: stranger.into(), ..heard.clone() });
    injector.inject(&Arrival { interface: 99, ..heard.clone() });
    injector.inject(&Arrival { offload: vec![0xff; 10].into(), ..heard });
    assert_eq!(injector.tally(), Tally { injected: 0, dropped: 3 });
}

/// The other end of the pair is in a namespace that is not the agent's, and an interface here has its number.
#[test]
fn an_end_in_another_namespace_is_not_mistaken_for_one_here() {
    let site = Site::new();
    let container = site.connected();
    let (outside, inside) = warm(&container, BRIDGE_IP, IP);
    let mut stopped = Stopped::new(&container, LIMIT);
    outside.send_to(b"word", inside.local_addr().unwrap()).unwrap();
    let heard = stopped.hear(1).remove(0);
    let index_of = |shown: String| shown.split(':').next().expect("an index").to_owned();
    let near = index_of(run("ip -o link show dev network-src"));
    let far = index_of(container.run("ip -o link show dev eth0"));
    let (elsewhere, twin) = (Container::new(), Container::new());
    run(&format!("ip link set network-src netns {}", elsewhere.pid()));
    let peer = format!("peer name eth0 index {far} netns {}", twin.pid());
    run(&format!("ip link add network-twin index {near} type veth {peer}"));
    let mut injector = stopped.injector(LIMIT);
    injector.inject(&heard);
    assert_eq!(injector.tally(), Tally { injected: 0, dropped: 1 });
}
