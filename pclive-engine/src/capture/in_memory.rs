//! What the container has in memory beside the mappings of its processes: file systems, System V segments, files that
//! only a descriptor leads to.
//!
//! Asked in every round, in this order: [`InMemory::find`] before mappings are read, which need to know; then
//! [`hold_descriptors`] (while the container runs: what is younger than the last round is in passing in the stop), and
//! [`InMemory::hold`].

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use nix::sys::stat::{major, minor};

use super::check::blocker;
use super::files::FilesError;
use super::segments::{self, Found};
use super::tree::TreeProcess;
use super::trees::{self, Refused};
use super::vmas::{Obstacle, unfit_pages};
use crate::memory::huge::Unfit;
use crate::memory::object::ObjectKey;
use crate::memory::{MemoryError, Objects};
use crate::model::layout::ObjectKind;
use crate::model::tree::{MemoryTree, Ownership};
use crate::model::{Blocker, Pid, Place};
use crate::proc::mountinfo::Mount;
use crate::proc::root::ContainerRoot;

/// What was found before the mappings were read.
#[derive(Debug)]
pub(super) struct InMemory {
    init: Pid,
    mounts: Vec<Mount>,
    ipc: Option<Found>,
}

impl InMemory {
    /// Looks for it, and tells `objects` what it needs to know of mappings.
    pub(super) fn find(init: Pid, objects: &mut Objects) -> Result<Self, FilesError> {
        let mounts = trees::find(init, objects)?;
        let ipc = segments::list(init)?;
        segments::tell(ipc.as_ref(), objects);
        Ok(Self { init, mounts, ipc })
    }

    /// Makes an object of every file and segment, and returns the directories. What cannot be carried is told as of
    /// `process`.
    pub(super) fn hold(
        &self,
        root: &ContainerRoot,
        process: &TreeProcess,
        objects: &mut Objects,
    ) -> Result<(Vec<MemoryTree>, Vec<Blocker>), FilesError> {
        segments::hold(self.init, objects)?;
        let (trees, refused) = trees::read(root, &self.mounts, objects)?;
        let mut blockers: Vec<Blocker> =
            refused.into_iter().map(|refused| of_mount(process, refused)).collect();
        blockers.extend(objects.unfit().filter_map(|(kind, unfit)| {
            let name = match kind {
                ObjectKind::Anonymous => "shared memory",
                ObjectKind::Memfd { .. } => "a memfd",
                ObjectKind::Segment(_) => "a System V segment",
                // Told of its mount.
                ObjectKind::TreeFile if matches!(unfit, Unfit::PageSize(_)) => return None,
                ObjectKind::TreeFile | ObjectKind::Unlinked { .. } | ObjectKind::File(_) => "a file",
            };
            let Obstacle { what, hint } = unfit_pages(unfit);
            Some(blocker(process, Place::Process, format!("{name} in {what}"), hint))
        }));
        let (semaphores, queues) = self.ipc.as_ref().map_or((0, 0), |found| found.others);
        let mut refuse = |count: usize, what: &str, hint: &str| {
            if count > 0 {
                blockers.push(blocker(process, Place::Process, what.into(), hint));
            }
        };
        let hint = "stop what uses them (ipcs -s), or let it use POSIX semaphores";
        refuse(semaphores, "the container has System V semaphores", hint);
        refuse(queues, "the container has System V message queues", "stop what uses them (ipcs -q)");
        Ok((trees, blockers))
    }

    /// Memory of the file systems, bytes.
    pub(super) fn file_bytes(init: Pid) -> u64 {
        let Ok(mounts) = super::files::mounts::own_memory(init) else { return 0 };
        let Ok(root) = ContainerRoot::open(init) else { return 0 };
        let used = |mount: &Mount| {
            let place = root.resolve(&mount.point).ok()?;
            let about = nix::sys::statfs::fstatfs(&place).ok()?;
            let blocks = about.blocks().saturating_sub(about.blocks_free());
            Some(blocks.saturating_mul(u64::try_from(about.block_size()).unwrap_or(0)))
        };
        mounts.iter().filter_map(used).sum()
    }
}

/// A program that the destination could not execute yet when it has to: its file comes with the round.
pub(super) fn program(process: &TreeProcess, objects: &Objects) -> Option<Blocker> {
    let about = std::fs::metadata(format!("/proc/{}/exe", process.pid)).ok()?;
    let number = |part: u64| u32::try_from(part).unwrap_or(u32::MAX);
    let device = (number(major(about.dev())), number(minor(about.dev())));
    let what = "a program that was started from a file system in memory".into();
    let hint = "start it from the image or a volume that both hosts have";
    objects.memory.contains_key(&device).then(|| blocker(process, Place::Process, what, hint))
}

fn of_mount(process: &TreeProcess, refused: Refused) -> Blocker {
    blocker(process, Place::Mount(refused.point), refused.what, refused.hint)
}

/// Makes an object of every file in memory that no path leads to and a descriptor of these processes does.
pub(super) fn hold_descriptors(
    processes: impl Iterator<Item = Pid>,
    objects: &mut Objects,
) -> Result<(), MemoryError> {
    objects.release_nameless();
    for pid in processes {
        // A process that ends meanwhile has no descriptors.
        let Ok(links) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for link in links.flatten() {
            let path = link.path();
            let Ok(target) = std::fs::read_link(&path) else { continue };
            let target = target.as_os_str().as_bytes();
            let name = target.strip_suffix(b" (deleted)").filter(|name| name.starts_with(b"/"));
            let Some(name) = name else { continue };
            let Ok(about) = std::fs::metadata(&path) else { continue };
            let number = |part: u64| u32::try_from(part).unwrap_or(u32::MAX);
            let device = (number(major(about.dev())), number(minor(about.dev())));
            if !about.is_file() || about.nlink() != 0 {
                continue;
            }
            let owner = Ownership::default();
            let kind = match (name.strip_prefix(b"/memfd:"), objects.memory.get(&device)) {
                (Some(name), _) => ObjectKind::Memfd { name: name.to_vec(), owner, seals: 0 },
                (None, Some(point)) => ObjectKind::Unlinked { point: point.clone(), owner },
                (None, None) => continue,
            };
            let open = || {
                let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
                let same = opened.and_then(|file| match file.metadata()?.ino() == about.ino() {
                    true => Ok(file),
                    // The number has another file by now.
                    false => Err(std::io::Error::from(std::io::ErrorKind::NotFound)),
                });
                same.map_err(|error| match error.kind() {
                    std::io::ErrorKind::NotFound => MemoryError::AddressSpaceGone { pid },
                    _ => MemoryError::Proc { pid, name: "fd".into(), source: crate::memory::errno(&error) },
                })
            };
            match objects.identify(ObjectKey::File(device, about.ino()), kind, open) {
                Ok(id) => objects.hold(id),
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}
