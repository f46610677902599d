//! The container's file systems in memory, made like those of the source.
//!
//! [`Trees::follow`] makes, links, renames and removes what the newest layout tells; data comes as objects, which are
//! opened here. [`Trees::finish`] sets times, which everything else changes. What the runtime has made and the source
//! has too stays as it is; devices are never made here. Nobody runs in the container meanwhile. Nothing leaves the
//! file system of the mount: every directory of a path is looked at first. Kernel: openat2(2).

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstat, fstatat, major, minor, mkdirat,
    mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};

use super::RestoreError;
use crate::capture::files::FilesError;
use crate::capture::files::mounts::own_memory;
use crate::memory::{ObjectStore, huge};
use crate::model::Pid;
use crate::model::layout::{Layout, ObjectLayout};
use crate::model::tree::{MemoryTree, Node, NodeKind, Ownership, carries_attribute};
use crate::proc::mountinfo::Mount;
use crate::sys::{openat2, xattr};

/// Names for the moment between the birth of a file and its place.
const BORN: &str = ".pclive-born-";

/// A file system in memory cannot be made like the source's.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// An operation on a path.
    #[error("cannot {verb} {path} in the container's file system in memory")]
    Path {
        /// "make" ...
        verb: &'static str,
        /// Path inside the container, made printable.
        path: String,
        /// Why.
        source: Errno,
    },
    /// What is mounted in the created container cannot be read.
    #[error("cannot read the mounts of the created container")]
    Mounts(#[source] FilesError),
    /// The created container has no such mount of its own.
    #[error(
        "cannot fill {point}: it is no {kind} of the created container's own; both bundles must mount one there"
    )]
    NoMount {
        /// Mount point, made printable.
        point: String,
        /// "tmpfs" ...
        kind: &'static str,
    },
    /// The created container lacks a device.
    #[error("cannot make the device {path}: the destination's bundle must have it")]
    Device {
        /// Path inside the container, made printable.
        path: String,
    },
    /// A path leads into another file system.
    #[error("cannot use {path}: another file system is mounted there")]
    Covered {
        /// Path inside the container, made printable.
        path: String,
    },
}

/// The trees as they are here.
#[derive(Debug)]
pub(super) struct Trees {
    init: Pid,
    /// The container's own file systems in memory, once they were asked for: nothing is ever mounted any more.
    own: Option<Vec<Mount>>,
    applied: Vec<MemoryTree>,
}

/// Refuses what is not the created container's own: a tmpfs of the host, by a bind mount, is somebody else's.
fn require_own(own: &[Mount], top: &OwnedFd, point: &[u8], is_huge: bool) -> Result<(), TreeError> {
    let stat =
        fstat(top).map_err(|source| TreeError::Path { verb: "look at", path: printable(point), source })?;
    let device = (major(stat.st_dev), minor(stat.st_dev));
    let (kind, words) =
        if is_huge { (&b"hugetlbfs"[..], "hugetlbfs with pages of 2 MiB") } else { (&b"tmpfs"[..], "tmpfs") };
    let is_it = |mount: &Mount| {
        mount.kind == kind
            && mount.point == point
            && (u64::from(mount.device.0), u64::from(mount.device.1)) == device
    };
    let same_pages = !is_huge || huge::page_size(top).is_some_and(huge::is_carried);
    if same_pages && own.iter().any(is_it) {
        Ok(())
    } else {
        Err(TreeError::NoMount { point: printable(point), kind: words })
    }
}

impl Trees {
    /// For the container whose init is `init`.
    pub(super) fn of(init: Pid) -> Self {
        Self { init, own: None, applied: Vec::new() }
    }

    fn own(&mut self) -> Result<&[Mount], TreeError> {
        let own = match self.own.take() {
            Some(own) => own,
            None => own_memory(self.init).map_err(TreeError::Mounts)?,
        };
        Ok(self.own.insert(own))
    }

    /// Makes a nameless file for an object in the file system at `point`; it can get a name later.
    pub(super) fn nameless(
        &mut self,
        root: &OwnedFd,
        point: &[u8],
        object: &ObjectLayout,
    ) -> Result<File, TreeError> {
        nameless(root, self.own()?, point, object)
    }

    /// Makes the trees match the layout. Files that are new get an object of their size, all zeros.
    pub(super) fn follow(
        &mut self,
        root: &OwnedFd,
        layout: &Layout,
        objects: &mut ObjectStore,
    ) -> Result<(), RestoreError> {
        let told: Told<'_> = layout.objects.iter().map(|object| (object.id, object)).collect();
        for tree in &layout.trees {
            let before = self.applied.iter().find(|applied| applied.point == tree.point);
            let same = before.is_some_and(|before| is_like(before, tree));
            if !same {
                Place::open(root, self.own()?, tree)?.follow(objects, &told)?;
            }
        }
        self.applied.clone_from(&layout.trees);
        Ok(())
    }

    /// Sets the times of everything. To be called when nothing is written any more.
    pub(super) fn finish(&self, root: &OwnedFd) -> Result<(), TreeError> {
        for tree in &self.applied {
            let place = Place::open(root, self.own.as_deref().unwrap_or_default(), tree)?;
            tree.nodes.iter().rev().try_for_each(|node| place.set_times(node))?;
        }
        Ok(())
    }
}

/// True if two trees differ in times only.
fn is_like(a: &MemoryTree, b: &MemoryTree) -> bool {
    let same = |(a, b): (&Node, &Node)| {
        (&a.path, &a.kind, a.owner, &a.attributes) == (&b.path, &b.kind, b.owner, &b.attributes)
    };
    a.nodes.len() == b.nodes.len() && a.nodes.iter().zip(&b.nodes).all(same)
}

/// A tree and where it belongs.
struct Place<'a> {
    tree: &'a MemoryTree,
    top: OwnedFd,
    device: u64,
}

/// The objects of a layout by id.
type Told<'a> = HashMap<u64, &'a ObjectLayout>;

/// What is at a path.
type Present = HashMap<Vec<u8>, FileStat>;

impl<'a> Place<'a> {
    fn open(root: &OwnedFd, own: &[Mount], tree: &'a MemoryTree) -> Result<Self, TreeError> {
        let failed = |source| TreeError::Path { verb: "open", path: printable(&tree.point), source };
        let path = Path::new(OsStr::from_bytes(&tree.point));
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_NOATIME;
        let top = openat2::in_root(root, path, flags).map_err(failed)?;
        require_own(own, &top, &tree.point, tree.huge)?;
        let device = fstat(&top).map_err(failed)?.st_dev;
        Ok(Self { tree, top, device })
    }

    fn follow(&self, objects: &mut ObjectStore, told: &Told<'_>) -> Result<(), RestoreError> {
        let mut present = self.present()?;
        let born = self.bear_files(&present, objects, told)?;
        self.remove_others(&mut present, &born)?;
        for (index, node) in self.tree.nodes.iter().enumerate() {
            self.make(index, node, &present, &born)?;
            self.dress(node)?;
        }
        Ok(())
    }

    /// Everything that is there now, in this file system.
    fn present(&self) -> Result<Present, TreeError> {
        let mut present = Present::new();
        let mut waiting = vec![Vec::new()];
        while let Some(path) = waiting.pop() {
            let names = self.names(&path).map_err(self.failed("list", &path))?;
            for name in names {
                let child = if path.is_empty() { name } else { [&path[..], b"/", &name].concat() };
                let stat = self.stat(&child).map_err(self.failed("look at", &child))?;
                let Some(stat) = stat.filter(|stat| stat.st_dev == self.device) else { continue };
                if file_type(&stat) == libc::S_IFDIR {
                    waiting.push(child.clone());
                }
                present.insert(child, stat);
            }
        }
        Ok(present)
    }

    /// Gives every file that is not in its place yet a passing name. First of all, so that files which change places
    /// are not lost.
    fn bear_files(
        &self,
        present: &Present,
        objects: &mut ObjectStore,
        told: &Told<'_>,
    ) -> Result<HashMap<usize, String>, RestoreError> {
        let mut born = HashMap::new();
        for (index, node) in self.tree.nodes.iter().enumerate() {
            let NodeKind::File { object } = node.kind else { continue };
            let name = format!("{BORN}{index}");
            match objects.file(object) {
                Some(file) => {
                    let own = fstat(file).map_err(self.failed("look at", &node.path))?;
                    if present.get(&node.path).is_some_and(|here| here.st_ino == own.st_ino) {
                        continue;
                    }
                    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
                    linkat(AT_FDCWD, link.as_str(), &self.top, name.as_str(), AtFlags::AT_SYMLINK_FOLLOW)
                        .map_err(self.failed("link", &node.path))?;
                }
                None => {
                    let object = *told.get(&object).ok_or(RestoreError::NoObject { id: object })?;
                    let file = self.bear(&name, object.size).map_err(self.failed("make", &node.path))?;
                    objects.insert(object, file)?;
                }
            }
            born.insert(index, name);
        }
        Ok(born)
    }

    fn bear(&self, name: &str, size: u64) -> nix::Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file =
            File::from(openat(&self.top, name, flags | OFlag::O_NOATIME, Mode::S_IRUSR | Mode::S_IWUSR)?);
        file.set_len(size).map_err(|error| crate::memory::errno(&error))?;
        Ok(file)
    }

    /// Removes what the source does not have, or has as something else, the deepest first.
    fn remove_others(&self, present: &mut Present, born: &HashMap<usize, String>) -> Result<(), TreeError> {
        let nodes: HashMap<&[u8], (usize, &Node)> =
            self.tree.nodes.iter().enumerate().map(|(index, node)| (&node.path[..], (index, node))).collect();
        let mut wrong: Vec<Vec<u8>> = Vec::new();
        for (path, stat) in &*present {
            let stays = match nodes.get(&path[..]) {
                Some((index, node)) => !born.contains_key(index) && self.is_same(node, stat)?,
                None => false,
            };
            if !stays {
                wrong.push(path.clone());
            }
        }
        wrong.sort_unstable_by_key(|path| std::cmp::Reverse(path.len()));
        for path in wrong {
            let is_directory = present.get(&path).is_some_and(|stat| file_type(stat) == libc::S_IFDIR);
            let flag = if is_directory { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
            unlinkat(&self.top, OsStr::from_bytes(&path), flag).map_err(self.failed("remove", &path))?;
            present.remove(&path);
        }
        Ok(())
    }

    /// True if what is there can stay as the node.
    fn is_same(&self, node: &Node, stat: &FileStat) -> Result<bool, TreeError> {
        let found = file_type(stat);
        Ok(match &node.kind {
            NodeKind::Directory => found == libc::S_IFDIR,
            NodeKind::File { .. } => found == libc::S_IFREG,
            NodeKind::Link(target) => {
                found == libc::S_IFLNK && {
                    let here = readlinkat(&self.top, OsStr::from_bytes(&node.path));
                    here.map_err(self.failed("read", &node.path))?.as_bytes() == &target[..]
                }
            }
            NodeKind::Fifo => found == libc::S_IFIFO,
            NodeKind::Socket => found == libc::S_IFSOCK,
            NodeKind::Device { file_type, number } => found == *file_type && stat.st_rdev == *number,
        })
    }

    fn make(
        &self,
        index: usize,
        node: &Node,
        present: &Present,
        born: &HashMap<usize, String>,
    ) -> Result<(), TreeError> {
        if node.path.is_empty() || present.contains_key(&node.path) {
            return Ok(());
        }
        let path = OsStr::from_bytes(&node.path);
        let open = Mode::S_IRUSR | Mode::S_IWUSR;
        let made = match &node.kind {
            NodeKind::Directory => mkdirat(&self.top, path, Mode::S_IRWXU),
            NodeKind::File { .. } => match born.get(&index) {
                Some(name) => renameat(&self.top, name.as_str(), &self.top, path),
                None => Err(Errno::ENOENT),
            },
            NodeKind::Link(target) => symlinkat(OsStr::from_bytes(target), &self.top, path),
            NodeKind::Fifo => mknodat(&self.top, path, SFlag::S_IFIFO, open, 0),
            NodeKind::Socket => mknodat(&self.top, path, SFlag::S_IFSOCK, open, 0),
            NodeKind::Device { .. } => return Err(TreeError::Device { path: self.name(&node.path) }),
        };
        match made {
            // A mount point that the source does not have.
            Err(Errno::EEXIST) => Err(TreeError::Covered { path: self.name(&node.path) }),
            made => made.map_err(self.failed("make", &node.path)),
        }
    }

    /// Owner, permissions, attributes; in this order, because a new owner takes bits away.
    fn dress(&self, node: &Node) -> Result<(), TreeError> {
        let failed = |verb| self.failed(verb, &node.path);
        let path = self.own(node);
        let Ownership { mode, uid, gid } = node.owner;
        let here = fstatat(&self.top, path, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed("look at"))?;
        let given = (here.st_uid, here.st_gid) != (uid, gid);
        if given {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            fchownat(&self.top, path, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed("give away"))?;
        }
        if !matches!(node.kind, NodeKind::Link(_)) && (here.st_mode & 0o7777 != mode || given) {
            let mode = Mode::from_bits_truncate(mode);
            fchmodat(&self.top, path, mode, FchmodatFlags::FollowSymlink)
                .map_err(failed("set the mode of"))?;
        }
        self.attribute(node).map_err(failed("set the attributes of"))
    }

    /// Extended attributes: the node's and no others. (A directory hands its default ACL down.)
    fn attribute(&self, node: &Node) -> nix::Result<()> {
        let link = format!("/proc/self/fd/{}/", self.top.as_fd().as_raw_fd());
        let path = CString::new([link.as_bytes(), self.own(node).as_bytes()].concat());
        let path = path.map_err(|_| Errno::EINVAL)?;
        for name in xattr::list(&path)? {
            let wanted = node.attributes.iter().any(|(wanted, _)| wanted == name.as_bytes());
            if carries_attribute(name.as_bytes()) && !wanted {
                xattr::remove(&path, &name)?;
            }
        }
        for (name, value) in &node.attributes {
            let name = CString::new(name.as_slice()).map_err(|_| Errno::EINVAL)?;
            xattr::set(&path, &name, value)?;
        }
        Ok(())
    }

    fn set_times(&self, node: &Node) -> Result<(), TreeError> {
        let time = |(seconds, nanoseconds): (i64, u32)| TimeSpec::new(seconds, i64::from(nanoseconds));
        let (accessed, modified) = (time(node.times.accessed), time(node.times.modified));
        utimensat(&self.top, self.own(node), &accessed, &modified, UtimensatFlags::NoFollowSymlink)
            .map_err(self.failed("set the times of", &node.path))
    }

    /// The node's path below the mount's own directory.
    fn own<'n>(&self, node: &'n Node) -> &'n OsStr {
        OsStr::from_bytes(if node.path.is_empty() { b"." } else { &node.path })
    }

    fn names(&self, path: &[u8]) -> nix::Result<Vec<Vec<u8>>> {
        let path: &[u8] = if path.is_empty() { b"." } else { path };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut listing = Dir::from_fd(openat(&self.top, OsStr::from_bytes(path), flags, Mode::empty())?)?;
        let names = listing.iter().map(|entry| Ok(entry?.file_name().to_bytes().to_vec()));
        let is_child = |name: &nix::Result<Vec<u8>>| !matches!(name.as_deref(), Ok(b"." | b".."));
        names.filter(is_child).collect()
    }

    fn stat(&self, path: &[u8]) -> nix::Result<Option<FileStat>> {
        match fstatat(&self.top, OsStr::from_bytes(path), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn name(&self, path: &[u8]) -> String {
        printable(&[&self.tree.point, b"/".as_slice(), path].concat())
    }

    fn failed(&self, verb: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> TreeError + use<> {
        let path = self.name(path);
        move |source| TreeError::Path { verb, path, source }
    }
}

fn file_type(stat: &FileStat) -> u32 {
    stat.st_mode & libc::S_IFMT
}

fn printable(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}

fn nameless(root: &OwnedFd, own: &[Mount], point: &[u8], object: &ObjectLayout) -> Result<File, TreeError> {
    let failed = |source| TreeError::Path { verb: "make a nameless file in", path: printable(point), source };
    let path = Path::new(OsStr::from_bytes(point));
    let top = openat2::in_root(root, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(failed)?;
    require_own(own, &top, point, object.huge)?;
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NOATIME;
    let file = openat(&top, ".", flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed)?;
    let file = File::from(file);
    file.set_len(object.size).map_err(|error| failed(crate::memory::errno(&error)))?;
    Ok(file)
}
