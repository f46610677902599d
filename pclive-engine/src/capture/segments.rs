//! System V IPC of the container: segments are carried, semaphores and message queues refused.
//!
//! A thread of its own enters the container's IPC namespace for a moment. Segments that a process has attached are read
//! through that mapping; one that nobody has is attached here for an instant, which shows in its times alone. Kernel:
//! `/proc/sysvipc` speaks of the reader's namespace, setns(2) of IPC moves one thread.

use std::fs::File;
use std::io;
use std::thread;

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
fn inside<T: Send>(init: Pid, work: impl FnOnce() -> io::Result<T> + Send) -> Result<Option<T>, FilesError> {
    let link = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/ipc"));
    let same = link("self").and_then(|own| Ok(link(&init.to_string())? == own));
    if same.map_err(|error| failed(init, &error))? {
        return Ok(None);
    }
    let namespace = shm::open_namespace(init).map_err(|error| failed(init, &error))?;
    let done = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            shm::enter_namespace(&namespace)?;
            work()
        });
        thread.join()
    });
    done.map_err(|_| FilesError::Thread)?.map(Some).map_err(|error| failed(init, &error))
}

fn failed(init: Pid, error: &io::Error) -> FilesError {
    let source =
        error.raw_os_error().map_or_else(|| io::ErrorKind::InvalidData.into(), io::Error::from_raw_os_error);
    FilesError::Read { path: format!("the System V IPC of process {init}"), source }
}
