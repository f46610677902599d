//! The small state.

use pclive_engine::model::file::EpollWatch;
use pclive_engine::model::signal::{PendingSignal, SignalAction};
use pclive_engine::model::socket::{Buffers, Socket, SocketKind};
use pclive_engine::model::state::SeccompFilter;
use pclive_engine::model::timer::{IntervalTimer, PosixTimer};
use pclive_engine::model::{Descriptor, FileId, FileKind, FinalState, OpenFile, Vpid};

use super::{in_state, suite};
use crate::pair::Pair;
use crate::proxy::Attack;

type Edit = fn(&mut FinalState);

const CAP_SYS_ADMIN: u64 = 1 << 21;
const NUMBER: i32 = 500;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;

/// Another open file, as descriptor 500 of init.
fn open(state: &mut FinalState, kind: FileKind) {
    let id = FileId(77_777);
    state.files.push(OpenFile { id, flags: 0, owner: None, kind });
    state.processes[0].descriptors.push(Descriptor { fd: NUMBER, file: id, close_on_exec: false });
}

fn path(path: &str, file_type: u32, offset: i64) -> FileKind {
    FileKind::Path { path: path.into(), offset, file_type }
}

fn socket(kind: SocketKind) -> FileKind {
    let buffers = Buffers::default();
    FileKind::Socket(Box::new(Socket {
        uid: 0,
        gid: 0,
        reuse_address: false,
        buffers,
        options: Vec::new(),
        kind,
    }))
}

fn timer(id: i32) -> PosixTimer {
    let time = IntervalTimer::default();
    PosixTimer { id, clock: 1, notify: 1, signal: 0, value: 0, thread: 0, time, overrun: 0 }
}

const PRIVILEGES: [(&str, &[&str], Edit); 8] = [
    ("capabilities that the container lacks", &["capabilities 0x200000"], |state| {
        state.processes[0].threads[0].credentials.capabilities.permitted |= CAP_SYS_ADMIN;
    }),
    ("a wider bounding set", &["bounding capabilities"], |state| {
        state.processes[0].threads[0].credentials.capabilities.bounding |= CAP_SYS_ADMIN;
    }),
    ("ambient capabilities", &["capability 21", "credentials"], |state| {
        state.processes[0].threads[0].credentials.capabilities.ambient |= CAP_SYS_ADMIN;
    }),
    ("new privileges after all", &["no_new_privs"], |state| {
        state.processes[0].threads[0].credentials.no_new_privs = false;
    }),
    ("other securebits", &["securebits"], |state| {
        state.processes[0].threads[0].credentials.securebits = 0xff;
    }),
    ("another user without the right to", &["user ids"], |state| {
        state.processes[0].threads[0].credentials.uids = [1234; 4];
    }),
    ("another group without the right to", &["group"], |state| {
        state.processes[0].threads[0].credentials.groups = vec![4];
    }),
    ("more groups than there can be", &["supplementary groups"], |state| {
        state.processes[0].threads[0].credentials.groups = vec![4; 1 << 17];
    }),
];

const FILES: [(&str, &[&str], Edit); 20] = [
    ("the machine's memory", &["another device"], |state| {
        open(state, path("/data/mem", CHARACTER_DEVICE, 0))
    }),
    ("the machine's memory as a file", &["character device"], |state| {
        open(state, path("/data/mem", REGULAR, 0))
    }),
    ("a link that leads out", &["symbolic link"], |state| open(state, path("/data/escape", REGULAR, 0))),
    ("a directory that leads out", &["cannot find"], |state| {
        open(state, path("/data/top/etc/passwd", REGULAR, 0));
    }),
    ("a file above the root", &["cannot find"], |state| {
        open(state, path("/../../../../etc/passwd", REGULAR, 0))
    }),
    ("another process's root", &["cannot find"], |state| open(state, path("/proc/1/root/etc", REGULAR, 0))),
    ("a relative path", &["not absolute"], |state| open(state, path("etc", REGULAR, 0))),
    ("a negative offset", &["negative offset"], |state| open(state, path("/data/beat", REGULAR, -1))),
    ("an offset beyond all", &["cannot set the offset"], |state| {
        open(state, path("/data/beat", REGULAR, i64::MAX))
    }),
    ("a full pipe of gigabytes", &["pipe of"], |state| {
        let contents = Vec::new();
        open(state, FileKind::Pipe { pipe: 9, path: None, capacity: u32::MAX, owner: (0, 0), contents });
    }),
    ("more in a pipe than fits", &["than fits"], |state| {
        let contents = vec![0; 5000];
        open(state, FileKind::Pipe { pipe: 9, path: None, capacity: 4096, owner: (0, 0), contents });
    }),
    ("a full counter", &["counter"], |state| {
        open(state, FileKind::Event { count: u64::MAX, semaphore: false })
    }),
    ("a timer of no clock", &["clock 99"], |state| {
        let (clock, left_ns) = (99, 1);
        open(state, FileKind::Timer { clock, settime_flags: 0, left_ns, interval_ns: 0, ticks: 0 });
    }),
    ("a descriptor beyond all", &["beyond every limit"], |state| {
        state.processes[0].descriptors[0].fd = i32::MAX;
    }),
    ("a descriptor twice", &["twice"], |state| {
        let descriptor = state.processes[0].descriptors[0];
        state.processes[0].descriptors.push(descriptor);
    }),
    ("a descriptor of nothing", &["no open file"], |state| {
        state.processes[0].descriptors[0].file = FileId(4242)
    }),
    ("a watch on what is not there", &["lacks"], |state| {
        let watch = EpollWatch { process: Vpid(1), fd: 4000, file: FileId(1), events: 1, data: 0 };
        open(state, FileKind::Epoll { watches: vec![watch] });
    }),
    ("a file in memory that is not there", &["object", "memory"], |state| {
        open(state, FileKind::Memory { object: 4242, offset: 0 });
    }),
    ("a slave without a master", &["slave"], |state| {
        open(state, FileKind::Slave { terminal: 3, path: b"/dev/pts/3".to_vec(), exclusive: false });
    }),
    ("a standard stream of another number", &["standard stream 200"], |state| {
        open(state, FileKind::Stdio(200))
    }),
];

const SOCKETS: [(&str, &[&str], Edit); 5] = [
    ("a socket of no family", &["address family"], |state| {
        open(state, socket(SocketKind::TcpClosed { family: 99, bound: None, dead: false }));
    }),
    ("addresses of different families", &["different families"], |state| {
        let bound = Some("127.0.0.1:80".parse().unwrap());
        open(state, socket(SocketKind::TcpClosed { family: 10, bound, dead: false }));
    }),
    ("a listener without a port", &["without a port"], |state| {
        open(state, socket(SocketKind::TcpListener { local: "0.0.0.0:0".parse().unwrap(), backlog: 1 }));
    }),
    ("a listener where there is one", &["Address already in use"], |state| {
        open(state, socket(SocketKind::TcpListener { local: "0.0.0.0:7000".parse().unwrap(), backlog: 1 }));
    }),
    ("half of a pair", &["peer is not among"], |state| {
        let (queue, peer) = (Vec::new(), 4242);
        let pair = SocketKind::UnixPair { inode: 1, peer, socket_type: 1, queue, shutdown: 0, reset: false };
        open(state, socket(pair));
    }),
];

const REST: [(&str, &[&str], Edit); 17] = [
    ("no process", &["another number of processes"], |state| state.processes.clear()),
    ("a thread less", &["other threads"], |state| drop(state.processes[0].threads.pop())),
    ("a last id beyond all", &["cannot choose", "id"], |state| state.last_vpid = i32::MAX),
    ("limits that are none", &["resource limits"], |state| state.processes[0].rlimits.truncate(3)),
    ("a soft limit above the hard one", &["soft limit"], |state| {
        (state.processes[0].rlimits[7].soft, state.processes[0].rlimits[7].hard) = (10, 5);
    }),
    ("a signal of no number", &["signal"], |state| {
        let action = SignalAction { signal: 200, handler: 1, flags: 0, restorer: 0, mask: 0 };
        state.processes[0].actions.push(action);
    }),
    ("a pending signal that is none", &["signal"], |state| {
        state.processes[0].pending.push(PendingSignal { siginfo: vec![0xff; 5] });
    }),
    ("timers in no order", &["ascending"], |state| {
        state.processes[0].posix_timers = vec![timer(5), timer(5)]
    }),
    ("a timer below zero", &["ascending"], |state| state.processes[0].posix_timers = vec![timer(-5)]),
    ("registers that are none", &["register"], |state| state.processes[0].threads[0].registers.truncate(5)),
    ("extended registers that are none", &["register", "xstate", "XSAVE"], |state| {
        state.processes[0].threads[0].xstate.truncate(5);
    }),
    ("a name that is too long", &["a name of"], |state| state.processes[0].threads[0].comm = vec![b'x'; 99]),
    ("a scheduling policy that is none", &["scheduling policy 99"], |state| {
        state.processes[0].threads[0].scheduling.policy = 99;
    }),
    ("a filter that is none", &["filter", "seccomp"], |state| {
        state.processes[0].seccomp_filters = vec![SeccompFilter { flags: 0, program: vec![0xff; 7] }];
        state.processes[0].threads[0].seccomp = vec![0];
    }),
    ("a filter that is not there", &["filter", "seccomp"], |state| {
        state.processes[0].threads[0].seccomp = vec![4242];
    }),
    ("a directory that is not there", &["current directory"], |state| {
        state.processes[0].cwd = b"/../../no/such/directory".to_vec();
    }),
    ("a heap in the kernel", &["memory map", "cannot"], |state| state.processes[0].mm.brk = u64::MAX),
];

async fn all(pair: &mut Pair, attacks: &[(&str, &[&str], Edit)]) {
    for (name, words, edit) in attacks {
        pair.refuses(name, words, in_state(*edit)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileges_beyond_the_created_containers_are_refused() {
    let Some(mut pair) = suite("privileges").await else { return };
    all(&mut pair, &PRIVILEGES).await;
    pair.finish(Attack::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_and_sockets_that_cannot_be_are_refused() {
    let Some(mut pair) = suite("files").await else { return };
    all(&mut pair, &FILES).await;
    all(&mut pair, &SOCKETS).await;
    pair.finish(Attack::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn small_state_that_cannot_be_is_refused() {
    let Some(mut pair) = suite("rest").await else { return };
    all(&mut pair, &REST).await;
    pair.finish(Attack::default()).await;
}
