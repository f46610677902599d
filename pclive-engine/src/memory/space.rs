//! The private memory of one process at the source, round by round.
//!
//! Works on a running process (pre-copy) and on a stopped one (final dump). Invariants: a page is protected before it
//! is read, in one step with the question whether it was written, so that a later write makes it dirty again; on any
//! failure every page that was not handed over stays dirty for the next round; what the destination loses or no
//! longer matches (unmapped, discarded, replaced) is told to it or sent again.
//!
//! Shared memory is not sent from here: its written pages are collected for [`super::object::Objects`].

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::error::MemoryError;
use super::layout_diff::{LayoutOp, plan};
use super::object::Objects;
use super::payload::MAX_EXTENTS;
use super::ranges::RangeSet;
use super::reader::Reader;
use super::tracker::{Kind, Stock, Tracker, View};
use super::witness::Witnesses;
use crate::capture::SinkError;
use crate::model::{Batch, Extent, ExtentKind, Mapping, PAGE_SIZE, Pid, Target, Vma, Vpid};

/// What a round of one process moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpaceStats {
    /// Pages sent with contents.
    pub data_pages: u64,
    /// Pages told to be zero.
    pub zero_pages: u64,
    /// Pages told to be discarded, and guard pages.
    pub hole_pages: u64,
    /// Pages that could not be read and are tried again in the next round. Of a stopped process, these are pages
    /// that the copy would lack.
    pub unreadable_pages: u64,
    /// Time spent scanning.
    pub scan: Duration,
    /// What a stop scans beside that, by estimate: shared memory that was not compared.
    pub stop_scan: Duration,
    /// Time spent reading, the sink's included.
    pub read: Duration,
}

/// Takes what a round produces.
pub type BatchSink<'a> = dyn FnMut(Batch) -> Result<(), SinkError> + 'a;

/// The source side of one process's private memory.
#[derive(Debug)]
pub struct AddressSpace {
    pid: Pid,
    vpid: Vpid,
    pub(super) tracker: Tracker,
    /// The mappings of the last round, which the destination has made.
    pub(super) vmas: Vec<Vma>,
    /// Pages that the destination may have contents of.
    pub(super) sent: RangeSet,
    /// Guard pages that the destination was told of.
    guards: RangeSet,
    /// Pages to send although the tracker calls them clean: not handed over, not readable, or lost on the other side.
    pub(super) retry: RangeSet,
    /// What the last round found written.
    pub(super) written: RangeSet,
    /// What the destination was told to be outdated since the last round.
    pub(super) outdated: RangeSet,
    /// How it is known of huge pages that they were made anew.
    witnesses: Witnesses,
    /// A scan failed half-way: any page may have been protected without a trace.
    tracking_lost: bool,
}

/// Whether what is looked at may be written meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// It may.
    Runs,
    /// Every task of the container is stopped.
    IsStopped,
}

/// The private mappings of a process, by how they are scanned.
pub(super) struct Areas {
    anonymous: RangeSet,
    pub(super) anonymous_spans: Vec<(u64, u64)>,
    /// Those of the anonymous ones that are in huge pages.
    huge: RangeSet,
    pub(super) files: RangeSet,
    pub(super) file_spans: Vec<(u64, u64)>,
}

impl AddressSpace {
    /// Starts to track the process whose userfaultfd this is: fresh from userfaultfd(2) with `UFFD_USER_MODE_ONLY |
    /// O_CLOEXEC | O_NONBLOCK`, made by the process itself. Nothing is protected yet.
    pub fn new(pid: Pid, vpid: Vpid, uffd: OwnedFd) -> Result<Self, MemoryError> {
        Ok(Self {
            pid,
            vpid,
            tracker: Tracker::new(pid, uffd)?,
            vmas: Vec::new(),
            sent: RangeSet::new(),
            guards: RangeSet::new(),
            retry: RangeSet::new(),
            written: RangeSet::new(),
            outdated: RangeSet::new(),
            witnesses: Witnesses::default(),
            tracking_lost: false,
        })
    }

    /// The process, as the agent sees it.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The process, inside the container.
    pub fn vpid(&self) -> Vpid {
        self.vpid
    }

    /// The mappings that the last round was given; empty before the first.
    pub fn vmas(&self) -> &[Vma] {
        &self.vmas
    }

    /// Sends what is new in the private mappings among `vmas`: holes and guard pages first, then contents. `vmas` is
    /// what the destination was (or will be, before it takes the first batch) told to map.
    ///
    /// After [`MemoryError::AddressSpaceGone`] this value is of no more use; a process that still lives has a new
    /// address space, which needs a new one. After any other error the next round sends what this one did not.
    pub fn round(
        &mut self,
        vmas: &[Vma],
        batch_bytes: usize,
        out: &mut BatchSink<'_>,
    ) -> Result<SpaceStats, MemoryError> {
        self.whole_round(vmas, Task::Runs, batch_bytes, out)
    }

    /// The same for a process that is stopped: nothing is protected, which takes as long as to find it. If the process is
    /// to run on after all, [`Self::protect`] comes first, or the next round sends everything of this one again.
    pub fn round_of_stopped(
        &mut self,
        vmas: &[Vma],
        batch_bytes: usize,
        out: &mut BatchSink<'_>,
    ) -> Result<SpaceStats, MemoryError> {
        self.whole_round(vmas, Task::IsStopped, batch_bytes, out)
    }

    /// Protects what the last round of the stopped process has found: for the next round it is as if the process had run.
    /// Of what was written since, only what the kernel writes into a thread's rseq area whenever that goes on may be
    /// overlooked.
    pub fn protect(&mut self) -> Result<(), MemoryError> {
        let areas = Areas::of(&self.vmas);
        let mut view = self.tracker.view()?;
        self.tracking_lost = true;
        let taken = take_writes(&mut view, &areas)?;
        self.tracking_lost = false;
        self.retry = self.retry.union(&taken.difference(&self.written));
        Ok(())
    }

    fn whole_round(
        &mut self,
        vmas: &[Vma],
        task: Task,
        batch_bytes: usize,
        out: &mut BatchSink<'_>,
    ) -> Result<SpaceStats, MemoryError> {
        let areas = Areas::of(vmas);
        let (begun, mut stats) = self.look(vmas, &areas, task, out)?;
        self.send(&areas, batch_bytes, &mut stats, out)?;
        self.tracker.check_alive()?;
        stats.read = begun.elapsed() - stats.scan;
        Ok(stats)
    }

    /// Finds what is new, and tells the destination what was discarded.
    pub(super) fn look(
        &mut self,
        vmas: &[Vma],
        areas: &Areas,
        task: Task,
        out: &mut BatchSink<'_>,
    ) -> Result<(Instant, SpaceStats), MemoryError> {
        let begun = Instant::now();
        self.outdated.clear();
        self.follow(vmas, areas);
        let (discards, scanned) = {
            let mut view = self.tracker.view()?;
            self.retry = self.retry.union(&track_new(&self.tracker, &mut view, vmas, areas)?);
            self.tracker.check_alive()?;
            view.clear_markers(&areas.huge)?;
            let known = self.sent.union(&self.retry);
            match task {
                Task::Runs => {
                    let discards =
                        Discarded::find(view.vacant(&areas.anonymous_spans)?, &mut view, areas, &known)?;
                    self.tracker.check_alive()?;
                    self.tracking_lost = true;
                    let written = take_writes(&mut view, areas)?;
                    self.tracking_lost = false;
                    (discards, written)
                }
                Task::IsStopped => {
                    let Stock { written, absent, guards } = view.take_stock(&areas.anonymous_spans)?;
                    let discards = Discarded::find((absent, guards), &mut view, areas, &known)?;
                    (discards, written.union(&view.peek_writes(&areas.file_spans, Kind::File)?))
                }
            }
        };
        self.retry = self.retry.difference(&discards.gone).difference(&discards.guards);
        self.written.clone_from(&scanned);
        self.retry = self.retry.union(&scanned).union(&self.sent.intersection(&discards.doubtful));
        self.witnesses.retain(&self.sent.difference(&discards.gone).intersection(&areas.huge));
        self.retry = self.retry.union(&self.witnesses.silent(self.pid, &self.retry)?);
        let mut stats = SpaceStats { scan: begun.elapsed(), ..SpaceStats::default() };
        self.tell_discards(&discards, &mut stats, out)?;
        Ok((begun, stats))
    }

    /// Puts the shared mappings among `vmas` under the tracker and notes in `objects` which of their pages this
    /// process has written since the last round. Errors as for [`Self::round`]; no written page is forgotten.
    pub fn collect_shared(&mut self, vmas: &[Vma], objects: &mut Objects) -> Result<(), MemoryError> {
        let mut view = None;
        for vma in vmas {
            let Some((object, offset)) = shared_object(vma) else { continue };
            let end = offset.saturating_add(vma.end - vma.start);
            let data = objects.shown(self.pid, (object, offset, end))?;
            let view = match &mut view {
                Some(view) => view,
                None => view.insert(self.tracker.view()?),
            };
            if view.has_untracked(vma.start, vma.end)? {
                data.iter().for_each(|(start, end)| objects.written(object, *start, *end));
                self.tracker.register(vma.start, vma.end)?;
            }
            for (start, end) in data {
                let address = |offset_of_page: u64| offset_of_page - offset + vma.start;
                let written = view.take_shared_writes(address(start), address(end)).inspect_err(|_| {
                    objects.written(object, start, end);
                })?;
                let written = written.within(vma.start, vma.end);
                written.for_each(|(start, end)| {
                    objects.written(object, start - vma.start + offset, end - vma.start + offset);
                });
            }
        }
        view.map_or(Ok(()), |_| self.tracker.check_alive())
    }

    /// Takes over new mappings: what the destination drops for them has to be sent again.
    fn follow(&mut self, vmas: &[Vma], areas: &Areas) {
        for step in plan(&self.vmas, vmas) {
            match step {
                LayoutOp::Unmap { start, end } => {
                    self.sent.remove(start, end);
                    self.guards.remove(start, end);
                }
                LayoutOp::Map(vma) => self.retry.insert(vma.start, vma.end),
                LayoutOp::Protect { .. } | LayoutOp::Advise { .. } => {}
            }
        }
        if self.vmas != vmas {
            self.vmas = vmas.to_vec();
        }
        let ours = areas.anonymous.union(&areas.files);
        self.sent = self.sent.intersection(&ours);
        self.retry = if self.tracking_lost { ours } else { self.retry.intersection(&ours) };
    }

    /// Tells the destination what was discarded here.
    fn tell_discards(
        &mut self,
        found: &Discarded,
        stats: &mut SpaceStats,
        out: &mut BatchSink<'_>,
    ) -> Result<(), MemoryError> {
        let lifted = self.guards.difference(&found.guards);
        let holes = self.sent.intersection(&found.gone).union(&lifted);
        let guards = found.guards.difference(&self.guards);
        stats.hole_pages = holes.pages() + guards.pages();
        let extent =
            |kind| move |(start, end): (u64, u64)| Extent { start, pages: (end - start) / PAGE_SIZE, kind };
        let mut extents: Vec<Extent> = holes.iter().map(extent(ExtentKind::Hole)).collect();
        extents.extend(guards.iter().map(extent(ExtentKind::Guard)));
        extents.sort_unstable_by_key(|extent| extent.start);
        for part in extents.chunks(MAX_EXTENTS) {
            let payload = bytes::Bytes::new();
            out(Batch { target: Target::Process(self.vpid), extents: part.to_vec(), payload })?;
        }
        self.sent = self.sent.difference(&found.gone).difference(&found.guards);
        self.guards = found.guards.clone();
        Ok(())
    }

    /// Sends every page of the retry set that is in our mappings. What stays in the set is what was not handed over,
    /// and pages outside the mappings: a mapping may be newer than the list.
    pub(super) fn send(
        &mut self,
        areas: &Areas,
        batch_bytes: usize,
        stats: &mut SpaceStats,
        out: &mut BatchSink<'_>,
    ) -> Result<(), MemoryError> {
        let ours = areas.anonymous.union(&areas.files);
        let pages = self.retry.intersection(&ours);
        let outside = self.retry.difference(&ours);
        self.sent = self.sent.union(&pages);
        let mut view = self.tracker.view()?;
        let mut reader = Reader::new(self.pid, &pages, &mut view);
        let (mut done, mut result) = (0, Ok(()));
        loop {
            let batch = match reader.next_batch(Target::Process(self.vpid), batch_bytes) {
                Ok(Some(batch)) => batch,
                Ok(None) => break,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            };
            let (data, zero) = count(&batch);
            self.witnesses.note(&batch, &areas.huge);
            if let Err(error) = out(batch) {
                result = Err(error.into());
                break;
            }
            done = reader.position();
            stats.data_pages += data;
            stats.zero_pages += zero;
        }
        if result.is_ok() {
            done = u64::MAX;
        }
        stats.unreadable_pages = reader.unreadable.pages();
        let left: RangeSet = pages.within(done, u64::MAX).collect();
        self.retry = left.union(&reader.unreadable).union(&outside);
        result
    }
}

/// The object that a mapping shows, and the offset of its first byte in it.
pub(super) fn shared_object(vma: &Vma) -> Option<(u64, u64)> {
    match &vma.mapping {
        Mapping::SharedObject { object, offset, .. } => Some((*object, *offset)),
        Mapping::SharedFile { file, object, .. } => object.map(|object| (object, file.offset)),
        Mapping::PrivateAnonymous
        | Mapping::PrivateHuge
        | Mapping::PrivateFile(_)
        | Mapping::PrivateObject { .. } => None,
    }
}

/// Data and zero pages of a batch.
pub(super) fn count(batch: &Batch) -> (u64, u64) {
    let pages =
        |kind| batch.extents.iter().filter(move |extent| extent.kind == kind).map(|extent| extent.pages);
    (pages(ExtentKind::Data).sum(), pages(ExtentKind::Zero).sum())
}

/// Every written page; they are protected again.
fn take_writes(view: &mut View<'_>, areas: &Areas) -> Result<RangeSet, MemoryError> {
    let written = view.take_writes(&areas.anonymous_spans, Kind::Anonymous)?;
    Ok(written.union(&view.take_writes(&areas.file_spans, Kind::File)?))
}

/// Puts the mappings that are not yet under the tracker there, if they have pages, and returns these pages.
fn track_new(
    tracker: &Tracker,
    view: &mut View<'_>,
    vmas: &[Vma],
    areas: &Areas,
) -> Result<RangeSet, MemoryError> {
    let anonymous = view.untracked(&areas.anonymous_spans, Kind::Anonymous)?.intersection(&areas.anonymous);
    let files = view.untracked(&areas.file_spans, Kind::File)?.intersection(&areas.files);
    for (area, untracked) in [(&areas.anonymous, &anonymous), (&areas.files, &files)] {
        for (start, end) in area.iter().filter(|run| untracked.within(run.0, run.1).next().is_some()) {
            if !tracker.register(start, end)? {
                register_singly(tracker, vmas, untracked, (start, end))?;
            }
        }
    }
    Ok(anonymous.union(&files))
}

/// A run of mappings that cannot be registered as a whole: those that have pages, one by one. What cannot be
/// registered at all stays untracked and is sent in every round.
fn register_singly(
    tracker: &Tracker,
    vmas: &[Vma],
    untracked: &RangeSet,
    (start, end): (u64, u64),
) -> Result<(), MemoryError> {
    let within = vmas.iter().filter(|vma| vma.start >= start && vma.end <= end);
    for vma in within.filter(|vma| untracked.within(vma.start, vma.end).next().is_some()) {
        tracker.register(vma.start, vma.end)?;
    }
    Ok(())
}

/// What is no longer there.
struct Discarded {
    /// Known pages that show nothing of their own any more.
    gone: RangeSet,
    /// All guard pages.
    guards: RangeSet,
    /// Pages of file mappings that may have been discarded: their contents have to be sent to be sure.
    doubtful: RangeSet,
}

impl Discarded {
    fn find(
        (absent, guards): (RangeSet, RangeSet),
        view: &mut View<'_>,
        areas: &Areas,
        known: &RangeSet,
    ) -> Result<Self, MemoryError> {
        let copies = view.copies(&areas.file_spans)?;
        let live = copies.present.union(&copies.doubtful);
        let gone = known.intersection(&absent).intersection(&areas.anonymous);
        let gone = gone.union(&known.intersection(&areas.files).difference(&live));
        let guards = guards.intersection(&areas.anonymous);
        let guards = guards.union(&copies.guards.intersection(&areas.files));
        Ok(Self { gone, guards, doubtful: copies.doubtful.intersection(&areas.files) })
    }
}

impl Areas {
    pub(super) fn of(vmas: &[Vma]) -> Self {
        let mut areas = Self {
            anonymous: RangeSet::new(),
            anonymous_spans: Vec::new(),
            huge: RangeSet::new(),
            files: RangeSet::new(),
            file_spans: Vec::new(),
        };
        let mut last = None;
        for vma in vmas {
            let kind = match &vma.mapping {
                Mapping::PrivateAnonymous | Mapping::PrivateHuge => Some(Kind::Anonymous),
                Mapping::PrivateFile(_) | Mapping::PrivateObject { .. } => Some(Kind::File),
                Mapping::SharedFile { .. } | Mapping::SharedObject { .. } => None,
            };
            match kind {
                Some(Kind::Anonymous) => {
                    add(&mut areas.anonymous, &mut areas.anonymous_spans, vma, last == kind)
                }
                Some(Kind::File) => add(&mut areas.files, &mut areas.file_spans, vma, last == kind),
                None => {}
            }
            if vma.mapping == Mapping::PrivateHuge {
                areas.huge.insert(vma.start, vma.end);
            }
            last = kind;
        }
        areas
    }
}

/// Adds a mapping to its area; one that follows another of its kind is scanned in one go with it.
fn add(area: &mut RangeSet, spans: &mut Vec<(u64, u64)>, vma: &Vma, follows: bool) {
    area.insert(vma.start, vma.end);
    match spans.last_mut().filter(|_| follows) {
        Some(span) => span.1 = vma.end,
        None => spans.push((vma.start, vma.end)),
    }
}
