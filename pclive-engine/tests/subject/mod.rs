//! Real processes that do to their memory what a test tells them, by remote calls.
#![allow(dead_code, reason = "every test program uses a part of it")]

pub(crate) mod pair;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pclive_engine::capture::vmas::read_vmas;
use pclive_engine::memory::layout_diff::LayoutOp;
use pclive_engine::memory::{AddressSpace, Objects};
use pclive_engine::model::{Deadline, Mapping, Pid, Protection, Vma, Vpid};
use pclive_engine::remote::{Call, Captive, ProcessMemory, RemoteTask, Spot};
use pclive_engine::sys::{pidfd, userfaultfd};
use pclive_engine::tracee::{Running, Stop};

pub(crate) const PAGE: u64 = 4096;
/// Where tests put the memory they work on: free in every process.
pub(crate) const ARENA: u64 = 0x10_0000_0000;
const TIMEOUT: Duration = Duration::from_secs(10);

/// A stopped `sleep` that makes system calls on request; killed when the test ends.
pub(crate) struct Subject {
    child: Child,
    pub(crate) task: Captive,
}

impl Subject {
    pub(crate) fn start() -> Self {
        let child = Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().unwrap();
        let pid = Pid(child.id().cast_signed());
        wait_for(&format!("/proc/{pid}/syscall"), "230 ");
        Self { task: capture(pid), child }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid(self.child.id().cast_signed())
    }

    pub(crate) fn vpid(&self) -> Vpid {
        Vpid(self.pid().0)
    }

    pub(crate) fn call(&mut self, number: i64, arguments: &[u64]) -> i64 {
        self.task.run(&[Call::new(number, arguments)]).unwrap()[0]
    }

    /// A call that must succeed.
    pub(crate) fn must(&mut self, number: i64, arguments: &[u64]) -> u64 {
        let result = self.call(number, arguments);
        assert!(result >= 0, "call {number} {arguments:x?}: {}", nix::Error::from_raw(-result as i32));
        result.cast_unsigned()
    }

    pub(crate) fn open(&mut self, path: &[u8], flags: i32) -> u64 {
        let at = self.task.scratch().start;
        self.task.write(at, &[path, b"\0"].concat()).unwrap();
        self.must(libc::SYS_openat, &[libc::AT_FDCWD as u64, at.0, flags as u64, 0])
    }

    pub(crate) fn map(&mut self, start: u64, len: u64, protection: i32, flags: i32) -> i64 {
        let flags = flags | libc::MAP_FIXED | libc::MAP_ANONYMOUS;
        self.call(libc::SYS_mmap, &[start, len, protection as u64, flags as u64, u64::MAX, 0])
    }

    pub(crate) fn map_file(
        &mut self,
        path: &[u8],
        range: (u64, u64),
        protection: i32,
        flags: i32,
        offset: u64,
    ) {
        let mode = if flags & libc::MAP_SHARED != 0 { libc::O_RDWR } else { libc::O_RDONLY };
        let fd = self.open(path, mode);
        let flags = flags | libc::MAP_FIXED;
        self.must(libc::SYS_mmap, &[range.0, range.1 - range.0, protection as u64, flags as u64, fd, offset]);
        self.must(libc::SYS_close, &[fd]);
    }

    /// Overwrites memory with something new, as a program's own write would.
    pub(crate) fn scribble(&mut self, start: u64, len: u64) -> i64 {
        self.call(libc::SYS_getrandom, &[start, len, 0])
    }

    pub(crate) fn track(&mut self) -> AddressSpace {
        let flags = userfaultfd::USER_MODE_ONLY | (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
        let fd = self.must(libc::SYS_userfaultfd, &[flags]);
        let ours: OwnedFd = pidfd::getfd(pidfd::open(self.pid()).unwrap(), fd as i32).unwrap();
        self.must(libc::SYS_close, &[fd]);
        AddressSpace::new(self.pid(), self.vpid(), ours).unwrap()
    }

    /// The mappings in the arena.
    pub(crate) fn vmas(&self, objects: &mut Objects) -> Vec<Vma> {
        let own: Vec<_> = self.task.slot().map(|slot| slot.range()).into_iter().collect();
        let read = read_vmas(self.pid(), objects, &own, false).unwrap();
        let blockers: Vec<_> = read.blockers.iter().filter(|b| in_arena(b.start)).collect();
        assert!(blockers.is_empty(), "{blockers:?}");
        read.vmas.into_iter().filter(|vma| in_arena(vma.start)).collect()
    }

    /// A page as the process would see it, `None` where it would get a signal.
    pub(crate) fn page(&self, address: u64) -> Option<Vec<u8>> {
        let mem = File::open(format!("/proc/{}/mem", self.pid())).unwrap();
        let mut page = vec![0; PAGE as usize];
        mem.read_exact_at(&mut page, address).ok().map(|()| page)
    }

    /// Makes the mappings of the arena what a plan says.
    pub(crate) fn follow(&mut self, steps: &[LayoutOp]) {
        for step in steps {
            match step {
                LayoutOp::Unmap { start, end } => {
                    self.must(libc::SYS_munmap, &[*start, end - start]);
                }
                LayoutOp::Map(vma) => self.map_as(vma),
                LayoutOp::Protect { start, end, protection } => {
                    self.must(libc::SYS_mprotect, &[*start, end - start, bits(*protection) as u64]);
                }
                LayoutOp::Advise { .. } => {}
            }
        }
    }

    fn map_as(&mut self, vma: &Vma) {
        let (range, protection) = ((vma.start, vma.end), bits(vma.protection));
        match &vma.mapping {
            Mapping::PrivateAnonymous => {
                assert!(self.map(vma.start, vma.len(), protection, libc::MAP_PRIVATE) >= 0);
            }
            Mapping::PrivateHuge => {
                let flags = libc::MAP_PRIVATE | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
                assert!(self.map(vma.start, vma.len(), protection, flags) >= 0);
            }
            Mapping::PrivateFile(file) => {
                self.map_file(&file.path, range, protection, libc::MAP_PRIVATE, file.offset);
            }
            Mapping::SharedFile { .. } | Mapping::SharedObject { .. } | Mapping::PrivateObject { .. } => {
                panic!("not made here: {vma:?}")
            }
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn in_arena(address: u64) -> bool {
    (ARENA..2 * ARENA).contains(&address)
}

fn bits(protection: Protection) -> i32 {
    let bit = |set, bit| if set { bit } else { 0 };
    bit(protection.read, libc::PROT_READ)
        | bit(protection.write, libc::PROT_WRITE)
        | bit(protection.exec, libc::PROT_EXEC)
}

/// Waits until a file of /proc starts with `text`.
pub(crate) fn wait_for(path: &str, text: &str) {
    let deadline = Deadline::after(TIMEOUT);
    while !std::fs::read_to_string(path).unwrap().starts_with(text) {
        assert!(!deadline.passed(), "{path} never started with {text}");
        std::thread::yield_now();
    }
}

/// Stops a process and gives it the engine's call memory.
pub(crate) fn capture(pid: Pid) -> Captive {
    let running = Running::seize(pid, libc::PTRACE_O_TRACESYSGOOD as u64 | libc::PTRACE_O_TRACEEXEC as u64);
    let running = running.unwrap();
    running.interrupt().unwrap();
    let (stopped, stop) = running.wait(Deadline::after(TIMEOUT)).unwrap();
    assert_eq!(stop, Stop::Interrupted);
    let memory = ProcessMemory::open(pid).unwrap();
    let mut task =
        Captive::take(stopped, (Vpid(pid.0), Vpid(pid.0)), memory, libc::SIGWINCH, TIMEOUT).unwrap();
    task.settle(vdso(pid), Spot::Anywhere).unwrap();
    task
}

pub(crate) fn vdso(pid: Pid) -> (u64, u64) {
    let read = read_vmas(pid, &mut Objects::new(), &[], false).unwrap();
    read.vdso.vdso.unwrap()
}
