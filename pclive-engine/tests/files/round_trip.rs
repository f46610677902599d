//! What a process gets is what the source had.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;

use nix::sys::epoll::{Epoll, EpollEvent, EpollTimeout};
use pclive_engine::capture::files::Files;
use pclive_engine::model::file::Owner;
use pclive_engine::model::socket::SocketKind;
use pclive_engine::model::{Descriptor, FileId, FileKind, OpenFile, Vpid};
use pclive_engine::restore::files::FilesError;

use crate::program::Program;
use crate::skeleton::Skeleton;

/// `O_LARGEFILE`, which open(2) adds by itself: a pipe that was opened a second time has it.
const INCIDENTAL: i32 = 0o100_000;

/// A state that two captures of the same descriptors agree in: files numbered by their first descriptor, pipes and
/// sockets by order, times left out.
pub(crate) fn normal(files: &Files) -> (Vec<OpenFile>, Vec<(Vpid, Vec<Descriptor>)>) {
    let mut ids = HashMap::new();
    let mut descriptors = files.descriptors.clone();
    for descriptor in descriptors.iter_mut().flat_map(|(_, descriptors)| descriptors) {
        let fresh = FileId(ids.len() as u32);
        descriptor.file = *ids.entry(descriptor.file).or_insert(fresh);
    }
    let mut pipes = HashMap::new();
    let mut sockets = HashMap::from([(0, 0)]);
    let mut normal: Vec<OpenFile> = files.files.clone();
    normal.sort_by_key(|file| ids[&file.id]);
    for file in &mut normal {
        file.id = ids[&file.id];
        file.flags &= !INCIDENTAL;
        match &mut file.kind {
            FileKind::Pipe { pipe, .. } => {
                let fresh = pipes.len() as u64;
                *pipe = *pipes.entry(*pipe).or_insert(fresh);
            }
            FileKind::Timer { left_ns, .. } => *left_ns = u64::from(*left_ns > 0),
            FileKind::Epoll { watches } => {
                watches.iter_mut().for_each(|watch| watch.file = ids[&watch.file]);
                watches.sort_by_key(|watch| watch.fd);
            }
            FileKind::Socket(socket) => {
                if let SocketKind::UnixPair { inode, peer, .. } = &mut socket.kind {
                    for number in [inode, peer] {
                        let fresh = sockets.len() as u64;
                        *number = *sockets.entry(*number).or_insert(fresh);
                    }
                }
            }
            FileKind::Path { .. }
            | FileKind::Memory { .. }
            | FileKind::Stdio(_)
            | FileKind::Event { .. }
            | FileKind::Signal { .. }
            | FileKind::Master(_)
            | FileKind::Slave { .. } => {}
        }
    }
    (normal, descriptors)
}

/// Captures `program`, restores it elsewhere and compares; once more with what can be opened ahead.
fn round_trip(program: &Program, children: usize) -> Skeleton {
    let mut prepared = Skeleton::start(1 + children);
    prepared.follow(&program.ahead(children));
    drop(round_trip_into(prepared, program, children));
    round_trip_into(Skeleton::start(1 + children), program, children)
}

pub(crate) fn round_trip_into(mut skeleton: Skeleton, program: &Program, children: usize) -> Skeleton {
    let source = program.dump(children);
    let restored = skeleton.restore(&source).unwrap();
    assert_eq!(restored.warnings, Vec::<String>::new());
    let copy = skeleton.dump();
    let ((source, wanted), (copy, got)) = (normal(&source), normal(&copy));
    assert_eq!(wanted, got);
    for (there, here) in source.iter().zip(&copy) {
        assert_eq!(there, here);
    }
    assert_eq!(source.len(), copy.len());
    drop(restored);
    skeleton
}

#[test]
fn files_with_offsets_flags_and_sharing() {
    let directory = tempfile::tempdir().unwrap();
    let program = Program::start(&format!(
        "os.chdir({directory:?}); f=os.open('log',os.O_CREAT|os.O_RDWR|os.O_APPEND,0o600); os.write(f,b'x'*99)\n\
         os.lseek(f,33,0); d=os.dup2(f,77); n=os.open('/dev/null',os.O_WRONLY|os.O_NONBLOCK)\n\
         z=os.open('/dev/urandom',os.O_RDONLY); e=os.open('/etc',os.O_RDONLY|os.O_DIRECTORY)\n\
         o=os.open('/etc/passwd',os.O_PATH); p=os.fork()\n\
         if p==0: stay()\n\
         ready(p,f)",
        directory = directory.path()
    ));
    let skeleton = round_trip(&program, 1);
    let file = File::from(skeleton.fetch(2, program.numbers[1]));
    let mut rest = String::new();
    (&file).read_to_string(&mut rest).unwrap();
    assert_eq!(rest.len(), 66, "reading goes on at the offset");
    assert!(std::fs::read_link(format!("/proc/{}/fd/77", skeleton.pid_of(1))).unwrap().ends_with("log"));
}

#[test]
fn pipes_between_processes_with_contents() {
    let program = Program::start(
        "r,w=os.pipe(); fcntl.fcntl(w,1031,1<<17); os.write(w,b'y'*100000); os.set_blocking(w,False)\n\
         s=os.open('/proc/self/fd/%d'%w,os.O_WRONLY); b=os.open('/proc/self/fd/%d'%w,os.O_RDWR)\n\
         e,x=os.pipe(); os.write(x,b'left'); os.close(x)\n\
         n,m=os.pipe(); os.close(n); os.fchown(m,5,6); k,l=os.pipe2(os.O_DIRECT)\n\
         p=os.fork()\n\
         if p==0: stay()\n\
         ready(p,r,e)",
    );
    let skeleton = round_trip(&program, 1);
    let mut buffer = vec![0; 1 << 17];
    let pipe = File::from(skeleton.fetch(2, program.numbers[1]));
    assert_eq!((&pipe).read(&mut buffer).unwrap(), 100_000);
    assert!(buffer[..100_000].iter().all(|byte| *byte == b'y'));
    let pipe = File::from(skeleton.fetch(1, program.numbers[2]));
    let mut rest = String::new();
    (&pipe).read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "left", "and then the end, for nobody can write");
}

#[test]
fn event_timer_and_signal_descriptors() {
    let program = Program::start(
        "e=libc.eventfd(5,1|2048); f=libc.eventfd(0,0)\n\
         t=libc.timerfd_create(1,0); libc.timerfd_settime(t,0,struct.pack('4Q',1000,0,1000,0),None)\n\
         o=libc.timerfd_create(0,2048)\n\
         libc.timerfd_settime(o,3,struct.pack('4Q',0,0,int(time.time())+1000,0),None); i=libc.timerfd_create(7,0)\n\
         x=libc.timerfd_create(1,0); libc.timerfd_settime(x,0,struct.pack('4Q',0,0,0,1000),None)\n\
         s=libc.signalfd(-1,struct.pack('16Q',1<<9,*([0]*15)),0)\n\
         select.select([x],[],[]); ready(x)",
    );
    let skeleton = round_trip(&program, 0);
    let mut ticks = [0; 8];
    File::from(skeleton.fetch(1, program.numbers[0])).read_exact(&mut ticks).unwrap();
    assert_eq!(u64::from_ne_bytes(ticks), 1, "the expiry that was not read at the source");
}

#[test]
fn epoll_instances_tell_what_is_ready() {
    let program = Program::start(
        "r,w=os.pipe(); e=libc.eventfd(1,0); p=select.epoll(); p.register(r,1|(1<<31)); p.register(e,1)\n\
         q=select.epoll(); q.register(p.fileno(),1); a,b=socket.socketpair(); p.register(b.fileno(),1)\n\
         c=os.fork()\n\
         if c==0: stay()\n\
         os.close(e); ready(c,p.fileno(),q.fileno(),e)",
    );
    let skeleton = round_trip(&program, 1);
    let ready = |fd: i32| {
        let epoll = Epoll(skeleton.fetch(1, fd));
        let mut events = [EpollEvent::empty(); 4];
        let count = epoll.wait(&mut events, EpollTimeout::ZERO).unwrap();
        events[..count].iter().map(|event| event.data() as i32).collect::<Vec<_>>()
    };
    assert_eq!(ready(program.numbers[1]), [program.numbers[3]]);
    assert_eq!(ready(program.numbers[2]), [program.numbers[1]]);
}

#[test]
fn a_thousand_descriptors_in_scattered_places() {
    let program = Program::start(
        "import random,resource; random.seed(7)\n\
         resource.setrlimit(resource.RLIMIT_NOFILE,(9000,resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n\
         n=sorted(random.sample(range(3,9000),1000)); e=[libc.eventfd(i,0) for i in range(40)]\n\
         k=[os.dup(f) for f in e]; m=dict((f,k[i%40]) for i,f in enumerate(n))\n\
         t=[fcntl.fcntl(f,1030,8000) for f in k]; os.closerange(3,8000)\n\
         [os.dup2(t[i%40],f,inheritable=i%3==0) for i,f in enumerate(n) if f<8000]\n\
         [os.close(f) for f in t]; ready()",
    );
    round_trip(&program, 0);
}

#[test]
fn stdio_becomes_what_the_runtime_gave_the_created_container() {
    let program = Program::start("os.dup2(1,9); os.open('/dev/stdout',os.O_WRONLY); os.close(2); ready()");
    let mut skeleton = Skeleton::start(1);
    let given = std::fs::read_link(format!("/proc/{}/fd/1", skeleton.pid_of(1))).unwrap();
    skeleton.restore(&program.dump(0)).unwrap();
    for fd in [1, 9, 3] {
        let link = std::fs::read_link(format!("/proc/{}/fd/{fd}", skeleton.pid_of(1))).unwrap();
        assert_eq!(link, given, "descriptor {fd}");
    }
    assert!(std::fs::read_link(format!("/proc/{}/fd/2", skeleton.pid_of(1))).is_err());
    let copy = skeleton.dump();
    let file = |fd: i32| copy.descriptors[0].1.iter().find(|descriptor| descriptor.fd == fd).unwrap().file;
    assert_eq!(file(1), file(9));
    assert_ne!(file(1), file(3));
}

#[test]
fn owners_are_set_in_the_process() {
    let program = Program::start("r,w=os.pipe(); fcntl.fcntl(r,10,34); ready(r)");
    let mut source = program.dump(0);
    let mut skeleton = Skeleton::start(1);
    let owner = Owner { kind: 1, id: Vpid(skeleton.pid_of(1).0), signal: 34 };
    let id = source.descriptors[0].1.iter().find(|d| d.fd == program.numbers[0]).unwrap().file;
    let file = source.files.iter_mut().find(|file| file.id == id).unwrap();
    file.owner = Some(owner);
    file.flags |= libc::O_ASYNC;
    skeleton.restore(&source).unwrap();
    let copy = skeleton.dump();
    let id = copy.descriptors[0].1.iter().find(|d| d.fd == program.numbers[0]).unwrap().file;
    let file = copy.files.iter().find(|file| file.id == id).unwrap();
    assert_eq!(file.owner, Some(Owner { id: Vpid(1), ..owner }));
    assert_ne!(file.flags & libc::O_ASYNC, 0);
}

#[test]
fn path_of_another_type_is_refused() {
    let file = OpenFile {
        id: FileId(0),
        flags: 0,
        owner: None,
        kind: FileKind::Path { path: b"/etc".into(), offset: 0, file_type: libc::S_IFREG },
    };
    let wanted = [(Vpid(1), vec![Descriptor { fd: 3, file: FileId(0), close_on_exec: false }])];
    let error = Skeleton::start(1).restore_parts(&[file], &wanted).unwrap_err();
    assert!(matches!(error, FilesError::OtherType { found: "a directory", .. }), "{error}");
}

#[test]
fn descriptor_above_the_limit_is_refused_by_name() {
    let kind = FileKind::Event { count: 0, semaphore: false };
    let file = OpenFile { id: FileId(0), flags: 2, owner: None, kind };
    let wanted = [(Vpid(1), vec![Descriptor { fd: 1_000_000, file: FileId(0), close_on_exec: false }])];
    let error = Skeleton::start(1).restore_parts(&[file], &wanted).unwrap_err();
    assert!(matches!(error, FilesError::Limit { fd: 1_000_000, .. }), "{error}");
}

#[test]
fn fifo_is_filled_again_unless_somebody_uses_it() {
    let directory = tempfile::tempdir().unwrap();
    let program = Program::start(&format!(
        "p={:?}; os.mkfifo(p); r=os.open(p,os.O_RDONLY|os.O_NONBLOCK); w=os.open(p,os.O_WRONLY)\n\
         os.write(w,b'queued'); ready(r)",
        directory.path().join("fifo")
    ));
    let source = program.dump(0);
    let reader = program.numbers[0];
    let error = Skeleton::start(1).restore(&source).unwrap_err();
    assert!(matches!(error, FilesError::FifoInUse { bytes: 6, .. }), "{error}");
    drop(program);
    let mut skeleton = Skeleton::start(1);
    skeleton.restore(&source).unwrap();
    assert_eq!(normal(&source), normal(&skeleton.dump()));
    let mut text = [0; 6];
    File::from(skeleton.fetch(1, reader)).read_exact(&mut text).unwrap();
    assert_eq!(&text, b"queued");
}
