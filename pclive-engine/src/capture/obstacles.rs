//! What a process has that cannot be carried, apart from its memory and its files: found from `/proc` and kcmp(2)
//! while it runs, without stopping anything.
//!
//! Not visible from outside, and therefore not found here: Landlock rules, System V semaphore undo lists, NUMA
//! policies of single mappings, a pending `mlockall(MCL_FUTURE)` (which is carried, but shows only once the process
//! is stopped).

use std::cmp::Ordering;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::check::blocker;
use super::timers::clock_of_file;
use super::tree::TreeProcess;
use crate::model::{Blocker, Pid, Place, Vpid};
use crate::proc::{stat, status, timers};
use crate::sys::{kcmp, sched};

/// `PF_MEMALLOC_NOIO`, which `PR_SET_IO_FLUSHER` sets for good.
const IO_FLUSHER: u32 = 0x0008_0000;
/// `ELFCLASS32` in the executable's fifth byte.
const ELF_CLASS_32: u8 = 1;

/// Namespaces that the whole container has in common. The PID namespace shows in the process tree.
const NAMESPACES: [(&str, &str); 9] = [
    ("mnt", "mount"),
    ("net", "network"),
    ("ipc", "IPC"),
    ("uts", "UTS"),
    ("user", "user"),
    ("cgroup", "cgroup"),
    ("time", "time"),
    ("time_for_children", "time (for its children)"),
    ("pid_for_children", "PID (for its children)"),
];

/// What stands in the way of migrating one live process of the container whose init is `init`. A process that ends
/// meanwhile has no obstacles.
pub(super) fn find(process: &TreeProcess, init: Pid) -> Vec<Blocker> {
    let mut found = Findings { process, found: Vec::new() };
    found.surroundings(init);
    found.program();
    found.timers();
    for thread in &process.threads {
        found.thread(thread.pid, thread.layout.vtid, init);
    }
    // The kernel takes a process that ends out of its cgroup and its namespaces first.
    if ends(process.pid) { Vec::new() } else { found.found }
}

/// Whether a process has ended or is about to.
fn ends(pid: Pid) -> bool {
    const PF_EXITING: u32 = 0x4;
    let stat = read(pid, "stat", stat::parse);
    stat.is_none_or(|stat| stat.flags & PF_EXITING != 0 || matches!(stat.state, b'Z' | b'X'))
}

struct Findings<'a> {
    process: &'a TreeProcess,
    found: Vec<Blocker>,
}

impl Findings<'_> {
    fn refuse(&mut self, place: Place, what: impl Into<String>, hint: &str) {
        self.found.push(blocker(self.process, place, what.into(), hint));
    }

    /// What it must have in common with the container's init.
    fn surroundings(&mut self, init: Pid) {
        let pid = self.process.pid;
        if differing_for_good(pid, init, "cgroup") {
            let hint = "move it back to the container's cgroup: nested cgroups cannot be carried";
            self.refuse(Place::Process, "it is in a cgroup of its own", hint);
        }
        if differing_files(pid, init, "attr/current") {
            let hint = "it must run under the label of the container's first process";
            self.refuse(Place::Process, "it has another security label than the container", hint);
        }
        let directory = PathBuf::from(format!("/proc/{pid}/cwd"));
        if let Some(path) = deleted(&directory) {
            let hint = "let it change to a directory that exists";
            self.refuse(Place::Process, format!("its current directory {} is deleted", path.display()), hint);
        }
    }

    fn program(&mut self) {
        let pid = self.process.pid;
        if elf_class(pid) == Some(ELF_CLASS_32) {
            self.refuse(Place::Process, "it is a 32-bit program", "only 64-bit programs can be carried");
        }
        let Some(status) = read(pid, "status", status::parse) else { return };
        if status.dumping_core {
            self.refuse(Place::Process, "it is writing a core dump", "wait until it has ended");
        }
        if status.untag_mask.is_some_and(|mask| mask != u64::MAX) {
            let hint = "programs that tag addresses (LAM) cannot be carried";
            self.refuse(Place::Process, "it uses tagged addresses", hint);
        }
    }

    fn timers(&mut self) {
        let lines = read(self.process.pid, "timers", timers::parse).unwrap_or_default();
        for line in lines.iter().filter(|line| clock_of_file(line.clock)) {
            let what = format!("its timer {} runs on the clock of a device", line.id);
            self.refuse(Place::Process, what, "stop the program that uses the PTP clock");
        }
    }

    fn thread(&mut self, tid: Pid, vtid: Vpid, init: Pid) {
        let place = || Place::Thread(vtid);
        for (file, name) in NAMESPACES {
            if differing_links(tid, init, &format!("ns/{file}")) {
                let what = format!("it is in a {name} namespace of its own");
                self.refuse(place(), what, "only processes in the container's namespaces can be carried");
            }
        }
        if differing_links(tid, init, "root") {
            let hint = "processes that have changed their root (chroot) cannot be carried";
            self.refuse(place(), "its root directory is not the container's", hint);
        }
        if tid != self.process.pid {
            self.unshared(tid, place());
        }
        self.thread_modes(tid, place());
    }

    /// Threads share everything, unless they have asked not to.
    fn unshared(&mut self, tid: Pid, place: Place) {
        let pid = self.process.pid;
        let apart = |order: nix::Result<Ordering>| matches!(order, Ok(Ordering::Less | Ordering::Greater));
        let hint = "threads that have called unshare(2) cannot be carried";
        if apart(kcmp::files(pid, tid)) {
            self.refuse(place.clone(), "it has a descriptor table of its own", hint);
        }
        if apart(kcmp::file_system(pid, tid)) {
            self.refuse(place, "it has a current directory of its own", hint);
        }
    }

    fn thread_modes(&mut self, tid: Pid, place: Place) {
        if let Some(status) = read(tid, "status", status::parse) {
            if status.seccomp == 1 {
                self.refuse(place.clone(), "it runs in strict seccomp mode", "wait until it has ended");
            }
            if status.thread_features.iter().any(|feature| feature == "shstk") {
                let hint = "start it without shadow stacks (GLIBC_TUNABLES=glibc.cpu.x86_shstk=off)";
                self.refuse(place.clone(), "it has a shadow stack (CET)", hint);
            }
        }
        if read(tid, "stat", stat::parse).is_some_and(|stat| stat.flags & IO_FLUSHER != 0) {
            let hint = "processes that serve the kernel's own I/O cannot be carried";
            self.refuse(place.clone(), "it is an I/O flusher (PR_SET_IO_FLUSHER)", hint);
        }
        if sched::attributes(tid).is_ok_and(|attributes| attributes.policy == libc::SCHED_DEADLINE as u32) {
            let hint = "give it another policy (chrt)";
            self.refuse(place, "it is scheduled with deadlines (SCHED_DEADLINE)", hint);
        }
    }
}

/// A file of a task that may vanish at any time.
fn read<T, E>(pid: Pid, name: &str, parse: impl FnOnce(&[u8]) -> Result<T, E>) -> Option<T> {
    parse(&crate::proc::read(format!("/proc/{pid}/{name}")).ok()?).ok()
}

/// The same, but a newborn process gets its cgroup a moment after it can be seen.
fn differing_for_good(a: Pid, b: Pid, name: &str) -> bool {
    const LOOKS: u32 = 5;
    const PAUSE: Duration = Duration::from_millis(2);
    (0..LOOKS).all(|look| {
        if look > 0 {
            std::thread::sleep(PAUSE);
        }
        differing_files(a, b, name)
    })
}

/// A task without the file does not differ.
fn differing_files(a: Pid, b: Pid, name: &str) -> bool {
    let contents = |pid: Pid| crate::proc::read(format!("/proc/{pid}/{name}")).ok();
    matches!((contents(a), contents(b)), (Some(a), Some(b)) if a != b)
}

fn differing_links(a: Pid, b: Pid, name: &str) -> bool {
    let target = |pid: Pid| fs::read_link(format!("/proc/{pid}/{name}")).ok();
    matches!((target(a), target(b)), (Some(a), Some(b)) if a != b)
}

/// The path of a link whose directory has been removed.
fn deleted(link: &Path) -> Option<PathBuf> {
    let gone = fs::metadata(link).ok()?.nlink() == 0;
    if gone { fs::read_link(link).ok() } else { None }
}

fn elf_class(pid: Pid) -> Option<u8> {
    let mut header = [0; 5];
    fs::File::open(format!("/proc/{pid}/exe")).ok()?.read_exact(&mut header).ok()?;
    header.starts_with(b"\x7fELF").then_some(header[4])
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;
    use crate::capture::tree;
    use crate::model::Deadline;

    struct Program(Child);

    impl Program {
        fn start(program: &str, arguments: &[&str]) -> Self {
            Self(Command::new(program).args(arguments).spawn().unwrap())
        }

        /// The obstacles, seen from a container whose init is this test, once `wanted` is among them.
        fn obstacles(&self, wanted: &str) -> Vec<Blocker> {
            let deadline = Deadline::after(std::time::Duration::from_secs(10));
            loop {
                let tree = tree::read(Pid(self.0.id() as i32)).unwrap();
                let found = find(&tree[0], Pid(std::process::id() as i32));
                if found.iter().any(|blocker| blocker.to_string().contains(wanted)) {
                    return found;
                }
                assert!(!deadline.passed(), "{wanted:?} is not among {found:?}");
                std::thread::yield_now();
            }
        }
    }

    impl Drop for Program {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn ordinary_process_has_no_obstacles() {
        let program = Program::start("sleep", &["1000"]);
        let tree = tree::read(Pid(program.0.id() as i32)).unwrap();
        assert_eq!(find(&tree[0], Pid(std::process::id() as i32)), []);
    }

    #[test]
    fn namespaces_of_its_own_are_all_named() {
        let program = Program::start("unshare", &["--uts", "--net", "sleep", "1000"]);
        // The first of them that is looked at: it gets both at once.
        let found = program.obstacles("network namespace");
        assert!(found.iter().any(|blocker| blocker.what.contains("UTS namespace")), "{found:?}");
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn deleted_directory_is_named() {
        let script = "d=$(mktemp -d); cd $d; rmdir $d; exec sleep 1000";
        let program = Program::start("sh", &["-c", script]);
        let found = program.obstacles("is deleted");
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn changed_root_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::copy("/bin/busybox", root.path().join("busybox")).unwrap();
        let path = root.path().to_str().unwrap();
        let program = Program::start("chroot", &[path, "/busybox", "sleep", "1000"]);
        program.obstacles("root directory");
    }
}
