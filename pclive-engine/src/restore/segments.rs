//! System V segments of the copy: made with the ids and keys of the source, in the container's IPC namespace, by a
//! thread of its own that enters it. Nothing is made, changed or removed in the agent's own namespace.
//!
//! Until [`finish`] everybody may attach a segment: restorers do so before they have the identities of their processes.
//! Kernel: `/proc/sys/kernel/shm_next_id` (Linux 3.8, `CONFIG_CHECKPOINT_RESTORE`).

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::thread;

use nix::errno::Errno;

use crate::model::layout::ObjectLayout;
use crate::model::tree::Segment;
use crate::model::{Mapping, PAGE_SIZE, Pid, Vma};
use crate::remote::Call;
use crate::sys::shm;

const NEXT_ID: &str = "/proc/sys/kernel/shm_next_id";
/// For everybody, until the segment has its owner.
const OPEN: u32 = 0o777;

/// A segment cannot be made like the source's.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// An operation on a segment.
    #[error("cannot {verb} the System V segment {id} in the container")]
    Call {
        /// "make" ...
        verb: &'static str,
        /// Its id.
        id: i32,
        /// Why.
        source: io::Error,
    },
    /// The id is in use.
    #[error("cannot make the System V segment {wanted}: the kernel gave it id {got}")]
    IdTaken {
        /// The id it should have.
        wanted: i32,
        /// The id it got.
        got: i32,
    },
    /// The container has no IPC namespace of its own.
    #[error(
        "cannot carry System V segment {id}: the container shares the IPC namespace of this host; add {{\"type\": \
         \"ipc\"}} to linux.namespaces in the config.json of its bundle here"
    )]
    SharedNamespace {
        /// The segment's id.
        id: i32,
    },
    /// The thread in the namespace ended early.
    #[error("cannot work in the IPC namespace of the container: a thread ended early")]
    Thread,
}

impl SegmentError {
    /// Another segment has the key.
    pub(super) fn is_key_taken(&self) -> bool {
        let source = match self {
            Self::Call { source, .. } => source.raw_os_error(),
            Self::IdTaken { .. } | Self::SharedNamespace { .. } | Self::Thread => None,
        };
        source == Some(libc::EEXIST)
    }
}

/// Makes a segment, in huge pages or in ordinary ones; the file below it.
pub(super) fn create(init: Pid, segment: Segment, huge: bool) -> Result<File, SegmentError> {
    let (uid, gid) = segment.creator;
    let key = if segment.removed { libc::IPC_PRIVATE } else { segment.key };
    let call = |verb| move |source: Errno| SegmentError::Call { verb, id: segment.id, source: source.into() };
    inside(init, segment.id, || {
        std::fs::write(NEXT_ID, segment.id.to_string()).map_err(|source| SegmentError::Call {
            verb: "choose the id of",
            id: segment.id,
            source,
        })?;
        // Its creator's ids are those of whoever makes it, for good.
        shm::become_user(uid, gid, huge).map_err(call("act for the creator of"))?;
        let size = usize::try_from(segment.size).unwrap_or(usize::MAX);
        let id = shm::create(key, size, OPEN, huge).map_err(call("make"))?;
        if id != segment.id {
            let _ = shm::remove(id);
            return Err(SegmentError::IdTaken { wanted: segment.id, got: id });
        }
        Ok(())
    })?;
    inside(init, segment.id, || shm::open(segment.id, true).map_err(call("open")))
}

/// Gives segments their owners, and removes those that are removed at the source.
pub(super) fn finish(init: Pid, segments: &[Segment]) -> Result<(), SegmentError> {
    let Some(first) = segments.first() else { return Ok(()) };
    inside(init, first.id, || {
        for Segment { id, owner, removed, .. } in segments {
            let call =
                |verb| move |source: Errno| SegmentError::Call { verb, id: *id, source: source.into() };
            shm::set_owner(*id, owner.uid, owner.gid, owner.mode).map_err(call("give away"))?;
            if *removed {
                shm::remove(*id).map_err(call("remove"))?;
            }
        }
        Ok(())
    })
}

/// Removed segments among `objects` that a process keeps attached while its mappings change from the first list to the
/// second: they can be removed here too, without going at once.
pub(super) fn kept<'a>(
    objects: &[ObjectLayout],
    processes: impl Iterator<Item = (&'a [Vma], &'a [Vma])>,
) -> Vec<i32> {
    let stays = |(old, new): (&'a [Vma], &'a [Vma])| old.iter().filter(|vma| new.contains(vma));
    let attached: HashSet<u64> = processes.flat_map(stays).filter_map(|vma| vma.mapping.object()).collect();
    let there = objects.iter().filter(|object| attached.contains(&object.id));
    let segments = there.filter_map(|object| super::objects::segment_of(&object.kind));
    segments.filter(|segment| segment.removed).map(|segment| segment.id).collect()
}

/// Removes segments: those that the source does not have any more, and those of [`kept`].
pub(super) fn remove(init: Pid, ids: &[i32]) -> Result<(), SegmentError> {
    let Some(first) = ids.first() else { return Ok(()) };
    inside(init, *first, || {
        let remove = |id: &i32| {
            let failed =
                |source: Errno| SegmentError::Call { verb: "remove", id: *id, source: source.into() };
            match shm::remove(*id) {
                // Removed before, it went with the last process that had it attached.
                Err(Errno::EINVAL | Errno::EIDRM) => Ok(()),
                done => done.map_err(failed),
            }
        };
        ids.iter().try_for_each(remove)
    })
}

/// Runs `work` in a thread in the container's IPC namespace, which must not be the agent's own.
fn inside<T: Send>(
    init: Pid,
    id: i32,
    work: impl FnOnce() -> Result<T, SegmentError> + Send,
) -> Result<T, SegmentError> {
    let failed = |source| SegmentError::Call { verb: "enter the namespace of", id, source };
    let link = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/ipc"));
    if link("self").map_err(failed)? == link(&init.to_string()).map_err(failed)? {
        return Err(SegmentError::SharedNamespace { id });
    }
    let namespace = shm::open_namespace(init).map_err(failed)?;
    let done = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            shm::enter_namespace(&namespace).map_err(|source| failed(source.into()))?;
            work()
        });
        thread.join()
    });
    done.map_err(|_| SegmentError::Thread)?
}

/// True if a mapping shows all of a segment of `size` bytes.
pub(super) fn is_whole(vma: &Vma, size: u64) -> bool {
    offset_of(vma) == 0 && vma.len() == size.next_multiple_of(PAGE_SIZE)
}

/// shmat(2) at an address, 0 for any; as writable and executable as the mapping may be.
pub(super) fn attach_call(vma: &Vma, segment: Segment, at: u64) -> Call {
    let may_write = matches!(vma.mapping, Mapping::SharedObject { may_write: true, .. });
    let read_only = if may_write { 0 } else { libc::SHM_RDONLY };
    let exec = if vma.protection.exec { libc::SHM_EXEC } else { 0 };
    Call::new(libc::SYS_shmat, &[segment.id as u64, at, (read_only | exec) as u64])
}

/// The calls that make a mapping of a segment. `attached`: where the segment is, of which a part is to be mapped.
pub(super) fn map_calls(
    vma: &Vma,
    segment: Segment,
    size: u64,
    attached: Option<u64>,
) -> impl Iterator<Item = Call> {
    let mut calls = Vec::with_capacity(4);
    match attached {
        None => calls.push(attach_call(vma, segment, vma.start)),
        Some(at) => {
            let (offset, len) = (offset_of(vma), vma.len());
            let size = size.next_multiple_of(PAGE_SIZE);
            let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
            calls.push(Call::new(libc::SYS_mremap, &[at + offset, len, len, flags, vma.start]));
            let rest = [(at, offset), (at + offset + len, size.saturating_sub(offset + len))];
            let rest = rest.iter().filter(|(_, len)| *len > 0);
            calls.extend(rest.map(|(start, len)| Call::new(libc::SYS_munmap, &[*start, *len])));
        }
    }
    let bits = super::mappings::protection_bits(vma.protection);
    calls.push(Call::new(libc::SYS_mprotect, &[vma.start, vma.len(), bits]));
    calls.into_iter()
}

fn offset_of(vma: &Vma) -> u64 {
    match &vma.mapping {
        Mapping::SharedObject { offset, .. } | Mapping::PrivateObject { offset, .. } => *offset,
        Mapping::PrivateAnonymous
        | Mapping::PrivateHuge
        | Mapping::PrivateFile(_)
        | Mapping::SharedFile { .. } => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::model::layout::ObjectKind;
    use crate::model::tree::Ownership;
    use crate::model::{Protection, VmaFlags};

    /// Attaches the segments whose ids it is told, and answers each with how it went.
    const ATTACHER: &str = "import ctypes; libc = ctypes.CDLL(None); libc.shmat.restype = ctypes.c_long
while True: print('y' if libc.shmat(int(input()), None, 0) != -1 else 'n', end='', flush=True)";

    /// A process in an IPC namespace of its own.
    struct Container(Child);

    impl Container {
        fn start() -> Self {
            let mut command = Command::new("unshare");
            command.args(["--ipc", "python3", "-c", ATTACHER]).stderr(Stdio::null());
            let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let mut container = Self(child);
            // It is in its namespace once it answers.
            assert!(!container.attaches(i32::MAX));
            container
        }

        fn init(&self) -> Pid {
            Pid(self.0.id().cast_signed())
        }

        fn attaches(&mut self, id: i32) -> bool {
            writeln!(self.0.stdin.as_mut().unwrap(), "{id}").unwrap();
            let mut answer = [0];
            self.0.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
            answer == *b"y"
        }
    }

    impl Drop for Container {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn segment(id: i32, key: i32, removed: bool) -> Segment {
        let owner = Ownership { mode: 0o600, ..Ownership::default() };
        Segment { id, key, size: 4096, owner, creator: (0, 0), removed }
    }

    #[test]
    fn key_of_a_removed_segment_that_stays_attached_can_be_used_again() {
        let mut container = Container::start();
        let init = container.init();
        create(init, segment(5, 42, false), false).unwrap();
        assert!(container.attaches(5));
        let taken = create(init, segment(6, 42, false), false).unwrap_err();
        assert!(taken.is_key_taken(), "{taken:?}");
        remove(init, &[5]).unwrap();
        create(init, segment(6, 42, false), false).unwrap();
        assert!(container.attaches(5) && container.attaches(6));
        finish(init, &[segment(5, 0, true), segment(6, 42, false)]).unwrap();
        assert!(container.attaches(5) && container.attaches(6));
    }

    #[test]
    fn segment_that_has_gone_is_removed() {
        let container = Container::start();
        create(container.init(), segment(5, 42, false), false).unwrap();
        remove(container.init(), &[5]).unwrap();
        remove(container.init(), &[5]).unwrap();
    }

    #[test]
    fn only_removed_segments_that_stay_attached_are_kept() {
        let vma = |object: u64, start: u64| Vma {
            start,
            end: start + PAGE_SIZE,
            protection: Protection::default(),
            flags: VmaFlags::default(),
            mapping: Mapping::SharedObject { object, offset: 0, may_write: true },
        };
        let object = |id: u64, segment| ObjectLayout {
            id,
            size: 4096,
            huge: false,
            kind: ObjectKind::Segment(segment),
        };
        let objects = [
            object(1, segment(11, 0, true)),
            object(2, segment(12, 0, true)),
            object(3, segment(13, 7, false)),
            object(4, segment(14, 0, true)),
        ];
        let (at, elsewhere) = (PAGE_SIZE, 9 * PAGE_SIZE);
        let old = [vma(1, at), vma(2, 2 * at), vma(3, 3 * at)];
        let new = [vma(1, at), vma(3, 3 * at), vma(4, 4 * at), vma(2, elsewhere)];
        assert_eq!(kept(&objects, [(&old[..], &new[..])].into_iter()), [11]);
    }

    #[test]
    fn the_namespace_of_the_agent_is_not_entered() {
        let here = Pid(std::process::id().cast_signed());
        let id = i32::MAX;
        let segment = segment(id, libc::IPC_PRIVATE, true);
        let refused = |result: Result<(), SegmentError>| {
            assert!(matches!(result, Err(SegmentError::SharedNamespace { id: i32::MAX })), "{result:?}");
        };
        refused(create(here, segment, false).map(drop));
        refused(finish(here, &[segment]));
        refused(remove(here, &[id]));
    }

    #[test]
    fn a_container_in_the_namespace_of_the_agent_may_have_no_segments() {
        let here = Pid(std::process::id().cast_signed());
        assert!(finish(here, &[]).is_ok());
        assert!(remove(here, &[]).is_ok());
    }
}
