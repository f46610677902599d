//! The container's mounts, and what is in those that live in memory.
//!
//! Bind mounts and the root file system are taken to be the same at the destination. A tmpfs that the runtime
//! made for the container is empty there: one that holds data is refused. (One that the host has mounted too
//! is a bind mount of the host's.)

use std::collections::HashSet;
use std::os::fd::OwnedFd;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode as Permissions, SFlag, fstat, fstatat, major, minor};

use super::FilesError;
use super::Mode;
use super::refusal::{Refusal, printable};
use crate::model::Pid;
use crate::proc::mountinfo::{self, Mount};
use crate::proc::root::ContainerRoot;

/// Entries looked at in one mount before it is refused unseen.
const MOST_ENTRIES: usize = 100_000;

/// The mounts that init sees.
#[derive(Debug)]
pub(super) struct Mounts {
    mounts: Vec<Mount>,
    ids: HashSet<i32>,
}

/// What a walk through a tmpfs found.
enum Contents {
    Nothing,
    /// A regular file with data.
    File(Vec<u8>),
    TooMany,
}

impl Mounts {
    pub(super) fn read(init: Pid) -> Result<Self, FilesError> {
        let mounts = mounts_of(&init.to_string())?;
        let ids = mounts.iter().map(|mount| mount.id).collect();
        Ok(Self { mounts, ids })
    }

    pub(super) fn contains(&self, id: i32) -> bool {
        self.ids.contains(&id)
    }

    /// Mount points in memory that hold data, each with the reason.
    pub(super) fn with_data(
        &self,
        root: &ContainerRoot,
        mode: Mode,
    ) -> Result<Vec<(String, Refusal)>, FilesError> {
        let host: HashSet<(u32, u32)> = mounts_of("self")?.iter().map(|mount| mount.device).collect();
        let mut found = Vec::new();
        for mount in self.mounts.iter().filter(|mount| is_own_memory(mount, &host)) {
            if let Some(refusal) = mode.forgive(refusal(root, mount))?.flatten() {
                found.push((printable(&mount.point), refusal));
            }
        }
        Ok(found)
    }
}

fn mounts_of(process: &str) -> Result<Vec<Mount>, FilesError> {
    let path = format!("/proc/{process}/mountinfo");
    let text = std::fs::read(&path).map_err(|source| FilesError::Read { path: path.clone(), source })?;
    mountinfo::parse(&text).map_err(|source| FilesError::Mounts { path, source })
}

fn is_own_memory(mount: &Mount, host: &HashSet<(u32, u32)>) -> bool {
    let in_memory = mount.kind == b"tmpfs" || mount.kind == b"ramfs";
    in_memory && mount.root == b"/" && !mount.read_only && !host.contains(&mount.device)
}

fn refusal(root: &ContainerRoot, mount: &Mount) -> Result<Option<Refusal>, FilesError> {
    let what = match walk(root, mount)? {
        Contents::Nothing => return Ok(None),
        Contents::File(path) => format!("file system in memory that holds data: {}", printable(&path)),
        Contents::TooMany => format!("file system in memory with more than {MOST_ENTRIES} entries"),
    };
    Ok(Some(Refusal::new(what, "remove the files, or give the container a bind mount that both hosts have")))
}

fn walk(root: &ContainerRoot, mount: &Mount) -> Result<Contents, FilesError> {
    let mut waiting = vec![mount.point.clone()];
    let mut seen = 0;
    while let Some(path) = waiting.pop() {
        let failed = |source| FilesError::Resolve { path: printable(&path), source };
        let Some(directory) = open(root, &path, mount.device).map_err(failed)? else { continue };
        for name in names(&directory).map_err(failed)? {
            seen += 1;
            if seen > MOST_ENTRIES {
                return Ok(Contents::TooMany);
            }
            let child = join(&path, &name);
            match look(&directory, &name, mount.device).map_err(failed)? {
                Child::Directory => waiting.push(child),
                Child::Data => return Ok(Contents::File(child)),
                Child::Nothing => {}
            }
        }
    }
    Ok(Contents::Nothing)
}

/// What a directory entry is to the walk.
enum Child {
    Directory,
    Data,
    Nothing,
}

fn look(directory: &OwnedFd, name: &[u8], device: (u32, u32)) -> nix::Result<Child> {
    let stat = match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::ENOENT) => return Ok(Child::Nothing),
        Err(error) => return Err(error),
    };
    let file_type = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    if file_type == SFlag::S_IFDIR {
        Ok(Child::Directory)
    } else if file_type == SFlag::S_IFREG && stat.st_size > 0 && is_on(stat.st_dev, device) {
        Ok(Child::Data)
    } else {
        Ok(Child::Nothing)
    }
}

/// Opens a directory without changing its access time; `None` if another mount is on top of it.
fn open(root: &ContainerRoot, path: &[u8], device: (u32, u32)) -> nix::Result<Option<OwnedFd>> {
    let place = root.resolve(path)?;
    let stat = fstat(&place)?;
    if !is_on(stat.st_dev, device) || stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFDIR.bits() {
        return Ok(None);
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOATIME | OFlag::O_CLOEXEC;
    nix::fcntl::openat(&place, ".", flags, Permissions::empty()).map(Some)
}

/// The names in a directory; one more than [`MOST_ENTRIES`] at most.
fn names(directory: &OwnedFd) -> nix::Result<Vec<Vec<u8>>> {
    let copy = directory.try_clone().map_err(|_| Errno::EMFILE)?;
    let mut listing = Dir::from_fd(copy)?;
    let mut names = Vec::new();
    for entry in listing.iter() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
        if names.len() > MOST_ENTRIES {
            break;
        }
    }
    Ok(names)
}

fn is_on(device: u64, mount: (u32, u32)) -> bool {
    (major(device), minor(device)) == (u64::from(mount.0), u64::from(mount.1))
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    [path.strip_suffix(b"/").unwrap_or(path), b"/", name].concat()
}
