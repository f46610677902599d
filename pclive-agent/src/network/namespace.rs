//! A handle on a network namespace.
//!
//! Kernel: setns(2), `/proc/PID/ns/net`. A socket belongs for ever to the namespace it was opened in, so that
//! only opening sockets (and writing sysctls) needs a thread inside. Each such call runs on a short-lived OS
//! thread of its own: a worker of the runtime never changes its namespace.

use std::fmt;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, setns};

use super::error::{Error, Result};

/// An open network namespace. Keeps the namespace alive, also when its last process is gone.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    /// How messages name it.
    label: String,
    /// Device and inode of the nsfs file.
    identity: (u64, u64),
}

impl Namespace {
    /// The namespace of a process (a pid as the agent sees it).
    pub fn of(pid: i32) -> Result<Self> {
        Self::open(Path::new(&format!("/proc/{pid}/ns/net")), format!("of process {pid}"))
    }

    /// The namespace that a file holds (a netns path of a runtime's configuration).
    pub fn at(path: &Path) -> Result<Self> {
        Self::open(path, path.display().to_string())
    }

    /// The agent's own: that of the calling thread, which is that of every thread of the agent.
    pub fn own() -> Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"), "of the agent".to_owned())
    }

    fn open(path: &Path, label: String) -> Result<Self> {
        let failed = |source| Error::OpenNamespace { namespace: label.clone(), source };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        Ok(Self { identity: (metadata.dev(), metadata.ino()), file, label })
    }

    /// Whether this is the agent's own namespace or that of the machine's init: the container uses the host's
    /// network, and neither its addresses nor its connections can move.
    pub fn is_host(&self) -> Result<bool> {
        if self.identity == Self::own()?.identity {
            return Ok(true);
        }
        // An agent in a container of its own may not see the machine's init.
        Ok(Self::of(1).is_ok_and(|init| init.identity == self.identity))
    }

    /// [`Error::HostNetwork`] if the namespace is the host's own.
    pub fn refuse_host(&self) -> Result<()> {
        if self.is_host()? { Err(Error::HostNetwork { namespace: self.to_string() }) } else { Ok(()) }
    }

    /// Every process that the agent sees in the namespace. Those that do not belong to the container share its
    /// addresses (a pod), and would lose them.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let failed = |source| Error::List { what: "processes", namespace: self.label.clone(), source };
        let pids = fs::read_dir("/proc").map_err(failed)?.filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            // A process that has ended meanwhile is in no namespace.
            let metadata = fs::metadata(format!("/proc/{pid}/ns/net")).ok()?;
            ((metadata.dev(), metadata.ino()) == self.identity).then_some(pid)
        });
        Ok(pids.collect())
    }

    /// Runs `work` on a new thread inside the namespace and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let enter = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .map_err(|source| Error::Enter { namespace: self.label.clone(), source })?;
            Ok(work())
        };
        thread::scope(|scope| {
            let started = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, enter);
            let handle = started.map_err(|source| Error::Thread { namespace: self.label.clone(), source })?;
            handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Namespace {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
