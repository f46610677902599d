//! A program with several threads that write all the time: rounds while it runs, one when it is stopped, and every
//! page of the copy is the same. (No harness: the program under test is this one, started again.)

mod subject;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};
use pclive_engine::capture::vmas::read_vmas;
use pclive_engine::memory::layout_diff::{LayoutOp, plan};
use pclive_engine::memory::{AddressSpace, Objects, SpaceStats};
use pclive_engine::model::{Batch, ExtentKind, Mapping, Pid, Vma, Vpid};
use pclive_engine::remote::{Call, RemoteTask};
use pclive_engine::sys::{pidfd, userfaultfd};
use subject::{PAGE, capture, vdso, wait_for};

const ROLE: &str = "PCLIVE_TEST_WRITER";
const WORDS: usize = 4 << 20;
const ROUNDS: usize = 30;

fn main() {
    if std::env::var_os(ROLE).is_some() {
        write_for_ever();
    }
    // What test runners ask of a program with a main of its own: its tests, and none that are ignored.
    let asked = |flag: &str| std::env::args().any(|argument| argument == flag);
    if asked("--list") {
        if !asked("--ignored") {
            println!("copy_of_a_running_program_is_the_same_once_it_stops: test");
        }
        return;
    }
    copy_of_a_running_program_is_the_same_once_it_stops();
    println!("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
}

/// Three threads that count up words all over 32 MiB, and one that maps and unmaps memory of its own.
fn write_for_ever() -> ! {
    let words: &'static [AtomicU64] = (0..WORDS).map(|_| AtomicU64::new(1)).collect::<Vec<_>>().leak();
    for seed in 1..4u64 {
        std::thread::spawn(move || {
            let mut state = seed;
            loop {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed);
                words[(state >> 40) as usize % WORDS].fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    std::thread::spawn(|| {
        for round in 0u64.. {
            let block = vec![round as u8; 1 << 20];
            std::hint::black_box(&block);
        }
    });
    println!("ready");
    loop {
        std::thread::park();
    }
}

struct Writer(Child);

impl Writer {
    fn start() -> Self {
        let exe = std::env::current_exe().unwrap();
        let mut child = Command::new(exe).env(ROLE, "1").stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    fn pid(&self) -> Pid {
        Pid(self.0.id().cast_signed())
    }

    fn track(&self) -> AddressSpace {
        let pid = self.pid();
        let mut task = capture(pid);
        let flags = userfaultfd::USER_MODE_ONLY | (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
        let fd = task.run(&[Call::new(libc::SYS_userfaultfd, &[flags])]).unwrap()[0];
        assert!(fd >= 0, "{fd}");
        let ours: OwnedFd = pidfd::getfd(pidfd::open(pid).unwrap(), fd as i32).unwrap();
        assert_eq!(task.run(&[Call::new(libc::SYS_close, &[fd as u64])]).unwrap(), [0]);
        task.restore_context().unwrap();
        task.unsettle(vdso(pid)).unwrap();
        task.restore_context().unwrap();
        task.detach().unwrap();
        AddressSpace::new(pid, Vpid(pid.0), ours).unwrap()
    }

    fn stop(&self) {
        kill(nix::unistd::Pid::from_raw(self.pid().0), Signal::SIGSTOP).unwrap();
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        for task in tasks {
            let stat = task.unwrap().path().join("stat");
            let deadline = pclive_engine::model::Deadline::after(std::time::Duration::from_secs(10));
            while !std::fs::read_to_string(&stat).unwrap().contains(") T ") {
                assert!(!deadline.passed(), "{} never stopped", stat.display());
                std::thread::yield_now();
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a destination would hold.
#[derive(Default)]
struct Copy {
    vmas: Vec<Vma>,
    pages: HashMap<u64, Vec<u8>>,
}

impl Copy {
    fn follow(&mut self, vmas: Vec<Vma>) {
        for step in plan(&self.vmas, &vmas) {
            if let LayoutOp::Unmap { start, end } = step {
                self.pages.retain(|at, _| !(start..end).contains(at));
            }
        }
        self.vmas = vmas;
    }

    fn take(&mut self, batch: &Batch) {
        let mut contents = batch.payload.chunks_exact(PAGE as usize);
        for extent in &batch.extents {
            for at in (extent.start..extent.end()).step_by(PAGE as usize) {
                match extent.kind {
                    ExtentKind::Data => drop(self.pages.insert(at, contents.next().unwrap().to_vec())),
                    ExtentKind::Zero => drop(self.pages.insert(at, vec![0; PAGE as usize])),
                    ExtentKind::Hole | ExtentKind::Guard => drop(self.pages.remove(&at)),
                }
            }
        }
    }

    fn assert_same(&self, pid: Pid) {
        let mem = File::open(format!("/proc/{pid}/mem")).unwrap();
        let zeros = vec![0; PAGE as usize];
        let anonymous = self.vmas.iter().filter(|vma| vma.mapping == Mapping::PrivateAnonymous);
        let mut compared = 0;
        for vma in anonymous {
            let mut bytes = vec![0; vma.len() as usize];
            // Guard pages cannot be read; there is nothing to compare in such a mapping.
            if mem.read_exact_at(&mut bytes, vma.start).is_err() {
                continue;
            }
            for (ours, at) in bytes.chunks_exact(PAGE as usize).zip((vma.start..).step_by(PAGE as usize)) {
                let theirs = self.pages.get(&at).unwrap_or(&zeros);
                assert!(ours == &theirs[..], "page {at:x} of {vma:x?}");
            }
            compared += bytes.len();
        }
        assert!(compared >= WORDS * 8, "only {compared} bytes were compared");
    }
}

fn round(space: &mut AddressSpace, copy: &mut Copy) -> SpaceStats {
    let read = read_vmas(space.pid(), &mut Objects::new(), &[], false).unwrap();
    assert_eq!(read.blockers, []);
    copy.follow(read.vmas);
    let vmas = copy.vmas.clone();
    space
        .round(&vmas, 256 << 10, &mut |batch| {
            copy.take(&batch);
            Ok(())
        })
        .unwrap()
}

fn copy_of_a_running_program_is_the_same_once_it_stops() {
    let writer = Writer::start();
    wait_for(&format!("/proc/{}/syscall", writer.pid()), "202 ");
    let mut space = writer.track();
    let mut copy = Copy::default();
    let first = round(&mut space, &mut copy);
    assert!(first.data_pages * PAGE >= (WORDS * 8) as u64, "{first:?}");
    for _ in 0..ROUNDS {
        let stats = round(&mut space, &mut copy);
        assert!(stats.data_pages > 0, "a program that writes has dirty pages: {stats:?}");
    }
    writer.stop();
    let last = round(&mut space, &mut copy);
    assert_eq!(last.unreadable_pages, 0);
    copy.assert_same(writer.pid());
    let idle = round(&mut space, &mut copy);
    assert_eq!((idle.data_pages, idle.hole_pages), (0, 0), "a stopped program writes nothing");
}
