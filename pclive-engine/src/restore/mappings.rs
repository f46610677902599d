//! Mappings of the restorers: made, moved, dropped and filled as the source's layout tells.
//!
//! Files are opened by the agent, below the container's root, and handed over; a shared anonymous object is born
//! in one restorer and then known by the descriptor that `/proc/PID/map_files` gives. Files in memory are made by the
//! agent (`trees`, `segments`, memfd_create(2)).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};

use super::RestoreError;
use super::channel::{FdChannel, need};
use super::huge;
use super::objects;
use super::restorer::Restorer;
use super::segments::{self, SegmentError};
use super::skeleton::Skeleton;
use super::spans::{self, Span};
use super::trees::Trees;
use crate::capture::files::is_carried_device;
use crate::memory::fill::{Discards, Filler};
use crate::memory::layout_diff::{LayoutOp, plan};
use crate::memory::object_store::{ObjectStore, View};
use crate::model::layout::{Layout, MappedFile, ObjectKind, ObjectLayout};
use crate::model::tree::Segment;
use crate::model::{Batch, Mapping, PAGE_SIZE, Pid, Protection, Target, Vma, VmaFlags, Vpid};
use crate::remote::{Call, RemoteTask, Slot};
use crate::sys::openat2;

/// What the agent opens for a mapping: a file (writable or not), or a shared memory object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    File { path: Vec<u8>, writable: bool },
    Object { id: u64, writable: bool },
}

/// The mappings of a skeleton.
#[derive(Debug)]
pub(super) struct Mappings {
    root: OwnedFd,
    init: Pid,
    fillers: HashMap<Vpid, Filler>,
    objects: ObjectStore,
    trees: Trees,
}

impl Mappings {
    /// For the container whose init is `init`; files are opened below its root.
    pub(super) fn below(init: Pid) -> Result<Self, RestoreError> {
        let root = open_root(init)?;
        Ok(Self {
            root,
            init,
            fillers: HashMap::new(),
            objects: ObjectStore::default(),
            trees: Trees::of(init),
        })
    }

    /// Makes the mappings of every process match the layout.
    pub(super) fn follow(&mut self, layout: &Layout, restorers: &mut [Restorer]) -> Result<(), RestoreError> {
        let followed = self.follow_all(layout, restorers);
        followed.map_err(|error| huge::explain(error, layout, restorers, &self.objects))
    }

    fn follow_all(&mut self, layout: &Layout, restorers: &mut [Restorer]) -> Result<(), RestoreError> {
        // The root of the runtime's init is its own until it has become the container's program.
        self.root = open_root(self.init)?;
        self.drop_objects(layout)?;
        self.trees.follow(&self.root, layout, &mut self.objects)?;
        for object in &layout.objects {
            if self.objects.contains(object.id) {
                self.objects.resize(object.id, &object.kind, object.size)?;
            } else {
                self.create_object(object, layout, restorers)?;
            }
        }
        self.fillers.retain(|vpid, _| restorers.iter().any(|restorer| restorer.vpid == *vpid));
        for process in layout.processes.iter().filter(|process| process.zombie.is_none()) {
            let found = restorers.iter_mut().find(|restorer| restorer.vpid == process.vpid);
            let restorer = found.ok_or(RestoreError::NoProcess { vpid: process.vpid })?;
            self.follow_process(&process.vmas, restorer)?;
        }
        self.objects.trim()?;
        self.objects.show(restorers.iter().flat_map(views));
        Ok(())
    }

    /// The memory of an object that the source does not have any more is given back; its id does not come again.
    fn drop_objects(&mut self, layout: &Layout) -> Result<(), RestoreError> {
        let there: HashSet<u64> = layout.objects.iter().map(|object| object.id).collect();
        let dropped = self.objects.retain(|id| there.contains(&id));
        let segments: Vec<i32> =
            dropped.iter().filter_map(objects::segment_of).map(|segment| segment.id).collect();
        Ok(segments::remove(self.init, &segments)?)
    }

    /// The shared memory.
    pub(super) fn objects(&self) -> &ObjectStore {
        &self.objects
    }

    /// Owners, seals and times of files in memory, once nothing is written to them any more and every descriptor is in
    /// its place.
    pub(super) fn finish(&mut self, layout: &Layout) -> Result<(), RestoreError> {
        objects::finish(&self.objects, layout, self.init)?;
        Ok(self.trees.finish(&self.root)?)
    }

    /// Writes pages of a process or of a shared memory object.
    pub(super) fn fill(&mut self, batch: &Batch, skeleton: &mut Skeleton) -> Result<(), RestoreError> {
        match batch.target {
            Target::Object(_) => Ok(self.objects.fill(batch)?),
            Target::Process(vpid) => {
                let filler = self.fillers.get_mut(&vpid).ok_or(RestoreError::NoProcess { vpid })?;
                let lifted = filler.lift(batch)?;
                if !lifted.is_empty() {
                    discard(skeleton.restorer_mut(vpid)?, &lifted)?;
                }
                let discards = filler.fill(batch)?;
                if discards.is_empty() {
                    return Ok(());
                }
                discard(skeleton.restorer_mut(vpid)?, &discards)
            }
        }
    }

    fn follow_process(&mut self, vmas: &[Vma], restorer: &mut Restorer) -> Result<(), RestoreError> {
        let pid = restorer.leader.pid();
        // A restorer with an empty address space is new, or has executed a new program.
        if restorer.vmas.is_empty() || !self.fillers.contains_key(&restorer.vpid) {
            self.fillers.insert(restorer.vpid, Filler::new(pid));
        }
        let steps = plan(&restorer.vmas, vmas);
        if !steps.is_empty() {
            self.run_steps(&steps, vmas, restorer)?;
            restorer.vmas = vmas.to_vec();
        }
        if let Some(filler) = self.fillers.get_mut(&restorer.vpid) {
            filler.set_layout(vmas)?;
        }
        Ok(())
    }

    /// From the restorer's mappings to `vmas`.
    fn run_steps(
        &mut self,
        steps: &[LayoutOp],
        vmas: &[Vma],
        restorer: &mut Restorer,
    ) -> Result<(), RestoreError> {
        let handed = self.hand_over(steps, restorer)?;
        let segments = self.attach_parts(steps, vmas, restorer)?;
        let mut calls = Vec::with_capacity(steps.len() + handed.len());
        for step in steps {
            match step {
                LayoutOp::Unmap { start, end } => {
                    calls.push((Call::new(libc::SYS_munmap, &[*start, end - start]), *start));
                }
                LayoutOp::Map(vma) => {
                    match self.segment(vma) {
                        Some((segment, size)) => {
                            let attached = segments.get(&vma.start).copied();
                            let own = segments::map_calls(vma, segment, size, attached);
                            calls.extend(own.map(|call| (call, vma.start)));
                        }
                        None => calls.push((map_call(vma, &handed)?, vma.start)),
                    }
                    let advice = advice_calls(vma.start, vma.end, VmaFlags::default(), vma.flags);
                    calls.extend(advice.map(|call| (call, vma.start)));
                }
                LayoutOp::Protect { start, end, protection } => {
                    let bits = protection_bits(*protection);
                    calls.push((Call::new(libc::SYS_mprotect, &[*start, end - start, bits]), *start));
                }
                LayoutOp::Advise { start, end, old, new } => {
                    calls.extend(advice_calls(*start, *end, *old, *new).map(|call| (call, *start)));
                }
            }
        }
        calls.extend(handed.values().map(|fd| (Call::new(libc::SYS_close, &[*fd]), 0)));
        let only: Vec<Call> = calls.iter().map(|(call, _)| *call).collect();
        let results = restorer.leader.run(&only)?;
        for (result, (call, at)) in results.iter().zip(&calls) {
            need(restorer.vpid, *result, &format!("{} the memory at {at:#x}", verb(call.number)))?;
        }
        Ok(())
    }

    /// Opens what the new mappings show and gives it to the restorer; the numbers there.
    fn hand_over(
        &mut self,
        steps: &[LayoutOp],
        restorer: &mut Restorer,
    ) -> Result<BTreeMap<Source, u64>, RestoreError> {
        let mut opened: BTreeMap<Source, Option<OwnedFd>> = BTreeMap::new();
        for step in steps {
            let LayoutOp::Map(vma) = step else { continue };
            let Some((source, size)) = source_of(vma) else { continue };
            if self.segment(vma).is_some() {
                continue;
            }
            if let std::collections::btree_map::Entry::Vacant(entry) = opened.entry(source) {
                let fd = match entry.key() {
                    Source::File { path, writable } => Some(open_mapped(&self.root, path, *writable, size)?),
                    Source::Object { writable: true, .. } => None,
                    Source::Object { id, writable: false } => {
                        let file = self.objects.file(*id).ok_or(RestoreError::NoObject { id: *id })?;
                        let reopened = openat2::reopen(file, OFlag::O_RDONLY);
                        let failed = |source| RestoreError::Object { verb: "open", id: *id, source };
                        Some(reopened.map_err(failed)?)
                    }
                };
                entry.insert(fd);
            }
        }
        if opened.is_empty() {
            return Ok(BTreeMap::new());
        }
        let fds: Vec<BorrowedFd<'_>> = opened
            .iter()
            .map(|(source, fd)| match (source, fd) {
                (_, Some(fd)) => Ok(fd.as_fd()),
                (Source::Object { id, .. }, None) => {
                    self.objects.file(*id).map(|file| file.as_fd()).ok_or(RestoreError::NoObject { id: *id })
                }
                (Source::File { .. }, None) => Err(RestoreError::NoObject { id: 0 }),
            })
            .collect::<Result<_, _>>()?;
        let channel = FdChannel::open(&mut restorer.leader)?;
        let numbers = channel.give(&mut restorer.leader, &fds)?;
        channel.close(&mut restorer.leader)?;
        Ok(opened.keys().cloned().zip(numbers).collect())
    }

    fn create_object(
        &mut self,
        object: &ObjectLayout,
        layout: &Layout,
        restorers: &mut [Restorer],
    ) -> Result<(), RestoreError> {
        let file = match &object.kind {
            ObjectKind::File(path) => open_below(&self.root, path, true)?.into(),
            ObjectKind::Anonymous => objects::bear(object, layout, restorers)?,
            // Trees make their own files; this one has no node.
            ObjectKind::TreeFile => return Err(RestoreError::NoObject { id: object.id }),
            ObjectKind::Unlinked { point, .. } => self.trees.nameless(&self.root, point, object)?,
            ObjectKind::Memfd { name, .. } => objects::make_memfd(object, name)?,
            ObjectKind::Segment(segment) => self.create_segment(*segment, object.huge, layout, restorers)?,
        };
        Ok(self.objects.insert(object, file)?)
    }

    /// The source gives a key again once its segment is removed, though processes have it attached still.
    fn create_segment(
        &self,
        segment: Segment,
        huge: bool,
        layout: &Layout,
        restorers: &[Restorer],
    ) -> Result<File, SegmentError> {
        match segments::create(self.init, segment, huge) {
            Err(error) if error.is_key_taken() => {
                let new = |vpid| layout.processes.iter().find(|process| process.vpid == vpid);
                let processes = restorers.iter().filter_map(|restorer| {
                    Some((restorer.vmas.as_slice(), new(restorer.vpid)?.vmas.as_slice()))
                });
                segments::remove(self.init, &segments::kept(&layout.objects, processes))?;
                segments::create(self.init, segment, huge)
            }
            made => made,
        }
    }

    /// The segment that a mapping shows, and its size in bytes.
    fn segment(&self, vma: &Vma) -> Option<(Segment, u64)> {
        let (kind, size) = self.objects.about(vma.mapping.object()?)?;
        Some((objects::segment_of(kind)?, size))
    }

    /// Attaches, out of everything's way, the segments of which only a part is to be mapped; where, by the start of the
    /// mapping.
    fn attach_parts(
        &self,
        steps: &[LayoutOp],
        vmas: &[Vma],
        restorer: &mut Restorer,
    ) -> Result<BTreeMap<u64, u64>, RestoreError> {
        let mut attached = BTreeMap::new();
        // Where nothing is and nothing will be: what the steps map before a part is moved must not cover it.
        let mut taken: Vec<Span> = restorer.vmas.iter().chain(vmas).map(|vma| (vma.start, vma.end)).collect();
        taken.extend(restorer.own_spans()?);
        for step in steps {
            let LayoutOp::Map(vma) = step else { continue };
            let Some((segment, size)) = self.segment(vma) else { continue };
            if segments::is_whole(vma, size) {
                continue;
            }
            let spot = spans::huge_spot(&taken, size).ok_or(RestoreError::NoRoom { vpid: restorer.vpid })?;
            taken.push((spot, spot + size.next_multiple_of(PAGE_SIZE)));
            let call = segments::attach_call(vma, segment, spot);
            let what = format!("attach the System V segment {}", segment.id);
            attached.insert(vma.start, need(restorer.vpid, restorer.leader.run(&[call])?[0], &what)?);
        }
        Ok(attached)
    }
}

/// Where a restorer shows shared memory that it may write.
fn views(restorer: &Restorer) -> impl Iterator<Item = (u64, View)> {
    let pid = restorer.leader.pid();
    restorer.vmas.iter().filter(|vma| vma.protection.write).filter_map(move |vma| match &vma.mapping {
        Mapping::SharedObject { object, offset, .. } => {
            let view = View { pid, address: vma.start, offset: *offset, end: offset.checked_add(vma.len())? };
            Some((*object, view))
        }
        Mapping::PrivateAnonymous
        | Mapping::PrivateHuge
        | Mapping::PrivateFile(_)
        | Mapping::SharedFile { .. }
        | Mapping::PrivateObject { .. } => None,
    })
}

/// Drops pages: private anonymous memory reads as zeros again, a private file mapping shows its file.
fn discard(restorer: &mut Restorer, discards: &Discards) -> Result<(), RestoreError> {
    let calls = discards.calls();
    for (result, call) in restorer.leader.run(&calls)?.into_iter().zip(&calls) {
        need(restorer.vpid, result, &format!("discard the memory at {:#x}", call.args[0]))?;
    }
    Ok(())
}

fn source_of(vma: &Vma) -> Option<(Source, Option<u64>)> {
    let file = |file: &MappedFile, writable| {
        Some((Source::File { path: file.path.clone(), writable }, Some(file.size)))
    };
    match &vma.mapping {
        Mapping::PrivateAnonymous | Mapping::PrivateHuge => None,
        Mapping::PrivateFile(mapped) => file(mapped, false),
        // A file that is written through its mapping may have another size here until its pages arrive.
        Mapping::SharedFile { object: Some(id), .. } => {
            Some((Source::Object { id: *id, writable: true }, None))
        }
        Mapping::SharedFile { file: mapped, may_write, object: None } => file(mapped, *may_write),
        Mapping::SharedObject { object, may_write, .. } => {
            Some((Source::Object { id: *object, writable: *may_write }, None))
        }
        Mapping::PrivateObject { object, .. } => {
            Some((Source::Object { id: *object, writable: false }, None))
        }
    }
}

/// Pages of [`HUGE_PAGE_SIZE`](crate::model::HUGE_PAGE_SIZE).
pub(super) const MAP_HUGE: i32 = libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;

fn map_call(vma: &Vma, handed: &BTreeMap<Source, u64>) -> Result<Call, RestoreError> {
    let (kind, offset) = match &vma.mapping {
        Mapping::PrivateAnonymous => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, 0),
        Mapping::PrivateHuge => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | MAP_HUGE, 0),
        Mapping::PrivateFile(file) => (libc::MAP_PRIVATE, file.offset),
        Mapping::SharedFile { file, .. } => (libc::MAP_SHARED, file.offset),
        Mapping::SharedObject { offset, .. } => (libc::MAP_SHARED, *offset),
        Mapping::PrivateObject { offset, .. } => (libc::MAP_PRIVATE, *offset),
    };
    let mut flags = kind | libc::MAP_FIXED_NOREPLACE;
    if vma.flags.no_reserve {
        flags |= libc::MAP_NORESERVE;
    }
    if vma.flags.grows_down {
        flags |= libc::MAP_GROWSDOWN;
    }
    let fd = match source_of(vma) {
        None => u64::MAX,
        Some((source, _)) => *handed.get(&source).ok_or(RestoreError::NoObject { id: vma.start })?,
    };
    let protection = protection_bits(vma.protection);
    Ok(Call::new(libc::SYS_mmap, &[vma.start, vma.len(), protection, flags as u64, fd, offset]))
}

pub(super) fn protection_bits(protection: Protection) -> u64 {
    let bit = |on: bool, bit: i32| if on { bit } else { 0 };
    let bits = bit(protection.read, libc::PROT_READ)
        | bit(protection.write, libc::PROT_WRITE)
        | bit(protection.exec, libc::PROT_EXEC);
    bits as u64
}

/// The calls that change the properties of a mapping from `old` to `new`.
fn advice_calls(start: u64, end: u64, old: VmaFlags, new: VmaFlags) -> impl Iterator<Item = Call> {
    const MLOCK_ONFAULT: u64 = 1;
    let mut calls = Vec::new();
    let len = end - start;
    let mut advise = |advice: i32| calls.push(Call::new(libc::SYS_madvise, &[start, len, advice as u64]));
    let pairs = [
        (old.huge_page, new.huge_page, libc::MADV_HUGEPAGE, libc::MADV_NOHUGEPAGE),
        (old.no_huge_page, new.no_huge_page, libc::MADV_NOHUGEPAGE, libc::MADV_HUGEPAGE),
        (old.dont_fork, new.dont_fork, libc::MADV_DONTFORK, libc::MADV_DOFORK),
        (old.dont_dump, new.dont_dump, libc::MADV_DONTDUMP, libc::MADV_DODUMP),
        (old.wipe_on_fork, new.wipe_on_fork, libc::MADV_WIPEONFORK, libc::MADV_KEEPONFORK),
        (old.mergeable, new.mergeable, libc::MADV_MERGEABLE, libc::MADV_UNMERGEABLE),
    ];
    // First what is switched off, so that of two opposites the one that is on has the last word.
    for (was, is, _, off) in pairs {
        if was && !is {
            advise(off);
        }
    }
    for (was, is, on, _) in pairs {
        if is && !was {
            advise(on);
        }
    }
    if (old.sequential, old.random) != (new.sequential, new.random) {
        advise(match (new.sequential, new.random) {
            (true, _) => libc::MADV_SEQUENTIAL,
            (false, true) => libc::MADV_RANDOM,
            (false, false) => libc::MADV_NORMAL,
        });
    }
    if (old.locked, old.lock_on_fault) != (new.locked, new.lock_on_fault) {
        let on_fault = if new.lock_on_fault { MLOCK_ONFAULT } else { 0 };
        calls.push(match new.locked {
            true => Call::new(libc::SYS_mlock2, &[start, len, on_fault]),
            false => Call::new(libc::SYS_munlock, &[start, len]),
        });
    }
    calls.into_iter()
}

fn verb(number: i64) -> &'static str {
    match number {
        libc::SYS_munmap => "unmap",
        libc::SYS_mmap => "map",
        libc::SYS_shmat => "attach",
        libc::SYS_mremap => "move",
        libc::SYS_mprotect => "protect",
        libc::SYS_madvise => "advise",
        libc::SYS_mlock2 | libc::SYS_munlock => "lock",
        _ => "arrange",
    }
}

fn open_root(init: Pid) -> Result<OwnedFd, RestoreError> {
    let path = format!("/proc/{init}/root");
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty())
        .map_err(|source| RestoreError::OpenMapped { path, source: source.into() })
}

fn open_below(root: &OwnedFd, path: &[u8], writable: bool) -> Result<OwnedFd, RestoreError> {
    let failed = |source: Errno| RestoreError::OpenMapped { path: printable(path), source: source.into() };
    let place = openat2::in_root(root, Path::new(OsStr::from_bytes(path)), OFlag::O_PATH).map_err(failed)?;
    // Looked at before it is opened: the agent may open devices that the container may not.
    let facts = fstat(&place).map_err(failed)?;
    let mappable = match SFlag::from_bits_truncate(facts.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFREG => true,
        SFlag::S_IFCHR => !writable && is_carried_device(facts.st_rdev),
        _ => false,
    };
    if !mappable {
        return Err(RestoreError::NotMappable { path: printable(path) });
    }
    let flags = if writable { OFlag::O_RDWR } else { OFlag::O_RDONLY };
    openat2::reopen(&place, flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY).map_err(failed)
}

fn open_mapped(
    root: &OwnedFd,
    path: &[u8],
    writable: bool,
    size: Option<u64>,
) -> Result<OwnedFd, RestoreError> {
    let file = File::from(open_below(root, path, writable)?);
    let facts =
        file.metadata().map_err(|source| RestoreError::OpenMapped { path: printable(path), source })?;
    match size {
        Some(wanted) if facts.len() != wanted => {
            Err(RestoreError::FileDiffers { path: printable(path), here: facts.len(), wanted })
        }
        Some(_) | None => Ok(file.into()),
    }
}

fn printable(path: &[u8]) -> String {
    Path::new(OsStr::from_bytes(path)).display().to_string()
}

/// The slot of a restorer is not part of any layout: it is where no mapping of the source is.
const _: () = assert!(Slot::BYTES.is_multiple_of(crate::model::PAGE_SIZE));
