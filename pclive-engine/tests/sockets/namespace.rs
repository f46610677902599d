//! Network namespaces for a test: each is held by a process that dies with the test, and vanishes with it, also
//! after a panic.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sched::{CloneFlags, setns};
use pclive_engine::capture::sockets::{
    CapturedSocket, Mode, RepairGuard, SocketRefusal, UnixDiag, capture_socket,
};
use pclive_engine::model::socket::Socket;
use pclive_engine::model::{FileId, Pid};
use pclive_engine::restore::sockets::{Builder, BuiltSockets};

/// One test at a time: a process that another test starts would hold this test's sockets open until its exec.
static TURN: Mutex<()> = Mutex::new(());

/// A network (and mount) namespace.
pub(crate) struct Namespace {
    holder: Child,
    _turn: Option<MutexGuard<'static, ()>>,
}

impl Namespace {
    /// A fresh one with the loopback interface up.
    pub(crate) fn new() -> Self {
        Self::start(Some(TURN.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn start(turn: Option<MutexGuard<'static, ()>>) -> Self {
        let script = "ip link set lo up && echo ready && exec sleep 600";
        let mut holder = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net", "--mount", "sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("setpriv and unshare are installed");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "a network namespace needs root");
        Self { holder, _turn: turn }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid(i32::try_from(self.holder.id()).unwrap())
    }

    /// Runs `work` on a thread inside the namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let netns = std::fs::File::open(format!("/proc/{}/ns/net", self.pid())).unwrap();
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(&netns, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a program inside the namespace.
    pub(crate) fn command(&self, line: &str) {
        let target = self.pid().to_string();
        let status = Command::new("nsenter").args(["-t", &target, "-n", "sh", "-ec", line]).status().unwrap();
        assert!(status.success(), "{line}");
    }

    /// A counter of /proc/net/snmp or netstat.
    pub(crate) fn counter(&self, group: &str, name: &str) -> u64 {
        let read = |file| std::fs::read_to_string(format!("/proc/{}/net/{file}", self.pid())).unwrap();
        let text = read("snmp") + &read("netstat");
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(group)).collect();
        let place = lines[0].split_whitespace().position(|word| word == name).expect(name);
        lines[1].split_whitespace().nth(place).unwrap().parse().unwrap()
    }

    pub(crate) fn diag(&self) -> UnixDiag {
        UnixDiag::take(self.pid()).unwrap()
    }

    pub(crate) fn capture(&self, fd: impl AsFd, mode: Mode) -> Result<CapturedSocket, SocketRefusal> {
        capture_socket(fd.as_fd().try_clone_to_owned().unwrap(), &self.diag(), mode)
    }

    /// Dumps a socket and ends the original without a packet.
    pub(crate) fn take(&self, fd: OwnedFd) -> Socket {
        let captured = self.capture(&fd, Mode::Dump).unwrap();
        if let Some(guard) = captured.guard {
            guard.silence().unwrap();
            drop(fd);
            guard.leave();
        }
        captured.socket
    }

    /// Builds sockets; file ids are their places in the list. Status flags: blocking.
    pub(crate) fn build(&self, sockets: &[Socket]) -> BuiltSockets {
        self.try_build(sockets).unwrap()
    }

    pub(crate) fn try_build(
        &self,
        sockets: &[Socket],
    ) -> Result<BuiltSockets, pclive_engine::restore::sockets::SocketsError> {
        let list: Vec<_> = sockets.iter().zip(0..).map(|(socket, id)| (FileId(id), socket, 0)).collect();
        Builder::new(self.pid())?.build(&list)
    }

    /// Takes a socket, builds it again and brings it to life.
    pub(crate) fn again(&self, fd: OwnedFd) -> OwnedFd {
        let socket = self.take(fd);
        self.revive(&socket)
    }

    /// Builds one socket and brings it to life.
    pub(crate) fn revive(&self, socket: &Socket) -> OwnedFd {
        let mut built = self.build(std::slice::from_ref(socket));
        let fd = built.fds.remove(&FileId(0)).unwrap();
        built.go().unwrap();
        fd
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Two hosts and a wire.
pub(crate) struct Network {
    pub(crate) server: Namespace,
    pub(crate) client: Namespace,
}

pub(crate) const SERVER4: &str = "10.77.0.1:7000";
pub(crate) const SERVER6: &str = "[fd77::1]:7000";

impl Network {
    pub(crate) fn new() -> Self {
        let (server, client) = (Namespace::new(), Namespace::start(None));
        let (a, b) = (server.pid(), client.pid());
        let line = format!("ip link add sockets0 netns {a} type veth peer name sockets0 netns {b}");
        assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success());
        for (host, number) in [(&server, 1), (&client, 2)] {
            host.command(&format!(
                "ip addr add 10.77.0.{number}/24 dev sockets0
                 ip addr add fd77::{number}/64 dev sockets0 nodad
                 ip link set sockets0 up"
            ));
        }
        Self { server, client }
    }

    /// A connection: (server's end, client's end, listener).
    pub(crate) fn connect(&self, address: &str) -> (TcpStream, TcpStream, TcpListener) {
        let address: SocketAddr = address.parse().unwrap();
        let listener = self.server.run(|| TcpListener::bind(address).unwrap());
        let (server, client) = self.connect_to(&listener);
        (server, client, listener)
    }

    /// Another connection to a listener: (server's end, client's end).
    pub(crate) fn connect_to(&self, listener: &TcpListener) -> (TcpStream, TcpStream) {
        let address = listener.local_addr().unwrap();
        let client = self.client.run(|| TcpStream::connect(address).unwrap());
        (listener.accept().unwrap().0, client)
    }

    /// Everything that arrives at the client is dropped, until the answer is called.
    pub(crate) fn deafen_client(&self) -> impl FnOnce() + '_ {
        Self::cut(&self.client, &["ingress"])
    }

    /// Everything that the client sends is dropped, until the answer is called.
    pub(crate) fn mute_client(&self) -> impl FnOnce() + '_ {
        Self::cut(&self.client, &["egress"])
    }

    /// Locks the server's network as the agent does: what arrives or leaves is dropped, until the answer is called.
    pub(crate) fn lock_server(&self) -> impl FnOnce() + '_ {
        Self::cut(&self.server, &["ingress", "egress"])
    }

    fn cut<'a>(host: &'a Namespace, hooks: &[&str]) -> impl FnOnce() + use<'a> {
        let chains = hooks.iter().map(|hook| {
            format!(
                "add chain netdev sockets {hook} {{ type filter hook {hook} device sockets0 priority 0; }}
                 add rule netdev sockets {hook} drop\n"
            )
        });
        host.command(&format!("nft 'add table netdev sockets\n{}'", chains.collect::<String>()));
        || host.command("nft 'delete table netdev sockets'")
    }

    pub(crate) fn assert_no_reset(&self) {
        for host in [&self.server, &self.client] {
            assert_eq!(host.counter("Tcp:", "OutRsts"), 0, "a RST was sent");
        }
    }
}

/// The last close of the connection sends nothing.
pub(crate) fn silence(guard: RepairGuard) {
    guard.silence().unwrap();
    guard.leave();
}
