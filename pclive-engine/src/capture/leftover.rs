//! A container that an agent which is gone has left as it was: stopped for the commit, or with connections mute.
//!
//! Ptrace and userfaultfd end with the agent; what stays is the cgroup freezer, the repair mode of TCP connections
//! (one, if the agent died while it read it; all from [`Frozen::hold`](super::Frozen::hold) on) and the engine's
//! scratch mapping, which is harmless and never touched again. Either everything is ended and the container runs on
//! ([`Leftover::let_go`]), or the container is ([`Leftover::destroy`]).
//!
//! Kernel: cgroup freezer (v1, or v2 since Linux 5.2), pidfd_getfd(2) (5.6), `TCP_REPAIR` without a word (4.19).
//! No ptrace: any thread may call this. The network's lock is its owner's matter; open it first.

use std::time::Duration;

use super::CaptureError;
use super::freezer::Freezer;
use super::sockets::{self, Connections};
use super::tree::{self, TreeProcess};
use crate::model::{Deadline, Pid};
use crate::sys::pidfd;
use crate::sys::socket::{disconnect, set_int};
use crate::sys::tcp::{Repair, is_in_repair, set_repair};
use crate::tracee::{Pause, end};

/// A container without its agent.
#[derive(Debug)]
pub struct Leftover {
    processes: Vec<TreeProcess>,
    /// None: nothing could have frozen it.
    freezer: Option<Freezer>,
}

impl Leftover {
    /// Looks at the container of `init`. Nothing is changed.
    pub fn find(init: Pid) -> Result<Self, CaptureError> {
        let processes = tree::read(init)?;
        let freezer = match Freezer::find(init, &processes) {
            Ok(freezer) => Some(freezer),
            Err(CaptureError::NoFreezer { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { processes, freezer })
    }

    /// True if the freezer holds it.
    pub fn is_frozen(&self) -> Result<bool, CaptureError> {
        self.freezer.as_ref().map_or(Ok(false), Freezer::is_engaged)
    }

    /// Lets the container run on: connections first, so that no task finds one mute, then the tasks. Where its peers have
    /// talked to a copy since, connections with them are closed: the program gets ECONNABORTED. On `Err` it is as frozen as
    /// it was, and it can be tried again.
    pub fn let_go(self, connections: Connections) -> Result<(), CaptureError> {
        for process in &self.processes {
            end_repair(process.pid, connections)?;
        }
        match self.freezer {
            Some(freezer) if freezer.is_engaged()? => freezer.thaw(),
            Some(_) | None => Ok(()),
        }
    }

    /// Ends the repair mode of its connections: when it is killed, their peers hear of it, if its network is open.
    pub fn unmute(&self) -> Result<(), CaptureError> {
        self.processes.iter().try_for_each(|process| end_repair(process.pid, Connections::Carry))
    }

    /// Kills the container without letting it run. Connections that are in repair mode end without a packet.
    pub fn destroy(self, timeout: Duration) -> Result<(), CaptureError> {
        for process in &self.processes {
            end::kill(process.pid);
        }
        if let Some(freezer) = self.freezer {
            // With a signal pending that kills, no task gets back to its program.
            freezer.thaw()?;
        }
        await_ends(&self.processes, timeout)
    }
}

/// Ends the repair mode of every TCP connection of a process that is in it. The kernel has forgotten whether such a
/// socket had `SO_REUSEADDR`; it gets it, because a server that restarts would otherwise find its port taken.
fn end_repair(pid: Pid, connections: Connections) -> Result<(), CaptureError> {
    let Some(descriptors) = sockets_of(pid)? else { return Ok(()) };
    let Ok(process) = pidfd::open(pid) else { return Ok(()) };
    for number in descriptors {
        // A descriptor that was closed, or a process that ended, has nothing to be mended.
        let Ok(socket) = pidfd::getfd(&process, number) else { continue };
        if !is_in_repair(socket_of(&socket)).unwrap_or(false) {
            continue;
        }
        if connections == Connections::Close && sockets::leaves(&socket).unwrap_or(true) {
            disconnect(socket_of(&socket)).map_err(CaptureError::Silence)?;
        }
        set_repair(socket_of(&socket), Repair::OffSilently).map_err(CaptureError::Silence)?;
        set_int(socket_of(&socket), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)
            .map_err(CaptureError::Silence)?;
    }
    Ok(())
}

fn socket_of(fd: &std::os::fd::OwnedFd) -> std::os::fd::BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(fd)
}

/// The numbers of the sockets of a process; `None` when it has ended.
fn sockets_of(pid: Pid) -> Result<Option<Vec<i32>>, CaptureError> {
    let path = format!("/proc/{pid}/fd");
    let entries = match std::fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => return Ok(None),
        Err(source) => return Err(CaptureError::Read { path, source }),
    };
    let numbers = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let target = std::fs::read_link(entry.path()).ok()?;
        let number = entry.file_name().to_str()?.parse().ok()?;
        target.as_os_str().as_encoded_bytes().starts_with(b"socket:").then_some(number)
    });
    Ok(Some(numbers.collect()))
}

/// Waits until every process is gone, or a zombie without other threads, which is its parent's.
fn await_ends(processes: &[TreeProcess], timeout: Duration) -> Result<(), CaptureError> {
    let deadline = Deadline::after(timeout);
    let mut pause = Pause::default();
    let mut left: Vec<&TreeProcess> = processes.iter().collect();
    loop {
        left.retain(|process| lives(process));
        let Some(process) = left.first() else { return Ok(()) };
        if deadline.passed() {
            return Err(CaptureError::StillAlive { pid: process.pid });
        }
        pause.take();
    }
}

/// A leader may be a zombie while other threads are still ending: the memory, and the cgroup, are theirs as well.
fn lives(process: &TreeProcess) -> bool {
    let stat = crate::proc::read(format!("/proc/{}/stat", process.pid)).unwrap_or_default();
    crate::proc::task_ids::parse_stat(&stat).is_some_and(|stat| {
        let ended = matches!(stat.state, b'Z' | b'X') && threads(process.pid) <= 1;
        stat.start_time == process.start_time && !ended
    })
}

fn threads(pid: Pid) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Ends its leader alone (SYS_exit) and lets another thread go on.
    const HEADLESS: &str = "import ctypes, threading, time; \
        threading.Thread(target=time.sleep, args=(600,)).start(); ctypes.CDLL(None).syscall(60, 0)";

    #[test]
    fn a_process_lives_as_long_as_its_last_thread() {
        let mut child =
            Command::new("python3").args(["-c", HEADLESS]).stdin(Stdio::null()).spawn().expect("python3");
        let pid = Pid(child.id().cast_signed());
        let deadline = Deadline::after(Duration::from_secs(20));
        let headless = |process: &TreeProcess| process.zombie.is_some() && process.threads.len() == 2;
        let process = loop {
            let process = tree::read(pid).unwrap().swap_remove(0);
            if headless(&process) {
                break process;
            }
            assert!(!deadline.passed(), "{process:?}");
            std::thread::sleep(Duration::from_millis(2));
        };
        assert!(lives(&process));
        assert!(await_ends(std::slice::from_ref(&process), Duration::from_millis(10)).is_err());
        child.kill().unwrap();
        await_ends(&[process], Duration::from_secs(20)).unwrap();
        child.wait().unwrap();
    }
}
