//! Stopped processes that take the place of a created container's.

use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pclive_engine::capture::files::{Files, Mode, Table};
use pclive_engine::memory::ObjectStore;
use pclive_engine::model::{Deadline, Descriptor, OpenFile, OpenFiles, Pid, Vpid};
use pclive_engine::proc::root::ContainerRoot;
use pclive_engine::remote::{Captive, ProcessMemory, Processes, RemoteTask, Spot};
use pclive_engine::restore::files::{Ahead, FilesError, Place, RestoredFiles, Tables, check_ahead, restore};
use pclive_engine::restore::sockets::Builder;
use pclive_engine::restore::terminals::Terminals;
use pclive_engine::sys::pidfd;
use pclive_engine::tracee::Running;

use crate::program::with_terminals;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Sleeping programs under the engine's control; the first is process 1.
pub(crate) struct Skeleton {
    members: Vec<(Vpid, Captive, Child)>,
    ahead: Ahead,
    tables: Tables,
}

impl Skeleton {
    pub(crate) fn start(processes: usize) -> Self {
        Self::run(processes, || Command::new("sleep"))
    }

    /// One process with a devpts instance of its own.
    pub(crate) fn start_with_terminals() -> Self {
        Self::run(1, || with_terminals("sleep"))
    }

    fn run(processes: usize, command: impl Fn() -> Command) -> Self {
        let members = (0..processes).map(|index| {
            let child = command().arg("1000").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            (Vpid(1 + index as i32), seize(Pid(child.id() as i32)), child)
        });
        Self { members: members.collect(), ahead: Ahead::default(), tables: Tables::new() }
    }

    pub(crate) fn pid_of(&self, vpid: i32) -> Pid {
        self.pid(Vpid(vpid)).unwrap()
    }

    pub(crate) fn restore(&mut self, files: &Files) -> Result<RestoredFiles, FilesError> {
        self.restore_parts(&files.files, &files.descriptors)
    }

    pub(crate) fn restore_parts(
        &mut self,
        files: &[OpenFile],
        wanted: &[(Vpid, Vec<Descriptor>)],
    ) -> Result<RestoredFiles, FilesError> {
        let init = self.pid_of(1);
        let root = ContainerRoot::open(init).unwrap();
        let mut builder = Builder::new(init).unwrap();
        let mut terminals = Terminals::default();
        let place = Place { root: &root, objects: &ObjectStore::new() };
        let ahead = (std::mem::take(&mut self.ahead), std::mem::take(&mut self.tables));
        restore(files, wanted, place, ahead, &mut builder, &mut terminals, self)
    }

    /// Opens what a round tells of.
    pub(crate) fn follow(&mut self, told: &OpenFiles) {
        check_ahead(told).unwrap();
        let root = ContainerRoot::open(self.pid_of(1)).unwrap();
        let (mut ahead, tables) = (std::mem::take(&mut self.ahead), std::mem::take(&mut self.tables));
        let mut builder = Builder::new(self.pid_of(1)).unwrap();
        self.tables = ahead.follow(told, tables, &root, &mut builder, self).unwrap();
        self.ahead = ahead;
    }

    /// From here on nobody knows what the processes have.
    pub(crate) fn forget_tables(&mut self) {
        self.tables.clear();
    }

    /// Lets go of what somebody may execute.
    pub(crate) fn release_programs(&mut self) {
        let (mut ahead, tables) = (std::mem::take(&mut self.ahead), std::mem::take(&mut self.tables));
        self.tables = ahead.release_programs(tables, self).unwrap();
        self.ahead = ahead;
    }

    /// What the processes have now.
    pub(crate) fn dump(&self) -> Files {
        let processes: Vec<_> =
            self.members.iter().map(|(vpid, captive, _)| (captive.pid(), *vpid)).collect();
        let files = Table::open(processes[0].0).unwrap().collect(&processes, Mode::Dump).unwrap();
        assert!(files.blockers.is_empty(), "{:?}", files.blockers);
        files
    }

    /// A duplicate of a descriptor.
    pub(crate) fn fetch(&self, vpid: i32, fd: i32) -> OwnedFd {
        pidfd::getfd(pidfd::open(self.pid_of(vpid)).unwrap(), fd).unwrap()
    }
}

fn seize(pid: Pid) -> Captive {
    wait_for_sleep(pid);
    let running = Running::seize(pid, 1).unwrap();
    running.interrupt().unwrap();
    let (stopped, _) = running.wait(Deadline::after(TIMEOUT)).unwrap();
    let memory = ProcessMemory::open(pid).unwrap();
    let ids = (Vpid(pid.0), Vpid(pid.0));
    let mut captive = Captive::take(stopped, ids, memory, libc::SIGWINCH, TIMEOUT).unwrap();
    captive.settle(vdso(pid), Spot::Anywhere).unwrap();
    captive
}

/// Until the program is in clock_nanosleep(2).
fn wait_for_sleep(pid: Pid) {
    let deadline = Deadline::after(TIMEOUT);
    while !std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap().starts_with("230 ") {
        assert!(!deadline.passed(), "the program does not sleep");
        std::thread::yield_now();
    }
}

fn vdso(pid: Pid) -> (u64, u64) {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let line = maps.lines().find(|line| line.ends_with("[vdso]")).unwrap();
    let (start, rest) = line.split_once('-').unwrap();
    let number = |text| u64::from_str_radix(text, 16).unwrap();
    (number(start), number(rest.split(' ').next().unwrap()))
}

impl Processes for Skeleton {
    fn pid(&self, vpid: Vpid) -> Option<Pid> {
        self.members.iter().find(|member| member.0 == vpid).map(|member| member.1.pid())
    }

    fn leader(&mut self, vpid: Vpid) -> Option<&mut dyn RemoteTask> {
        let member = self.members.iter_mut().find(|member| member.0 == vpid)?;
        Some(&mut member.1)
    }
}

impl Drop for Skeleton {
    fn drop(&mut self) {
        for (_, _, child) in &mut self.members {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
