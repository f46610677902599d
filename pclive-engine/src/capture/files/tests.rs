//! Captures the descriptors of real programs.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio as Redirect};

use std::os::fd::OwnedFd;

use super::*;
use crate::model::file::Owner;
use crate::model::{FileKind, Place};

/// A Python program that has printed "ready" and a list of numbers, and waits until it is dropped.
struct Program {
    child: Child,
    output: BufReader<ChildStdout>,
    numbers: Vec<i32>,
}

impl Program {
    fn start(script: &str) -> Self {
        Self::run(Command::new("python3").args(["-c", &Self::whole(script)]))
    }

    fn whole(script: &str) -> String {
        format!(
            "import os,sys,fcntl,select,signal,socket,struct,ctypes,time\n\
             libc=ctypes.CDLL(None); os.closerange(3,4096); parent=os.getpid()\n\
             def stay(): libc.prctl(1,9); os.getppid()==parent or os._exit(0); signal.pause()\n\
             def ready(*numbers): print('ready',*numbers,flush=True); sys.stdin.read()\n\
             {script}\n"
        )
    }

    /// A command without the descriptors that whoever started the tests has left open.
    fn clean(program: &str) -> Command {
        let mut command = Command::new("python3");
        let script = "import os,sys; os.closerange(3,4096); os.execvp(sys.argv[1],sys.argv[1:])";
        command.args(["-c", script, program]);
        command
    }

    fn run(command: &mut Command) -> Self {
        let mut child = command.stdin(Redirect::piped()).stdout(Redirect::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let numbers = line.strip_prefix("ready").unwrap_or_else(|| panic!("the program said {line:?}"));
        let numbers = numbers.split_whitespace().map(|number| number.parse().unwrap()).collect();
        Self { child, output, numbers }
    }

    fn pid(&self) -> Pid {
        Pid(self.child.id() as i32)
    }

    /// The program and the children whose ids it printed as its first `children` numbers.
    fn collect(&self, children: usize, mode: Mode) -> Files {
        let mut processes = vec![(self.pid(), Vpid(1))];
        for (index, pid) in self.numbers[..children].iter().enumerate() {
            processes.push((Pid(*pid), Vpid(2 + index as i32)));
        }
        Table::open(self.pid()).unwrap().collect(&processes, mode).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Files {
    fn file(&self, process: usize, fd: i32) -> &OpenFile {
        let id = self.descriptor(process, fd).file;
        self.files.iter().find(|file| file.id == id).unwrap_or_else(|| panic!("no file for {fd}: {self:?}"))
    }

    fn descriptor(&self, process: usize, fd: i32) -> Descriptor {
        *self.descriptors[process].1.iter().find(|descriptor| descriptor.fd == fd).unwrap()
    }

    fn refused(&self, fd: i32) -> &str {
        let blocker = self.blockers.iter().find(|blocker| blocker.place == Place::Descriptor(fd));
        &blocker.unwrap_or_else(|| panic!("{fd} is not refused: {:?}", self.blockers)).what
    }
}

#[test]
fn duplicates_and_inherited_descriptors_share_one_description() {
    let program = Program::start(
        "f=os.open('/etc/passwd',os.O_RDONLY); os.lseek(f,7,0); d=os.dup(f); os.set_inheritable(d,True)\n\
         g=os.open('/etc/passwd',os.O_RDONLY); os.lseek(g,7,0)\n\
         p=os.fork()\n\
         if p==0: stay()\n\
         ready(p,f,d,g)",
    );
    let files = program.collect(1, Mode::Dump);
    let [_, f, d, g] = program.numbers[..] else { panic!() };
    assert!(files.blockers.is_empty(), "{:?}", files.blockers);
    assert_eq!(files.descriptor(0, f).file, files.descriptor(0, d).file);
    assert_eq!(files.descriptor(0, f).file, files.descriptor(1, f).file);
    assert_ne!(files.descriptor(0, f).file, files.descriptor(0, g).file);
    assert!(files.descriptor(0, f).close_on_exec && !files.descriptor(0, d).close_on_exec);
    let expected = FileKind::Path { path: b"/etc/passwd".to_vec(), offset: 7, file_type: libc::S_IFREG };
    assert_eq!(files.file(0, f).kind, expected);
}

#[test]
fn stdio_that_leads_to_the_parent_is_stdio_wherever_it_is() {
    let program = Program::start("d=os.dup(1); o=os.open('/dev/stdout',os.O_WRONLY|os.O_APPEND); ready(d,o)");
    let files = program.collect(0, Mode::Dump);
    let [d, o] = program.numbers[..] else { panic!() };
    assert!(files.blockers.is_empty(), "{:?}", files.blockers);
    for (fd, stream) in [(0, 0), (1, 1), (d, 1), (o, 1)] {
        assert_eq!(files.file(0, fd).kind, FileKind::Stdio(stream), "descriptor {fd}");
    }
    assert_ne!(files.descriptor(0, o).file, files.descriptor(0, 1).file);
}

#[test]
fn pipe_contents_are_copied_and_stay_in_the_pipe() {
    let program = Program::start(
        "r,w=os.pipe(); os.set_blocking(r,False); fcntl.fcntl(r,1031,1<<18); os.write(w,b'x'*200000)\n\
         e,x=os.pipe(); os.write(x,b'left'); os.close(x)\n\
         n,m=os.pipe(); os.close(n)\n\
         ready(r,w,e,m)",
    );
    let [r, w, e, m] = program.numbers[..] else { panic!() };
    for _ in 0..2 {
        let files = program.collect(0, Mode::Dump);
        assert!(files.blockers.is_empty(), "{:?}", files.blockers);
        let FileKind::Pipe { pipe, path: None, capacity, contents, .. } = &files.file(0, r).kind else {
            panic!("{:?}", files.file(0, r))
        };
        assert_eq!((*capacity, contents.as_slice()), (1 << 18, vec![b'x'; 200_000].as_slice()));
        assert_eq!(files.file(0, r).flags & libc::O_NONBLOCK, libc::O_NONBLOCK);
        let FileKind::Pipe { pipe: other, contents, .. } = &files.file(0, w).kind else { panic!() };
        assert_eq!((other, contents.len()), (pipe, 0));
        let FileKind::Pipe { contents, .. } = &files.file(0, e).kind else { panic!() };
        assert_eq!(contents, b"left");
        assert!(matches!(files.file(0, m).kind, FileKind::Pipe { .. }));
    }
    let FileKind::Pipe { contents, .. } = &program.collect(0, Mode::Check).file(0, r).kind.clone() else {
        panic!()
    };
    assert!(contents.is_empty(), "a check reads no contents");
}

#[test]
fn pipe_to_a_process_outside_is_refused() {
    let program = Program::start(
        "r,w=os.pipe(); p=os.fork()\n\
         if p==0: os.close(r); stay()\n\
         os.close(w); ready(r)",
    );
    let what = program.collect(0, Mode::Check).refused(program.numbers[0]).to_owned();
    assert!(what.contains("write end is outside"), "{what}");
}

#[test]
fn fifo_is_carried_by_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    let program = Program::start(&format!(
        "p={path:?}; os.mkfifo(p); r=os.open(p,os.O_RDONLY|os.O_NONBLOCK); w=os.open(p,os.O_WRONLY)\n\
         os.write(w,b'queued'); ready(r,w)"
    ));
    let files = program.collect(0, Mode::Dump);
    assert!(files.blockers.is_empty(), "{:?}", files.blockers);
    let [r, w] = program.numbers[..] else { panic!() };
    let FileKind::Pipe { pipe, path: Some(found), contents, .. } = &files.file(0, r).kind else { panic!() };
    assert_eq!((found.as_slice(), contents.as_slice()), (path.to_str().unwrap().as_bytes(), &b"queued"[..]));
    let FileKind::Pipe { pipe: other, path: Some(_), .. } = &files.file(0, w).kind else { panic!() };
    assert_eq!(pipe, other);
}

#[test]
fn event_timer_and_signal_descriptors() {
    let program = Program::start(
        "e=libc.eventfd(5,1|2048)\n\
         t=libc.timerfd_create(1,0); libc.timerfd_settime(t,0,struct.pack('4Q',0,1000000,0,1000000),None)\n\
         o=libc.timerfd_create(0,0)\n\
         libc.timerfd_settime(o,1,struct.pack('4Q',0,0,int(time.time())+1000,0),None)\n\
         s=libc.signalfd(-1,struct.pack('16Q',1<<9,*([0]*15)),0)\n\
         select.select([t],[],[]); ready(e,t,o,s)",
    );
    let files = program.collect(0, Mode::Dump);
    assert!(files.blockers.is_empty(), "{:?}", files.blockers);
    let [e, t, o, s] = program.numbers[..] else { panic!() };
    assert_eq!(files.file(0, e).kind, FileKind::Event { count: 5, semaphore: true });
    assert_eq!(files.file(0, e).flags & libc::O_NONBLOCK, libc::O_NONBLOCK);
    assert_eq!(files.file(0, s).kind, FileKind::Signal { mask: 1 << 9 });
    let FileKind::Timer { clock: 1, left_ns, interval_ns: 1_000_000, ticks, .. } = files.file(0, t).kind
    else {
        panic!("{:?}", files.file(0, t))
    };
    assert!(left_ns > 0 && left_ns <= 1_000_000 && ticks > 0, "{left_ns} {ticks}");
    let FileKind::Timer { clock: 0, settime_flags: 1, left_ns, .. } = files.file(0, o).kind else { panic!() };
    assert!((990_000_000_000..=1_000_000_000_000).contains(&left_ns), "{left_ns}");
}

#[test]
fn epoll_watches_name_a_descriptor_that_still_is_the_file() {
    let program = Program::start(
        "r,w=os.pipe(); e=libc.eventfd(0,0); moved=os.dup(e)\n\
         p=select.epoll(); p.register(r,select.EPOLLIN|select.EPOLLET); p.register(e,select.EPOLLIN)\n\
         os.close(e); n=os.open('/dev/null',os.O_RDONLY); assert n==e\n\
         q=select.epoll(); q.register(p.fileno(),select.EPOLLIN)\n\
         ready(r,moved,p.fileno(),q.fileno())",
    );
    let files = program.collect(0, Mode::Dump);
    assert!(files.blockers.is_empty(), "{:?}", files.blockers);
    let [r, moved, p, q] = program.numbers[..] else { panic!() };
    let FileKind::Epoll { watches } = &files.file(0, p).kind else { panic!() };
    let mut seen: Vec<_> = watches.iter().map(|watch| (watch.fd, watch.file)).collect();
    seen.sort_unstable();
    assert_eq!(seen, [(r, files.descriptor(0, r).file), (moved, files.descriptor(0, moved).file)]);
    let edge = watches.iter().find(|watch| watch.fd == r).unwrap();
    assert_ne!(edge.events & libc::EPOLLET as u32, 0);
    assert_eq!(edge.data as u32, r as u32);
    let FileKind::Epoll { watches } = &files.file(0, q).kind else { panic!() };
    assert_eq!((watches.len(), watches[0].fd, watches[0].process), (1, p, Vpid(1)));
}

#[test]
fn epoll_watch_on_a_file_that_only_another_process_has_is_refused() {
    let program = Program::start(
        "e=libc.eventfd(0,0); p=select.epoll(); p.register(e,select.EPOLLIN); c=os.fork()\n\
         if c==0: p.close(); stay()\n\
         os.close(e); ready(c,p.fileno())",
    );
    // The child runs as soon as it is forked; its own epoll descriptor may not be closed yet.
    let files = program.collect(0, Mode::Check);
    assert!(files.refused(program.numbers[1]).contains("no process with the instance"));
}

#[test]
fn owner_and_signal_of_asynchronous_files() {
    let program = Program::start(
        "signal.signal(signal.SIGIO,signal.SIG_IGN); r,w=os.pipe(); fcntl.fcntl(r,fcntl.F_SETOWN,os.getpid())\n\
         fcntl.fcntl(r,10,34); fcntl.fcntl(r,fcntl.F_SETFL,fcntl.fcntl(r,fcntl.F_GETFL)|os.O_ASYNC); ready(r,w)",
    );
    let files = program.collect(0, Mode::Dump);
    let file = files.file(0, program.numbers[0]);
    assert_eq!(file.owner, Some(Owner { kind: 1, id: Vpid(1), signal: 34 }));
    assert_ne!(file.flags & libc::O_ASYNC, 0);
    assert_eq!(files.file(0, program.numbers[1]).owner, None);
}

#[test]
fn everything_unsupported_is_refused_at_once() {
    let program = Program::start(
        "b=libc.inotify_init(); c=os.pidfd_open(os.getpid())\n\
         open('/tmp/pclive-files-%d'%os.getpid(),'w').close(); p='/tmp/pclive-files-%d'%os.getpid()\n\
         d=os.open(p,os.O_RDWR); os.unlink(p)\n\
         e=os.open('/tmp',os.O_TMPFILE|os.O_RDWR); m,s=os.openpty(); os.close(m)\n\
         l=os.open('/etc/passwd',os.O_RDONLY); fcntl.flock(l,fcntl.LOCK_SH)\n\
         n=os.open('/proc/self/ns/net',os.O_RDONLY)\n\
         ready(b,c,d,e,s,l,n)",
    );
    let files = program.collect(0, Mode::Check);
    let expected = ["inotify", "pidfd", "deleted file", "file", "terminal", "flock", "namespace"];
    for (fd, what) in program.numbers.iter().zip(expected) {
        assert!(files.refused(*fd).contains(what), "descriptor {fd}: {}", files.refused(*fd));
    }
    assert_eq!(files.blockers.len(), expected.len(), "{:?}", files.blockers);
}

#[test]
fn memfd_is_carried_by_the_object_that_a_round_has_found() {
    let program = Program::start("m=os.memfd_create('m'); os.write(m,b'data'); ready(m)");
    let memory = |files: &Files| files.file(0, program.numbers[0]).kind.clone();
    let checked = program.collect(0, Mode::Check);
    assert_eq!(memory(&checked), FileKind::Memory { object: 0, offset: 4 });
    let young = program.collect(0, Mode::Dump);
    assert!(young.transient[0].what.contains("younger than the last round"), "{:?}", young.transient);
    let mut objects = Objects::new();
    crate::capture::in_memory::hold_descriptors([program.pid()].into_iter(), &mut objects).unwrap();
    let table = Table::open(program.pid()).unwrap();
    let known = table.collect_knowing(&[(program.pid(), Vpid(1))], Mode::Dump, &objects).unwrap();
    assert!(known.transient.is_empty() && known.blockers.is_empty(), "{known:?}");
    assert_eq!(objects.layouts().len(), 1);
}

#[test]
fn devices_directories_and_opaque_descriptors_are_carried_by_path() {
    let program = Program::start(
        "n=os.open('/dev/null',os.O_RDWR); d=os.open('/etc',os.O_RDONLY); p=os.open('/dev/zero',os.O_PATH)\n\
         ready(n,d,p)",
    );
    let files = program.collect(0, Mode::Check);
    assert!(files.blockers.is_empty(), "{:?}", files.blockers);
    let [n, d, p] = program.numbers[..] else { panic!() };
    for (fd, path, file_type) in
        [(n, "/dev/null", libc::S_IFCHR), (d, "/etc", libc::S_IFDIR), (p, "/dev/zero", libc::S_IFCHR)]
    {
        let expected = FileKind::Path { path: path.into(), offset: 0, file_type };
        assert_eq!(files.file(0, fd).kind, expected);
    }
    assert_ne!(files.file(0, p).flags & libc::O_PATH, 0);
}

#[test]
fn file_on_a_mount_outside_of_the_container_is_refused_and_as_stdio_carried() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("log"), "").unwrap();
    let script = format!(
        "exec 7>>{0}/log; exec 2>&7; exec 8</dev/null; exec python3 -c '\
         import os,sys;print(\"ready\",flush=True);os.close(7) if sys.argv[1]==\"1\" else 0;sys.stdin.read()' ",
        directory.path().display()
    );
    // The file is opened in this mount namespace; the program then gets a namespace of its own.
    let run = |close: &str| {
        let inner = script.replace("exec python3", "exec unshare --mount --propagation private python3");
        Program::run(Program::clean("sh").args(["-c", &format!("{inner}{close}")]))
    };
    let files = run("0").collect(0, Mode::Check);
    assert_eq!(files.file(0, 2).kind, FileKind::Stdio(2));
    assert_eq!(files.file(0, 7).kind, FileKind::Stdio(2));
    assert!(matches!(&files.file(0, 8).kind, FileKind::Path { path, .. } if path == b"/dev/null"));
    assert!(files.blockers.is_empty(), "{:?}", files.blockers);
}

#[test]
fn shared_descriptor_table_is_refused() {
    // clone(CLONE_FILES | SIGCHLD)
    let program = Program::start("p=libc.syscall(56,0x400|17,0,0,0,0)\nif p==0: stay()\nready(p)");
    let files = program.collect(1, Mode::Check);
    assert!(
        files.blockers.iter().any(|blocker| blocker.what.contains("table shared")),
        "{:?}",
        files.blockers
    );
}

#[test]
fn sockets_are_carried_and_dropped_guards_leave_connections_as_they_were() {
    let program = Program::start(
        "l=socket.socket(); l.bind(('127.0.0.1',0)); l.listen(5)\n\
         c=socket.create_connection(l.getsockname()); s,_=l.accept(); s.send(b'hello')\n\
         a,b=socket.socketpair(); a.send(b'queued'); u=socket.socket(socket.AF_UNIX); p=select.epoll()\n\
         p.register(s.fileno(),1); p.register(b.fileno(),1)\n\
         n=socket.socket(socket.AF_NETLINK,socket.SOCK_RAW,0)\n\
         ready(l.fileno(),c.fileno(),s.fileno(),a.fileno(),b.fileno(),u.fileno(),p.fileno(),n.fileno())\n\
         print(c.recv(9).decode(), b.recv(9).decode(), flush=True)",
    );
    for mode in [Mode::Check, Mode::Dump] {
        let files = program.collect(0, mode);
        for fd in &program.numbers[..6] {
            assert!(matches!(files.file(0, *fd).kind, FileKind::Socket(_)), "descriptor {fd}");
        }
        let FileKind::Epoll { watches } = &files.file(0, program.numbers[6]).kind else { panic!() };
        assert_eq!(watches.len(), 2);
        assert!(files.refused(program.numbers[7]).contains("netlink"));
        assert_eq!(files.blockers.len(), 1);
        assert_eq!(files.sockets.len(), if mode == Mode::Dump { 2 } else { 0 });
    }
    let mut program = program;
    drop(program.child.stdin.take());
    let mut line = String::new();
    program.output.read_line(&mut line).unwrap();
    assert_eq!(line, "hello queued\n");
}

#[test]
fn sockets_that_need_an_address_which_is_not_at_the_destination_are_named() {
    let program = Program::start(
        "def at(kind,address):\n\
         \ts=socket.socket(socket.AF_INET,kind); s.setsockopt(0,15,1); s.bind((address,0)); return s\n\
         l=at(socket.SOCK_STREAM,'192.0.2.9'); l.listen(5); u=at(socket.SOCK_DGRAM,'192.0.2.9')\n\
         o=at(socket.SOCK_DGRAM,'192.0.2.10'); w=at(socket.SOCK_STREAM,'0.0.0.0'); i=at(socket.SOCK_DGRAM,'127.0.0.1')\n\
         ready(l.fileno(),u.fileno(),o.fileno())",
    );
    let table = Table::open(program.pid()).unwrap();
    let processes = [(program.pid(), Vpid(1))];
    let bound = |addresses: &[&str]| {
        let addresses: Vec<_> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        table.bound_elsewhere(&addresses, || Ok::<_, FilesError>(processes.to_vec())).unwrap()
    };
    assert_eq!(bound(&["192.0.2.9", "192.0.2.10"]), []);
    let found = bound(&["192.0.2.10"]);
    assert!(found.iter().all(|blocker| blocker.what.contains("bound to 192.0.2.9:")), "{found:?}");
    let places: Vec<Place> = found.into_iter().map(|blocker| blocker.place).collect();
    assert_eq!(places, program.numbers[..2].iter().map(|fd| Place::Descriptor(*fd)).collect::<Vec<_>>());
}

#[test]
fn socket_stdio_whose_peer_is_outside_is_stdio() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let script = Program::whole("p=os.dup(2); ready(p)");
    let program = Program::run(Command::new("python3").args(["-c", &script]).stderr(OwnedFd::from(theirs)));
    let files = program.collect(0, Mode::Dump);
    assert!(files.blockers.is_empty(), "{:?}", files.blockers);
    assert_eq!(files.file(0, 2).kind, FileKind::Stdio(2));
    assert_eq!(files.descriptor(0, 2).file, files.descriptor(0, program.numbers[0]).file);
    drop(ours);
}

#[test]
fn child_born_after_the_list_was_made_is_no_stranger() {
    let program = Program::start(
        "r,w=os.pipe(); p=os.fork()\n\
         if p==0: os.close(r); stay()\n\
         os.close(w); ready(p,r)",
    );
    let all = vec![(program.pid(), Vpid(1)), (Pid(program.numbers[0]), Vpid(2))];
    let table = Table::open(program.pid()).unwrap();
    let mut lists = [all[..1].to_vec(), all.clone()].into_iter();
    let blockers = table.check(&Objects::new(), || Ok::<_, FilesError>(lists.next().unwrap())).unwrap();
    assert_eq!(blockers, []);
    let blockers = table.check(&Objects::new(), || Ok::<_, FilesError>(all[..1].to_vec())).unwrap();
    assert_eq!(blockers.len(), 1, "a pipe that leads out twice does so");
}
