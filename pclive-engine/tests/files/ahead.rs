//! Files that are open before the stop, round by round.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::socket::{SockaddrIn, getsockname};
use pclive_engine::model::socket::SocketKind;
use pclive_engine::model::{Descriptor, FileId, FileKind, OpenFile, OpenFiles, Pid, Vpid};
use pclive_engine::restore::files::check_ahead;
use pclive_engine::sys::kcmp;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::program::Program;
use crate::round_trip::normal;
use crate::skeleton::Skeleton;

fn file(id: u32, path: &Path, flags: i32, offset: i64) -> OpenFile {
    let path = path.to_str().unwrap().as_bytes().to_vec();
    let kind = FileKind::Path { path, offset, file_type: libc::S_IFREG };
    OpenFile { id: FileId(id), flags, owner: None, kind }
}

fn descriptor(fd: i32, file: u32, close_on_exec: bool) -> Descriptor {
    Descriptor { fd, file: FileId(file), close_on_exec }
}

/// What two processes have open: for each number which file of a handful, and its close-on-exec flag. Those of one file
/// share its description, in both processes.
type Tables = [BTreeMap<i32, (u32, bool)>; 2];

fn tables() -> impl Strategy<Value = Tables> {
    let number = prop_oneof![0..12, Just(250), Just(600)];
    let table = || proptest::collection::btree_map(number.clone(), (0..6_u32, any::<bool>()), 0..12);
    [table(), table()]
}

/// The files of the tables as a source tells them: six paths, of which two are the same, and one with other flags.
fn told(tables: &Tables, directory: &Path, offset: i64) -> OpenFiles {
    let describe = |id: u32| {
        let path = directory.join(format!("file-{}", id % 5));
        file(id, &path, if id == 4 { libc::O_RDWR | libc::O_APPEND } else { libc::O_RDONLY }, offset)
    };
    let mut ids: Vec<u32> = tables.iter().flat_map(BTreeMap::values).map(|(id, _)| *id).collect();
    ids.sort_unstable();
    ids.dedup();
    let own = |table: &BTreeMap<i32, (u32, bool)>| {
        table.iter().map(|(fd, (id, close_on_exec))| descriptor(*fd, *id, *close_on_exec)).collect()
    };
    let descriptors = vec![(Vpid(1), own(&tables[0])), (Vpid(2), own(&tables[1]))];
    OpenFiles { files: ids.into_iter().map(describe).collect(), descriptors }
}

fn check_rounds(rounds: &[Tables], last: &Tables) {
    let directory = tempfile::tempdir().unwrap();
    (0..5).for_each(|n| std::fs::write(directory.path().join(format!("file-{n}")), b"0123456789").unwrap());
    let mut skeleton = Skeleton::start(2);
    for tables in rounds {
        let round = told(tables, directory.path(), 0);
        skeleton.follow(&round);
        let expected = normal_of(round);
        assert_eq!(normal(&skeleton.dump()), expected, "after the round {tables:?}");
    }
    let end = told(last, directory.path(), 7);
    skeleton.restore_parts(&end.files, &end.descriptors).unwrap();
    assert_eq!(normal(&skeleton.dump()), normal_of(end), "at the stop, after {rounds:?}");
}

fn normal_of(told: OpenFiles) -> (Vec<OpenFile>, Vec<(Vpid, Vec<Descriptor>)>) {
    let mut files = pclive_engine::capture::files::Files::default();
    (files.files, files.descriptors) = (told.files, told.descriptors);
    normal(&files)
}

#[test]
fn tables_are_what_the_newest_round_tells_and_at_last_what_the_stop_tells() {
    let mut runner = TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() });
    let cases = (proptest::collection::vec(tables(), 0..4), tables());
    runner
        .run(&cases, |(rounds, last)| {
            check_rounds(&rounds, &last);
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_file_is_taken_at_the_stop_unless_its_path_leads_to_another_one() {
    let directory = tempfile::tempdir().unwrap();
    let [log, old, stays]: [PathBuf; 3] = ["log", "old", "stays"].map(|name| directory.path().join(name));
    std::fs::write(&log, b"first").unwrap();
    std::fs::write(&stays, b"always").unwrap();
    let open = OpenFiles {
        files: vec![file(0, &log, libc::O_RDONLY, 0), file(1, &stays, libc::O_RDONLY, 0)],
        descriptors: vec![(Vpid(1), vec![descriptor(3, 0, false), descriptor(4, 1, false)])],
    };
    let mut skeleton = Skeleton::start(1);
    skeleton.follow(&open);
    let before = [3, 4].map(|fd| skeleton.fetch(1, fd));
    std::fs::rename(&log, &old).unwrap();
    std::fs::write(&log, b"second").unwrap();
    skeleton.restore_parts(&open.files, &open.descriptors).unwrap();
    let there = std::fs::metadata(format!("/proc/{}/fd/3", skeleton.pid_of(1))).unwrap();
    assert_eq!(there.ino(), std::fs::metadata(&log).unwrap().ino());
    let own = Pid(std::process::id() as i32);
    let is_same = |fd: i32, before: &OwnedFd| {
        kcmp::file((own, before.as_raw_fd()), (skeleton.pid_of(1), fd)).unwrap().is_eq()
    };
    assert!(!is_same(3, &before[0]) && is_same(4, &before[1]));
}

#[test]
fn a_program_that_is_open_for_writing_is_let_go_before_it_is_executed() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("true");
    std::fs::copy("/bin/true", &program).unwrap();
    let data = directory.path().join("data");
    std::fs::write(&data, b"x").unwrap();
    let open = OpenFiles {
        files: vec![file(0, &program, libc::O_RDWR, 0), file(1, &data, libc::O_RDWR, 0)],
        descriptors: vec![(Vpid(1), vec![descriptor(3, 0, false)]), (Vpid(2), vec![descriptor(3, 1, false)])],
    };
    let mut skeleton = Skeleton::start(2);
    skeleton.follow(&open);
    skeleton.release_programs();
    assert!(std::process::Command::new(&program).status().unwrap().success());
    let link = |vpid: i32| std::fs::read_link(format!("/proc/{}/fd/3", skeleton.pid_of(vpid))).ok();
    assert_eq!((link(1), link(2)), (None, Some(data)));
    skeleton.restore_parts(&open.files, &open.descriptors).unwrap();
    assert_eq!(normal(&skeleton.dump()), normal_of(open));
}

#[test]
fn what_cannot_be_opened_ahead_is_left_for_the_stop() {
    let directory = tempfile::tempdir().unwrap();
    let [there, late]: [PathBuf; 2] = ["there", "late"].map(|name| directory.path().join(name));
    std::fs::write(&there, b"x").unwrap();
    let open = OpenFiles {
        files: vec![file(0, &there, libc::O_RDONLY, 0), file(1, &late, libc::O_RDONLY, 0)],
        descriptors: vec![(Vpid(1), vec![descriptor(3, 0, false), descriptor(4, 1, false)])],
    };
    let mut skeleton = Skeleton::start(1);
    skeleton.follow(&open);
    let link = |skeleton: &Skeleton, fd: i32| {
        std::fs::read_link(format!("/proc/{}/fd/{fd}", skeleton.pid_of(1))).ok()
    };
    assert_eq!((link(&skeleton, 3), link(&skeleton, 4)), (Some(there.clone()), None));
    std::fs::write(&late, b"y").unwrap();
    skeleton.restore_parts(&open.files, &open.descriptors).unwrap();
    assert_eq!((link(&skeleton, 3), link(&skeleton, 4)), (Some(there), Some(late)));
}

#[test]
fn a_listener_is_made_ahead_and_taken_at_the_stop() {
    let listen =
        "s=socket.socket(); s.bind(('127.0.0.1',0)); s.listen(7); c=socket.socket(); ready(s.fileno())";
    let program = Program::start(listen);
    let (told, end) = (program.ahead(0), program.dump(0));
    let fd = program.numbers[0];
    assert!(told.descriptors[0].1.iter().any(|descriptor| descriptor.fd == fd));
    drop(program);
    let mut skeleton = Skeleton::start(1);
    skeleton.follow(&told);
    let before = skeleton.fetch(1, fd);
    std::net::TcpStream::connect(getsockname::<SockaddrIn>(before.as_raw_fd()).unwrap().to_string()).unwrap();
    // Whoever has connected is in its queue: a container's network is locked meanwhile.
    nix::sys::socket::accept(before.as_raw_fd()).unwrap();
    drop(skeleton.restore(&end).unwrap());
    let own = Pid(std::process::id() as i32);
    assert!(kcmp::file((own, before.as_raw_fd()), (skeleton.pid_of(1), fd)).unwrap().is_eq());
    assert_eq!(normal(&skeleton.dump()), normal(&end));
}

#[test]
fn a_listener_that_is_another_one_by_now_is_made_at_the_stop() {
    let listen = "s=socket.socket(); s.bind(('127.0.0.1',0)); s.listen(7); ready(s.fileno())";
    let program = Program::start(listen);
    let (told, mut end) = (program.ahead(0), program.dump(0));
    drop(program);
    for file in &mut end.files {
        let FileKind::Socket(socket) = &mut file.kind else { continue };
        let SocketKind::TcpListener { backlog, .. } = &mut socket.kind else { continue };
        *backlog = 9;
    }
    let mut skeleton = Skeleton::start(1);
    skeleton.follow(&told);
    drop(skeleton.restore(&end).unwrap());
    assert_eq!(normal(&skeleton.dump()), normal(&end));
}

#[test]
fn a_listener_of_a_process_that_nobody_knows_is_made_at_the_stop() {
    let program =
        Program::start("s=socket.socket(); s.bind(('127.0.0.1',0)); s.listen(7); ready(s.fileno())");
    let (told, end) = (program.ahead(0), program.dump(0));
    drop(program);
    let mut skeleton = Skeleton::start(1);
    skeleton.follow(&told);
    skeleton.forget_tables();
    drop(skeleton.restore(&end).unwrap());
    assert_eq!(normal(&skeleton.dump()), normal(&end));
}

#[test]
fn a_listener_does_not_keep_others_from_its_port() {
    let program = Program::start(
        "s,o=socket.socket(),socket.socket(); [x.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1) for x in (s,o)]\n\
         s.bind(('127.0.0.1',0)); o.bind(s.getsockname()); s.listen(7); ready(s.fileno(),o.fileno())",
    );
    let (told, end) = (program.ahead(0), program.dump(0));
    drop(program);
    let mut skeleton = Skeleton::start(1);
    skeleton.follow(&told);
    drop(skeleton.restore(&end).unwrap());
    assert_eq!(normal(&skeleton.dump()), normal(&end));
}

#[test]
fn what_no_path_leads_to_is_not_told_and_not_taken() {
    let program = Program::start(
        "r,w=os.pipe(); f=os.open('/etc/passwd',os.O_RDONLY); e=select.epoll(); n=os.open('/dev/null',os.O_RDWR)\n\
         m=os.memfd_create('m'); ready(f,n)",
    );
    let told = program.ahead(0);
    let numbers: Vec<i32> = told.descriptors[0].1.iter().map(|descriptor| descriptor.fd).collect();
    assert_eq!(numbers, program.numbers);
    let kind = FileKind::Event { count: 0, semaphore: false };
    let files = vec![OpenFile { id: FileId(0), flags: 0, owner: None, kind }];
    let error = check_ahead(&OpenFiles { files, descriptors: Vec::new() }).unwrap_err();
    assert!(error.to_string().contains("which is nothing for that"), "{error}");
}
