//! The mappings of a process -> [`Vma`]s, and those that cannot be carried.
//!
//! Works on a running process (what changes meanwhile is seen in the next round) and on a stopped one. Kernel:
//! `/proc/PID/maps`, `/proc/PID/smaps` (for properties; milliseconds a GiB), `/proc/PID/map_files` for what is behind
//! a mapping, openat2(2) below `/proc/PID/root` to prove that a path leads there.

use std::fs::{File, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::mapping_kind::{MappingKind, is_huge, kind_of};
use crate::memory::huge::Unfit;
use crate::memory::layout_diff::USER_END;
use crate::memory::object::{KnownFile, ObjectKey, Objects};
use crate::memory::{MemoryError, errno, huge};
use crate::model::layout::{MappedFile, ObjectKind, VdsoLayout};
use crate::model::tree::Ownership;
use crate::model::{HUGE_PAGE_SIZE, Mapping, Pid, Place, Vma, VmaFlags};
use crate::proc::maps::{MapsEntry, parse_maps};
use crate::proc::smaps::{SmapsEntry, VmaKind, parse_smaps};
use crate::sys::openat2;

/// The mappings of one process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProcessVmas {
    /// What can be carried, ascending. Without flags asked for, all flags but those of the stack are unset.
    pub vmas: Vec<Vma>,
    /// Where the kernel's own mappings are.
    pub vdso: VdsoLayout,
    /// What cannot be carried, ascending.
    pub blockers: Vec<MappingBlocker>,
    /// Ranges registered with a userfaultfd; only with flags asked for. Before the engine tracks the process these
    /// are somebody else's ([`foreign_userfaultfd`]).
    pub userfault: Vec<(u64, u64)>,
}

/// A mapping that cannot be carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappingBlocker {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// What it is: "shared memory of SysV IPC".
    pub what: String,
    /// What the administrator can do about it.
    pub hint: String,
}

impl MappingBlocker {
    /// The mapping as a part of a process.
    pub fn place(&self) -> Place {
        Place::Mapping { start: self.start, end: self.end }
    }
}

/// Why a mapping cannot be carried, without its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Obstacle {
    pub(super) what: String,
    pub(super) hint: &'static str,
}

/// Reads the mappings of a process. `own` are the engine's scratch ranges in it, ascending, which are left out.
/// `with_flags` asks for their properties too.
///
/// Errors: [`MemoryError::AddressSpaceGone`] when the process has ended, [`MemoryError::Proc`].
pub fn read_vmas(
    pid: Pid,
    objects: &mut Objects,
    own: &[(u64, u64)],
    with_flags: bool,
) -> Result<ProcessVmas, MemoryError> {
    let mut result = ProcessVmas::default();
    let mut reader = Reader { pid, objects, root: None };
    for entry in read_entries(pid, with_flags)? {
        for (start, end) in remaining(&entry.map, own) {
            reader.add(&entry, start, end, &mut result)?;
        }
    }
    Ok(result)
}

/// What [`ProcessVmas::userfault`] means before the engine itself tracks the process.
pub fn foreign_userfaultfd(ranges: &[(u64, u64)]) -> Vec<MappingBlocker> {
    let blocker = |(start, end): &(u64, u64)| MappingBlocker {
        start: *start,
        end: *end,
        what: "memory under a userfaultfd of another program".into(),
        hint: "stop what uses userfaultfd on the process".into(),
    };
    ranges.iter().map(blocker).collect()
}

/// Like [`read_vmas`] with flags, for the time in which the process is stopped: what an earlier list of its mappings
/// knows of their flags is not asked again, because that walks every page table (20 ms a GiB). An madvise(2) or
/// mlock(2) since that list is overlooked where it did not split a mapping.
pub fn read_vmas_again(
    pid: Pid,
    objects: &mut Objects,
    own: &[(u64, u64)],
    known: &[Vma],
) -> Result<ProcessVmas, MemoryError> {
    let mut found = read_vmas(pid, objects, own, false)?;
    if carry_flags(known, &mut found.vmas) { Ok(found) } else { read_vmas(pid, objects, own, true) }
}

/// Takes the flags of `new`, which was read without them, from `old`, an earlier list of the same process. False if a
/// mapping is new or lies over mappings of different flags. (One that has grown counts as known: the kernel only
/// joins mappings with the same flags.)
fn carry_flags(old: &[Vma], new: &mut [Vma]) -> bool {
    new.iter_mut().all(|vma| {
        let first = old.partition_point(|known| known.end <= vma.start);
        let over = old.get(first..).unwrap_or_default().iter().take_while(|known| known.start < vma.end);
        let mut flags = over.map(|known| known.flags);
        let Some(known) = flags.next() else { return false };
        vma.flags = known;
        flags.all(|other| other == known)
    })
}

/// Every mapping below the end of user memory; without flags, those are unset.
fn read_entries(pid: Pid, with_flags: bool) -> Result<Vec<SmapsEntry>, MemoryError> {
    let name = if with_flags { "smaps" } else { "maps" };
    let text =
        crate::proc::read(format!("/proc/{pid}/{name}")).map_err(|error| unreadable(pid, name, &error))?;
    let plain = |map: MapsEntry| {
        let flags = VmaFlags { grows_down: map.name == b"[stack]", ..VmaFlags::default() };
        SmapsEntry { map, flags, kind: VmaKind::default() }
    };
    let entries = if with_flags {
        parse_smaps(&text)
    } else {
        parse_maps(&text).map(|entries| entries.into_iter().map(plain).collect())
    };
    let mut entries =
        entries.map_err(|_| MemoryError::Proc { pid, name: name.into(), source: Errno::EBADMSG })?;
    entries.retain(|entry| entry.map.end <= USER_END);
    if entries.is_empty() {
        return Err(MemoryError::AddressSpaceGone { pid });
    }
    Ok(mend(entries))
}

/// The kernel writes the list in parts. In a running process a mapping may grow over one that was in an earlier part:
/// the later entry is the newer one.
fn mend(entries: Vec<SmapsEntry>) -> Vec<SmapsEntry> {
    let mut mended: Vec<SmapsEntry> = Vec::with_capacity(entries.len());
    for entry in entries {
        while mended.last().is_some_and(|last| last.map.start >= entry.map.start) {
            mended.pop();
        }
        if let Some(last) = mended.last_mut() {
            let end = entry.map.start;
            if end < last.map.end {
                last.map.end = if is_huge(&last.map) { end / HUGE_PAGE_SIZE * HUGE_PAGE_SIZE } else { end };
            }
        }
        if mended.last().is_some_and(|last| last.map.start >= last.map.end) {
            mended.pop();
        }
        mended.push(entry);
    }
    mended
}

fn unreadable(pid: Pid, name: &str, error: &std::io::Error) -> MemoryError {
    match errno(error) {
        Errno::ENOENT | Errno::ESRCH => MemoryError::AddressSpaceGone { pid },
        source => MemoryError::Proc { pid, name: name.into(), source },
    }
}

/// The parts of a mapping that are not the engine's own.
fn remaining(map: &MapsEntry, own: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut parts = Vec::with_capacity(1);
    let mut start = map.start;
    for cut in own.iter().filter(|cut| cut.1 > map.start && cut.0 < map.end) {
        if cut.0 > start {
            parts.push((start, cut.0));
        }
        start = start.max(cut.1);
    }
    if start < map.end {
        parts.push((start, map.end));
    }
    parts
}

struct Reader<'a> {
    pid: Pid,
    objects: &'a mut Objects,
    /// The process's root directory, opened when first needed.
    root: Option<File>,
}

impl Reader<'_> {
    fn add(
        &mut self,
        entry: &SmapsEntry,
        start: u64,
        end: u64,
        result: &mut ProcessVmas,
    ) -> Result<(), MemoryError> {
        let map = &entry.map;
        if entry.kind.userfault {
            result.userfault.push((start, end));
        }
        let mapping = match kind_of(entry) {
            MappingKind::Vdso => {
                result.vdso.vdso = Some((start, end));
                return Ok(());
            }
            MappingKind::Vvar => {
                result.vdso.vvar = Some((start, end));
                return Ok(());
            }
            MappingKind::VvarClock => {
                result.vdso.vvar_vclock = Some((start, end));
                return Ok(());
            }
            MappingKind::PrivateAnonymous => Ok(Mapping::PrivateAnonymous),
            MappingKind::AnonymousHuge => self.anonymous_huge(map)?,
            MappingKind::SharedAnonymous => self.object(map, file_key(map), ObjectKind::Anonymous)?,
            MappingKind::Memfd(name) => {
                let kind = ObjectKind::Memfd { name, owner: Ownership::default(), seals: 0 };
                self.object(map, file_key(map), kind)?
            }
            MappingKind::Segment => self.segment(map)?,
            MappingKind::File => self.file(map)?,
            MappingKind::Unsupported(obstacle) => Err(Some(obstacle)),
        };
        match mapping {
            Ok(mapping) => {
                let whole = Vma {
                    start: map.start,
                    end: map.end,
                    protection: map.protection,
                    flags: entry.flags,
                    mapping,
                };
                result.vmas.push(whole.cut(start, end));
            }
            Err(Some(obstacle)) => result.blockers.push(MappingBlocker {
                start,
                end,
                what: obstacle.what,
                hint: obstacle.hint.into(),
            }),
            Err(None) => {}
        }
        Ok(())
    }

    fn link(&self, map: &MapsEntry) -> String {
        format!("/proc/{}/map_files/{:x}-{:x}", self.pid, map.start, map.end)
    }

    /// Anonymous memory in huge pages, whose size shows in the file system that they are of.
    fn anonymous_huge(&mut self, map: &MapsEntry) -> Result<Result<Mapping, Option<Obstacle>>, MemoryError> {
        let link = self.link(map);
        let size = match self.objects.huge_pages.get(&map.device) {
            Some(size) => *size,
            None => match open(self.pid, &link, |about| about.ino() == map.inode) {
                Ok(file) => huge::page_size(&file).unwrap_or(0),
                Err(MemoryError::AddressSpaceGone { .. }) => return Ok(Err(None)),
                Err(error) => return Err(error),
            },
        };
        self.objects.huge_pages.insert(map.device, size);
        match size {
            // A file of the container that has the kernel's name.
            0 => self.file(map),
            _ if map.shared => self.object(map, file_key(map), ObjectKind::Anonymous),
            size if huge::is_carried(size) => Ok(Ok(Mapping::PrivateHuge)),
            size => Ok(Err(Some(unfit_pages(Unfit::PageSize(size))))),
        }
    }

    /// Memory without a path. `Err(None)`: the mapping is gone by now; the next round will see what came after it.
    fn object(
        &mut self,
        map: &MapsEntry,
        key: ObjectKey,
        kind: ObjectKind,
    ) -> Result<Result<Mapping, Option<Obstacle>>, MemoryError> {
        let (pid, link) = (self.pid, self.link(map));
        let may_write = map.shared && may_write(map, &link);
        let open = || open(pid, &link, |about| about.ino() == map.inode);
        match self.objects.identify(key, kind, open) {
            Ok(object) if !map.shared && self.objects.is_huge(object) => Ok(Err(Some(Obstacle {
                what: "a private mapping of a file in huge pages".into(),
                hint: "let the program map it shared, or map anonymous memory",
            }))),
            Ok(object) if map.shared => {
                let may_write = may_write && !self.objects.is_sealed(object);
                Ok(Ok(Mapping::SharedObject { object, offset: map.offset, may_write }))
            }
            Ok(object) => Ok(Ok(Mapping::PrivateObject { object, offset: map.offset })),
            Err(MemoryError::AddressSpaceGone { .. }) => Ok(Err(None)),
            Err(error) => Err(error),
        }
    }

    /// A System V segment, whose inode is its id. One that was made since the segments were listed is left to the next
    /// round.
    fn segment(&mut self, map: &MapsEntry) -> Result<Result<Mapping, Option<Obstacle>>, MemoryError> {
        let id = i32::try_from(map.inode).unwrap_or(-1);
        match self.objects.segments.get(&id).copied() {
            Some(segment) => self.object(map, ObjectKey::Segment(id), ObjectKind::Segment(segment)),
            None if self.objects.lists_segments => Ok(Err(None)),
            None => Ok(Err(Some(Obstacle {
                what: "shared memory of SysV IPC of another container, or of the host".into(),
                hint: "give the container an IPC namespace of its own",
            }))),
        }
    }

    fn file(&mut self, map: &MapsEntry) -> Result<Result<Mapping, Option<Obstacle>>, MemoryError> {
        let link = self.link(map);
        let found = match self.path_and_size(map, &link) {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Err(None)),
            Err(error) => return Err(unreadable(self.pid, "map_files", &error)),
        };
        let (path, known) = match found {
            Found::At(path, known) => (path, known),
            // By what it is, not by its path: that may lead to another file in the next round.
            Found::InMemory(kind) => return self.object(map, file_key(map), kind),
            Found::CharacterDeviceZero => return Ok(Ok(Mapping::PrivateAnonymous)),
            Found::Not(obstacle) => return Ok(Err(Some(obstacle))),
        };
        let mut file = MappedFile { path, offset: map.offset, size: known.size };
        if !map.shared {
            return Ok(Ok(Mapping::PrivateFile(file)));
        }
        if !may_write(map, &link) {
            return Ok(Ok(Mapping::SharedFile { file, may_write: false, object: None }));
        }
        let kind = ObjectKind::File(file.path.clone());
        let pid = self.pid;
        let open = || open(pid, &link, |about| known.is(about));
        match self.objects.identify(file_key(map), kind, open) {
            Ok(object) => {
                file.size = self.objects.size(object);
                Ok(Ok(Mapping::SharedFile { file, may_write: true, object: Some(object) }))
            }
            Err(MemoryError::AddressSpaceGone { .. }) => Ok(Err(None)),
            Err(error) => Err(error),
        }
    }

    /// Where the mapped file is inside the container.
    fn path_and_size(&mut self, map: &MapsEntry, link: &str) -> std::io::Result<Found> {
        let cached = (file_key(map), map.name.clone());
        if let Some(known) = self.objects.files.get(&cached) {
            return Ok(Found::At(cached.1, *known));
        }
        let metadata = std::fs::metadata(link)?;
        let kind = metadata.file_type();
        if kind.is_char_device() && metadata.rdev() == DEV_ZERO && !map.shared {
            return Ok(Found::CharacterDeviceZero);
        }
        if !kind.is_file() {
            return Ok(Found::Not(Obstacle {
                what: format!("memory of a device or special file ({})", printable(&map.name)),
                hint: "stop what uses the device; its memory cannot be copied",
            }));
        }
        if let Some(point) = self.objects.memory.get(&map.device).cloned() {
            if metadata.ino() != map.inode {
                // Another file is mapped there by now.
                return Err(std::io::ErrorKind::NotFound.into());
            }
            let unlinked = ObjectKind::Unlinked { point, owner: Ownership::default() };
            return Ok(Found::InMemory(if metadata.nlink() == 0 { unlinked } else { ObjectKind::TreeFile }));
        }
        if !self.leads_to(&map.name, &metadata) {
            return Ok(Found::Not(unreachable(map, metadata.nlink())));
        }
        if let Some(size) = File::open(link).ok().and_then(|file| huge::page_size(&file)) {
            return Ok(Found::Not(Obstacle {
                what: format!(
                    "a file of a hugetlbfs of the host ({}, pages of {} KiB)",
                    printable(&map.name),
                    size / 1024
                ),
                hint: "let the bundle mount a hugetlbfs of its own",
            }));
        }
        let known = KnownFile::new(&metadata);
        self.objects.files.insert(cached, known);
        Ok(Found::At(map.name.clone(), known))
    }

    /// True if `path` inside the container is that file.
    fn leads_to(&mut self, path: &[u8], file: &Metadata) -> bool {
        use std::os::unix::ffi::OsStrExt;
        let root = match &self.root {
            Some(root) => root,
            None => match File::open(format!("/proc/{}/root", self.pid)) {
                Ok(root) => self.root.insert(root),
                Err(_) => return false,
            },
        };
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        let Ok(found) = openat2::in_root(root, path, OFlag::O_PATH) else { return false };
        let found = File::from(found).metadata();
        found.is_ok_and(|found| (found.dev(), found.ino()) == (file.dev(), file.ino()))
    }
}

/// Where a mapped file is.
enum Found {
    /// Its path inside the container, and what is there.
    At(Vec<u8>, KnownFile),
    /// In a file system in memory of the container's, with a name or without one.
    InMemory(ObjectKind),
    /// A private mapping of /dev/zero is anonymous memory.
    CharacterDeviceZero,
    Not(Obstacle),
}

/// `st_rdev` of /dev/zero: major 1, minor 5.
const DEV_ZERO: u64 = 1 << 8 | 5;

fn file_key(map: &MapsEntry) -> ObjectKey {
    ObjectKey::File(map.device, map.inode)
}

/// Opens what is behind a mapping that was listed.
///
/// A running program may have put another mapping there since: its contents must never pass for those of the one that
/// was listed, not even for a round, because an object is opened once. Errors: [`MemoryError::AddressSpaceGone`] then, as
/// when nothing is there.
fn open(pid: Pid, link: &str, is_listed: impl Fn(&Metadata) -> bool) -> Result<File, MemoryError> {
    let opened = File::open(link).and_then(|file| Ok((file.metadata()?, file)));
    let (about, file) = opened.map_err(|error| unreadable(pid, "map_files", &error))?;
    if is_listed(&about) { Ok(file) } else { Err(MemoryError::AddressSpaceGone { pid }) }
}

/// A shared mapping can become writable if its descriptor could write, which the link's permissions show.
fn may_write(map: &MapsEntry, link: &str) -> bool {
    map.protection.write || std::fs::symlink_metadata(link).is_ok_and(|link| link.mode() & 0o200 != 0)
}

/// Huge pages that are not carried.
pub(super) fn unfit_pages(unfit: Unfit) -> Obstacle {
    match unfit {
        Unfit::PageSize(size) => Obstacle {
            what: format!("huge pages of {} KiB", size / 1024),
            hint: "let the program use huge pages of 2 MiB: the kernel can track writes to no others",
        },
        Unfit::Torn => Obstacle {
            what: "huge pages of which the last is cut off".into(),
            hint: "let the program make it a whole number of huge pages long",
        },
        Unfit::Hollow => Obstacle {
            what: "huge pages, longer than all that this host has".into(),
            hint: "let the program make it no longer than it needs: its holes cannot be told from pages",
        },
    }
}

fn unreachable(map: &MapsEntry, links: u64) -> Obstacle {
    let (path, marked) = map.path();
    if marked || links == 0 {
        let what = format!("a deleted file ({})", printable(path));
        return Obstacle { what, hint: "restart the program so that it maps the file that is there now" };
    }
    let what = format!("a file that cannot be reached in the container ({})", printable(path));
    Obstacle { what, hint: "mount the file in the container at the path at which it was mapped" }
}

/// A name for messages: what is not printable is escaped.
pub(super) fn printable(name: &[u8]) -> String {
    name.escape_ascii().to_string()
}

#[cfg(test)]
#[path = "vmas_tests.rs"]
mod tests;
