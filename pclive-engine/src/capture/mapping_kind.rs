//! What a line of `/proc/PID/maps` is about, from its text alone.

use super::vmas::{Obstacle, printable};
use crate::proc::maps::MapsEntry;
use crate::proc::smaps::SmapsEntry;

/// Kinds of mappings, as far as the text tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MappingKind {
    /// `[vdso]`.
    Vdso,
    /// `[vvar]`.
    Vvar,
    /// `[vvar_vclock]`.
    VvarClock,
    /// Private memory without a file.
    PrivateAnonymous,
    /// Anonymous memory in huge pages of hugetlbfs, private or shared; or a deleted file of the same name.
    AnonymousHuge,
    /// `MAP_SHARED | MAP_ANONYMOUS`.
    SharedAnonymous,
    /// memfd_create(2), with its name.
    Memfd(Vec<u8>),
    /// shmat(2).
    Segment,
    /// A file by its path.
    File,
    /// Nothing that can be carried.
    Unsupported(Obstacle),
}

pub(super) fn kind_of(entry: &SmapsEntry) -> MappingKind {
    let (map, kind) = (&entry.map, &entry.kind);
    let (path, deleted) = map.path();
    let obstacle = |what: &str, hint| MappingKind::Unsupported(Obstacle { what: what.into(), hint });
    match map.name.as_slice() {
        b"[vdso]" => return MappingKind::Vdso,
        b"[vvar]" => return MappingKind::Vvar,
        b"[vvar_vclock]" => return MappingKind::VvarClock,
        _ if kind.device => return obstacle("memory of a device", "stop what uses the device"),
        _ if kind.shadow_stack => return obstacle("a shadow stack", "run the program without shadow stacks"),
        _ if kind.sealed => return obstacle("memory sealed with mseal", "run the program without mseal"),
        _ => {}
    }
    if is_huge(map) {
        return MappingKind::AnonymousHuge;
    }
    if deleted && let Some(found) = deleted_kind(path, map.shared) {
        return found;
    }
    match map.name.as_slice() {
        b"" | b"[heap]" | b"[stack]" if !map.shared => MappingKind::PrivateAnonymous,
        name if name.starts_with(b"[anon:") && !map.shared => MappingKind::PrivateAnonymous,
        name if name.starts_with(b"[anon_shmem:") && map.shared => MappingKind::SharedAnonymous,
        b"anon_inode:[io_uring]" => obstacle("an io_uring", "run the program without io_uring"),
        [b'/', ..] => MappingKind::File,
        name => obstacle(
            &format!("a special mapping ({})", printable(name)),
            "stop what made it; it has no copyable contents",
        ),
    }
}

/// True for anonymous memory in huge pages of hugetlbfs, whose file has this name and no directory; for nearly nothing else.
pub(super) fn is_huge(map: &MapsEntry) -> bool {
    map.path() == (b"/anon_hugepage", true)
}

/// Names that the kernel gives to files which were never in a directory.
fn deleted_kind(path: &[u8], shared: bool) -> Option<MappingKind> {
    let obstacle = |what: &str, hint| Some(MappingKind::Unsupported(Obstacle { what: what.into(), hint }));
    match path {
        b"/dev/zero" if shared => Some(MappingKind::SharedAnonymous),
        b"/[aio]" => obstacle("an asynchronous I/O ring (io_setup)", "run the program without Linux AIO"),
        path if path.starts_with(b"/SYSV") => Some(MappingKind::Segment),
        path => path.strip_prefix(b"/memfd:").map(|name| MappingKind::Memfd(name.to_vec())),
    }
}
