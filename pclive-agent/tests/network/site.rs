//! A host with a bridge, containers on it, and ways to see what passes.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use pclive_agent::network::Namespace;

pub(crate) const BRIDGE: &str = "network-br";
pub(crate) const BRIDGE_IP: &str = "10.77.0.1";
pub(crate) const BRIDGE_IP6: &str = "fd77::1";
pub(crate) const IP: &str = "10.77.0.2";
pub(crate) const IP6: &str = "fd77::2";
pub(crate) const MAC: &str = "02:77:00:00:00:02";

/// Longer than anything here takes; reached only by a failure.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long an answer that must not come is waited for.
const SILENCE: Duration = Duration::from_millis(300);

/// The host: the calling thread's namespace, new and its own.
pub(crate) struct Site;

impl Site {
    pub(crate) fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("cannot make a network namespace: these tests need root");
        run("ip link set lo up");
        run(&format!("ip link add {BRIDGE} type bridge"));
        run(&format!("ip addr add {BRIDGE_IP}/24 dev {BRIDGE}"));
        run(&format!("ip addr add {BRIDGE_IP6}/64 dev {BRIDGE} nodad"));
        run(&format!("ip link set {BRIDGE} up"));
        Self
    }

    /// A container as a platform connects it: `eth0` with fixed addresses, MAC and routes, on the bridge.
    pub(crate) fn connected(&self) -> Container {
        let container = Container::new();
        let pid = container.pid();
        run(&format!("ip link add network-src type veth peer name eth0 address {MAC} netns {pid}"));
        run(&format!("ip link set network-src master {BRIDGE} up"));
        container.run("ip link set lo up");
        container.run("ip addr add 10.9.9.9/32 dev lo");
        container.run("ip link set eth0 mtu 1400");
        container.run(&format!("ip addr add {IP}/24 broadcast 10.77.0.255 dev eth0"));
        container.run(&format!("ip addr add {IP6}/64 dev eth0 nodad"));
        container.run("ip link set eth0 addrgenmode none");
        container.run("ip link set eth0 up");
        container.run("ip addr add fe80::77/64 dev eth0 nodad");
        container.run(&format!("ip route add default via {BRIDGE_IP} mtu 1300"));
        container.run(&format!("ip route add 192.0.2.0/24 via {BRIDGE_IP} metric 7 src {IP}"));
        container.run(&format!("ip -6 route add default via {BRIDGE_IP6}"));
        container
    }
}

/// A process with a network namespace of its own. Ends when this is dropped, or with the test process.
pub(crate) struct Container {
    child: Child,
    _keeps_it: ChildStdin,
}

impl Container {
    pub(crate) fn new() -> Self {
        Self::waiting(Command::new("unshare").arg("--net"))
    }

    /// Another process in the same namespace.
    pub(crate) fn joined(&self) -> Self {
        Self::waiting(Command::new("nsenter").arg(format!("--net=/proc/{}/ns/net", self.pid())))
    }

    fn waiting(command: &mut Command) -> Self {
        let mut child = command
            .args(["sh", "-c", "echo ready; exec cat >/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare runs");
        let keeps_it = child.stdin.take().expect("piped");
        let mut ready = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut ready).expect("a line");
        assert_eq!(ready, "ready\n");
        Self { child, _keeps_it: keeps_it }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub(crate) fn namespace(&self) -> Namespace {
        Namespace::of(self.pid()).expect("the process lives")
    }

    pub(crate) fn run(&self, command: &str) -> String {
        run(&format!("nsenter --net=/proc/{}/ns/net {command}", self.pid()))
    }

    /// A bound UDP socket inside.
    pub(crate) fn udp(&self, ip: &str) -> UdpSocket {
        self.namespace().run(|| bound(ip)).expect("enters")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A UDP socket in the host's namespace.
pub(crate) fn host_udp(ip: &str) -> UdpSocket {
    bound(ip)
}

fn bound(ip: &str) -> UdpSocket {
    let ip: IpAddr = ip.parse().expect("an address");
    UdpSocket::bind(SocketAddr::new(ip, 0)).expect("binds")
}

/// Whether a datagram from one socket gets to the other.
pub(crate) fn passes(from: &UdpSocket, to: &UdpSocket) -> bool {
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let word = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_ne_bytes();
    // A send that the lock's egress drops fails with EPERM or not at all.
    let _ = from.send_to(&word, to.local_addr().expect("bound"));
    let end = Instant::now() + SILENCE;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        to.set_read_timeout(Some(left)).expect("a timeout");
        let mut buffer = [0; 8];
        if to.recv(&mut buffer).is_ok() && buffer == word {
            return true;
        }
    }
    false
}

/// Waits until a datagram gets through.
pub(crate) fn wait_until_passes(from: &UdpSocket, to: &UdpSocket) {
    wait_for("a datagram to pass", || passes(from, to));
}

pub(crate) fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !happened() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

/// Whether somebody on the bridge answers ARP for the address.
pub(crate) fn answers_arp(ip: &str) -> bool {
    let mut command = Command::new("arping");
    command.args(["-f", "-c", "2", "-w", "1", "-I", BRIDGE, ip]);
    command.output().expect("arping runs").status.success()
}

/// The bridge's own MAC.
pub(crate) fn bridge_mac() -> String {
    let link = run(&format!("ip -o link show dev {BRIDGE}"));
    let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether");
    words.nth(1).expect("an address").to_owned()
}

/// Runs a command in the host's namespace and gives its output.
pub(crate) fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().expect("a program")).args(words).output().expect("it runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let _ = std::io::stderr().flush();
        panic!("{command}: {errors}");
    }
    String::from_utf8_lossy(&output.stdout).into_owned()
}
