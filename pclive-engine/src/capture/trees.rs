//! What is in the container's own file systems in memory: `/dev/shm`, `/tmp` and every other tmpfs of its bundle.
//!
//! Directories are walked in every round, also of the stop; the data of regular files is the business of [`Objects`],
//! which a walk tells of every file. Nothing is changed, access times included. Works on a running container: what
//! goes away meanwhile is left out. Kernel: openat2(2) below `/proc/PID/root`, `O_NOATIME`, extended attributes by way
//! of `/proc/self/fd`.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, major, minor};

use super::files::FilesError;
use super::files::mounts::own_memory;
use super::vmas::{Obstacle, printable, unfit_pages};
use crate::memory::huge::Unfit;
use crate::memory::object::ObjectKey;
use crate::memory::{MemoryError, Objects, huge};
use crate::model::Pid;
use crate::model::layout::ObjectKind;
use crate::model::tree::{
    MOST_ATTRIBUTE_BYTES, MOST_ENTRIES, MemoryTree, Node, NodeKind, Ownership, Times, carries_attribute,
};
use crate::proc::mountinfo::Mount;
use crate::proc::root::ContainerRoot;
use crate::sys::xattr;

/// A tree that cannot be carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    /// Its mount point, printable.
    pub(super) point: String,
    pub(super) what: String,
    pub(super) hint: &'static str,
}

/// Looks for the file systems of the container and tells `objects` of them: before mappings are read.
pub(super) fn find(init: Pid, objects: &mut Objects) -> Result<Vec<Mount>, FilesError> {
    let mounts = own_memory(init)?;
    let devices = mounts.iter().filter(|mount| mount.kind != b"ramfs");
    objects.memory = devices.map(|mount| (mount.device, mount.point.clone())).collect();
    Ok(mounts)
}

/// Walks through `mounts`. Every regular file becomes an object that is held.
pub(super) fn read(
    root: &ContainerRoot,
    mounts: &[Mount],
    objects: &mut Objects,
) -> Result<(Vec<MemoryTree>, Vec<Refused>), FilesError> {
    let mut walk =
        Walk { objects, device: (0, 0), huge_pages: None, entries: 0, attribute_bytes: 0, nodes: Vec::new() };
    let (mut trees, mut refused) = (Vec::new(), Vec::new());
    for mount in mounts {
        let Some(whole) = walk.tree(root, mount)? else {
            let what = format!("file systems in memory with more than {MOST_ENTRIES} entries");
            let hint = "remove files, or give the container a bind mount that both hosts have";
            refused.push(Refused { point: printable(&mount.point), what, hint });
            return Ok((trees, refused));
        };
        if whole.is_empty() {
            // Another mount is on top of it: nobody sees what is in it.
            continue;
        }
        let huge = mount.kind == b"hugetlbfs";
        let foreign = walk.huge_pages.filter(|size| huge && !huge::is_carried(*size));
        let (what, hint) = match (foreign, mount.kind.as_slice()) {
            (Some(size), _) => {
                let Obstacle { what, hint } = unfit_pages(Unfit::PageSize(size));
                (format!("hugetlbfs that holds files in {what}"), hint)
            }
            (None, b"ramfs") => ("ramfs that holds files".into(), "let the bundle mount a tmpfs instead"),
            (None, _) => {
                trees.push(MemoryTree { point: mount.point.clone(), huge, nodes: whole });
                continue;
            }
        };
        if whole.len() > 1 {
            refused.push(Refused { point: printable(&mount.point), what, hint });
        }
    }
    Ok((trees, refused))
}

/// A walk through all trees.
struct Walk<'a> {
    objects: &'a mut Objects,
    device: (u32, u32),
    /// Size of the huge pages of the tree that was walked last, bytes.
    huge_pages: Option<u64>,
    entries: usize,
    attribute_bytes: usize,
    nodes: Vec<Node>,
}

impl Walk<'_> {
    /// The nodes of a tree; none if another mount is on top of it. `None`: too much.
    fn tree(&mut self, root: &ContainerRoot, mount: &Mount) -> Result<Option<Vec<Node>>, FilesError> {
        self.device = mount.device;
        self.nodes.clear();
        let failed = |source| FilesError::Resolve { path: printable(&mount.point), source };
        let place = match root.resolve(&mount.point) {
            Ok(place) => place,
            Err(Errno::ENOENT) => return Ok(Some(Vec::new())),
            Err(source) => return Err(failed(source)),
        };
        let stat = fstat(&place).map_err(failed)?;
        if !self.is_here(&stat) {
            return Ok(Some(Vec::new()));
        }
        let top = self.node(&place, b".", Vec::new(), NodeKind::Directory, &stat).map_err(failed)?;
        self.nodes.push(top);
        let top = openat(&place, ".", directory_flags(), Mode::empty()).map_err(failed)?;
        self.huge_pages = huge::page_size(&top);
        let mut waiting = vec![(Vec::new(), top)];
        while let Some((path, directory)) = waiting.pop() {
            let in_path = |source| FilesError::Resolve {
                path: printable(&[&mount.point, b"/".as_slice(), &path].concat()),
                source,
            };
            for name in names(&directory).map_err(in_path)? {
                self.entries += 1;
                if self.entries > MOST_ENTRIES || self.attribute_bytes > MOST_ATTRIBUTE_BYTES {
                    return Ok(None);
                }
                let child = join(&path, &name);
                match self.entry(&directory, &name, child.clone()) {
                    Ok(Some(below)) => waiting.push((child, below)),
                    // What is another thing by now, too: the next round will see it.
                    Ok(None) | Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR) => {}
                    Err(error) => return Err(in_path(error)),
                }
            }
        }
        Ok(Some(std::mem::take(&mut self.nodes)))
    }

    /// Notes an entry; returns a directory that is to be walked.
    fn entry(&mut self, directory: &OwnedFd, name: &[u8], path: Vec<u8>) -> nix::Result<Option<OwnedFd>> {
        let stat = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        // A mount point: its own directory is hidden.
        if !self.is_here(&stat) {
            return Ok(None);
        }
        let file_type = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        let mut below = None;
        let kind = match file_type {
            SFlag::S_IFDIR => {
                below = Some(openat(directory, name, directory_flags(), Mode::empty())?);
                NodeKind::Directory
            }
            SFlag::S_IFREG => NodeKind::File { object: self.object(directory, name, &stat)? },
            SFlag::S_IFLNK => NodeKind::Link(readlinkat(directory, OsStr::from_bytes(name))?.into_vec()),
            SFlag::S_IFIFO => NodeKind::Fifo,
            SFlag::S_IFSOCK => NodeKind::Socket,
            _ => NodeKind::Device { file_type: file_type.bits(), number: stat.st_rdev },
        };
        let node = self.node(directory, name, path, kind, &stat)?;
        self.nodes.push(node);
        Ok(below)
    }

    fn object(&mut self, directory: &OwnedFd, name: &[u8], stat: &FileStat) -> nix::Result<u64> {
        let flags =
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOATIME | OFlag::O_CLOEXEC;
        let open = || {
            let opened = openat(directory, name, flags, Mode::empty()).and_then(|opened| {
                // Renamed meanwhile: it is another file.
                if fstat(&opened)?.st_ino == stat.st_ino {
                    Ok(File::from(opened))
                } else {
                    Err(Errno::ENOENT)
                }
            });
            opened.map_err(|source| MemoryError::Proc { pid: Pid(0), name: String::new(), source })
        };
        let key = ObjectKey::File(self.device, stat.st_ino);
        let id = self.objects.identify(key, ObjectKind::TreeFile, open).map_err(|error| match error {
            MemoryError::Proc { source, .. } => source,
            _ => Errno::EIO,
        })?;
        self.objects.hold(id);
        Ok(id)
    }

    fn node(
        &mut self,
        directory: &OwnedFd,
        name: &[u8],
        path: Vec<u8>,
        kind: NodeKind,
        stat: &FileStat,
    ) -> nix::Result<Node> {
        let attributes = attributes(directory, name)?;
        self.attribute_bytes +=
            attributes.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        let owner = Ownership { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid };
        let nanoseconds = |part: i64| u32::try_from(part).unwrap_or(0);
        let times = Times {
            accessed: (stat.st_atime, nanoseconds(stat.st_atime_nsec)),
            modified: (stat.st_mtime, nanoseconds(stat.st_mtime_nsec)),
        };
        Ok(Node { path, kind, owner, times, attributes })
    }

    fn is_here(&self, stat: &FileStat) -> bool {
        let (major, minor) = (major(stat.st_dev), minor(stat.st_dev));
        (major, minor) == (u64::from(self.device.0), u64::from(self.device.1))
    }
}

fn attributes(directory: &OwnedFd, name: &[u8]) -> nix::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let link = format!("/proc/self/fd/{}/", directory.as_fd().as_raw_fd());
    let path = CString::new([link.as_bytes(), name].concat()).map_err(|_| Errno::EINVAL)?;
    let mut found = Vec::new();
    for attribute in xattr::list(&path)? {
        if !carries_attribute(attribute.as_bytes()) {
            continue;
        }
        match xattr::get(&path, &attribute) {
            Ok(value) => found.push((attribute.into_bytes(), value)),
            Err(Errno::ENODATA) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn directory_flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_NOATIME | OFlag::O_CLOEXEC
}

/// The names in a directory, in order; one more than [`MOST_ENTRIES`] at most.
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
    names.sort_unstable();
    Ok(names)
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A shell in a mount namespace of its own, once it has run a script there.
    struct Shell(Child);

    impl Shell {
        fn run(script: &str) -> Self {
            let script = format!("mount -t tmpfs memory /mnt && {script} && echo ready && read x");
            let mut command = Command::new("unshare");
            command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "ready\n");
            Self(child)
        }

        fn read(&self) -> (Vec<MemoryTree>, Vec<Refused>, Objects) {
            let init = Pid(self.0.id().cast_signed());
            let mut objects = Objects::new();
            let mounts = find(init, &mut objects).unwrap();
            let root = ContainerRoot::open(init).unwrap();
            let (trees, refused) = read(&root, &mounts, &mut objects).unwrap();
            (trees, refused, objects)
        }
    }

    impl Drop for Shell {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn everything_in_a_tmpfs_is_a_node_and_links_are_one_object() {
        let shell =
            Shell::run("cd /mnt && mkdir deep && echo data >deep/file && ln deep/file same && ln -s x link");
        let (trees, refused, mut objects) = shell.read();
        assert_eq!(refused, []);
        let [tree] = &trees[..] else { panic!("{trees:?}") };
        assert_eq!(tree.point, b"/mnt");
        let kind =
            |path: &[u8]| tree.nodes.iter().find(|node| node.path == path).map(|node| node.kind.clone());
        assert_eq!(kind(b""), Some(NodeKind::Directory));
        assert_eq!(kind(b"deep"), Some(NodeKind::Directory));
        assert_eq!(kind(b"link"), Some(NodeKind::Link(b"x".to_vec())));
        assert!(matches!(kind(b"same"), Some(NodeKind::File { .. })));
        assert_eq!(kind(b"same"), kind(b"deep/file"));
        let layouts = objects.layouts();
        assert_eq!((layouts.len(), layouts[0].size), (1, 5));
    }

    #[test]
    fn read_only_mounts_and_mounts_within_a_tmpfs_are_left_alone() {
        let shell = Shell::run("mkdir /mnt/in && mount -t tmpfs -o ro other /mnt/in && echo x >/mnt/file");
        let (trees, _, _) = shell.read();
        let paths: Vec<&[u8]> =
            trees.iter().flat_map(|tree| &tree.nodes).map(|node| &node.path[..]).collect();
        assert_eq!(paths, [&b""[..], b"file"]);
    }

    #[test]
    fn tmpfs_with_too_many_entries_is_refused() {
        let shell = Shell::run("cd /mnt && seq 10001 | xargs touch");
        let (_, refused, _) = shell.read();
        assert!(refused.iter().any(|refused| refused.what.contains("more than 10000")), "{refused:?}");
    }
}
