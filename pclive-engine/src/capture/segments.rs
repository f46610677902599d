//! System V IPC of the container: segments are carried, semaphores and message queues refused.
//!
//! The calling thread enters the container's IPC namespace for a moment and comes back. Segments that a process has
//! attached are read through that mapping; one that nobody has is attached here for an instant, which shows in its times
//! alone. Kernel: `/proc/sysvipc` speaks of the reader's namespace, setns(2) of IPC moves one thread.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use super::files::FilesError;
use crate::memory::object::ObjectKey;
use crate::memory::{MemoryError, Objects};
use crate::model::layout::ObjectKind;
use crate::model::{Pid, tree::Segment};
use crate::proc::sysvipc;
use crate::sys::shm;

/// System V IPC of a container.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) segments: Vec<Segment>,
    /// Semaphore sets and message queues: how many of each.
    pub(super) others: (usize, usize),
}

/// Lists what the container has; `None` if it shares its IPC namespace with the agent.
pub(super) fn list(init: Pid) -> Result<Option<Found>, FilesError> {
    inside(init, || {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/sysvipc/{name}"));
        let segments = sysvipc::parse_segments(&read("shm")?)
            .map_err(|line| io::Error::new(io::ErrorKind::InvalidData, line))?;
        Ok(Found { segments, others: (sysvipc::count(&read("sem")?), sysvipc::count(&read("msg")?)) })
    })
}

/// Tells `objects` what segments there are: before mappings are read.
pub(super) fn tell(found: Option<&Found>, objects: &mut Objects) {
    objects.lists_segments = found.is_some();
    let segments = found.map_or(&[][..], |found| &found.segments);
    objects.segments = segments.iter().map(|segment| (segment.id, *segment)).collect();
}

/// Holds every segment: after mappings are read. Those that no mapping shows are opened here.
pub(super) fn hold(init: Pid, objects: &mut Objects) -> Result<(), FilesError> {
    let segments: Vec<Segment> = objects.segments.values().copied().collect();
    for segment in segments {
        let open = || open(init, segment.id);
        match objects.identify(ObjectKey::Segment(segment.id), ObjectKind::Segment(segment), open) {
            Ok(id) => objects.hold(id),
            // It was removed meanwhile.
            Err(MemoryError::Proc { source: nix::Error::EINVAL | nix::Error::EIDRM, .. }) => {}
            Err(MemoryError::Proc { source, .. }) => return Err(failed(init, &source.into())),
            Err(_) => return Err(failed(init, &io::Error::from_raw_os_error(libc::EIO))),
        }
    }
    Ok(())
}

fn open(init: Pid, id: i32) -> Result<File, MemoryError> {
    let proc = |source| MemoryError::Proc { pid: init, name: "shared memory".into(), source };
    let opened = inside(init, || {
        // Where the kernel removes what nobody has attached, attaching and detaching would end it.
        if std::fs::read_to_string("/proc/sys/kernel/shm_rmid_forced")?.trim() != "0" {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        shm::open(id, false).map_err(io::Error::from)
    });
    match opened {
        Ok(Some(file)) => Ok(file),
        Ok(None) => Err(proc(nix::Error::EINVAL)),
        Err(FilesError::Read { source, .. }) => Err(proc(crate::memory::errno(&source))),
        Err(_) => Err(proc(nix::Error::EIO)),
    }
}

/// Runs `work` in the container's IPC namespace; `None` if that is the agent's own.
fn inside<T>(init: Pid, work: impl FnOnce() -> io::Result<T>) -> Result<Option<T>, FilesError> {
    let visited = Visit::to(init).and_then(|visit| {
        let Some(visit) = visit else { return Ok(None) };
        let done = work();
        visit.leave()?;
        done.map(Some)
    });
    visited.map_err(|error| failed(init, &error))
}

/// The calling thread is in the container's IPC namespace, until this is dropped.
struct Visit {
    /// The agent's own, as the first thread of the agent has it, so that the next visit makes up for a return that
    /// failed.
    home: Option<OwnedFd>,
}

impl Visit {
    /// `None` if the container has the agent's namespace.
    fn to(init: Pid) -> io::Result<Option<Self>> {
        let link = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/ipc"));
        if link("self")? == link(&init.to_string())? {
            return Ok(None);
        }
        let home = File::open("/proc/self/ns/ipc")?.into();
        shm::enter_namespace(&shm::open_namespace(init)?)?;
        Ok(Some(Self { home: Some(home) }))
    }

    fn leave(mut self) -> io::Result<()> {
        let home = self.home.take();
        Ok(home.as_ref().map_or(Ok(()), shm::enter_namespace)?)
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.home.as_ref().map(shm::enter_namespace) {
            tracing::error!(%error, "a thread of the agent stays in the IPC namespace of a container");
        }
    }
}

fn failed(init: Pid, error: &io::Error) -> FilesError {
    let source =
        error.raw_os_error().map_or_else(|| io::ErrorKind::InvalidData.into(), io::Error::from_raw_os_error);
    FilesError::Read { path: format!("the System V IPC of process {init}"), source }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::capture::vmas;

    /// A process, in an IPC namespace of its own or not; it ends with this.
    struct Stranger(Child);

    impl Stranger {
        fn start() -> Self {
            Self::run("unshare", &["--ipc", "sh", "-c", "echo; exec cat"])
        }

        fn run(program: &str, arguments: &[&str]) -> Self {
            let mut command = Command::new(program);
            command.args(arguments);
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            // It has come so far once it has said so.
            io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
            Self(child)
        }

        fn pid(&self) -> Pid {
            Pid(self.0.id().cast_signed())
        }
    }

    impl Drop for Stranger {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Attaches a segment that goes with the process.
    const ATTACHED: &str = "import ctypes; libc = ctypes.CDLL(None); libc.shmat.restype = ctypes.c_void_p
id = libc.shmget(0, 4096, 0o1600); at = libc.shmat(id, None, 0); libc.shmctl(id, 0, None); print(); input()";

    fn here() -> io::Result<std::path::PathBuf> {
        std::fs::read_link("/proc/thread-self/ns/ipc")
    }

    #[test]
    fn the_calling_thread_visits_the_namespace_and_comes_back() {
        let (stranger, home) = (Stranger::start(), here().unwrap());
        let there = std::fs::read_link(format!("/proc/{}/ns/ipc", stranger.pid())).unwrap();
        let visited = inside(stranger.pid(), || Ok((nix::unistd::gettid(), here()?))).unwrap();
        assert_eq!(visited, Some((nix::unistd::gettid(), there)));
        assert_eq!(here().unwrap(), home);
    }

    #[test]
    fn the_thread_comes_back_from_failed_work() {
        let (stranger, home) = (Stranger::start(), here().unwrap());
        let failed = inside(stranger.pid(), || Err::<(), _>(io::Error::from_raw_os_error(libc::EIO)));
        assert!(failed.is_err());
        assert_eq!(here().unwrap(), home);
    }

    #[test]
    fn the_namespace_of_the_agent_is_not_listed() {
        assert!(list(Pid(std::process::id().cast_signed())).unwrap().is_none());
    }

    #[test]
    fn an_attached_segment_of_the_agents_namespace_is_refused() {
        let stranger = Stranger::run("python3", &["-u", "-c", ATTACHED]);
        let mut objects = Objects::new();
        tell(list(stranger.pid()).unwrap().as_ref(), &mut objects);
        let found = vmas::read_vmas(stranger.pid(), &mut objects, &[], true).unwrap();
        let refused: Vec<&str> = found.blockers.iter().map(|blocker| &blocker.what[..]).collect();
        assert_eq!(refused, ["shared memory of SysV IPC of another container, or of the host"]);
    }
}
