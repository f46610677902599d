//! Pages that come after the copy has been let go: dropped here, and waited for from then on.
//!
//! Each process makes its userfaultfd by a remote call on `/dev/userfaultfd`, which the agent hands in: that needs no
//! privilege in the container, and faults inside of system calls wait, too. The agent keeps the descriptor, the process
//! does not. Mappings are registered last, after every remote call that may touch the program's memory.
//!
//! Invariant: between the moment in which a page is dropped and the one in which its mapping is registered nothing puts
//! a page there: no task runs, and the kernel's daemon for huge pages, which would fill the gap with zeros, is kept away
//! (`PR_SET_THP_DISABLE`). Kernel: `/dev/userfaultfd` (Linux 6.1), `MADV_DONTNEED_LOCKED` (5.18).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::RestoreError;
use super::channel::{FdChannel, need};
use super::restorer::Restorer;
use crate::memory::Discards;
use crate::memory::errno;
use crate::memory::ranges::RangeSet;
use crate::model::{Layout, Mapping, PAGE_SIZE, Pid, Vpid};
use crate::remote::{Call, RemoteTask};
use crate::sys::pagemap::{self, Query, Region, category};
use crate::sys::{missing, pidfd, userfaultfd};
use crate::tail::{Lack, Later};

/// Regions that one scan call may return.
const REGIONS: usize = 4096;

/// Whether this kernel lets a copy go on without all of its pages, and this process is allowed to ask for it.
pub fn can_go_without_pages() -> io::Result<()> {
    device().map(drop)
}

fn device() -> io::Result<File> {
    File::options().read(true).write(true).open("/dev/userfaultfd")
}

/// What the processes of a copy go on without.
#[derive(Debug, Default)]
pub(super) struct Absent {
    of: BTreeMap<Vpid, Lacking>,
}

#[derive(Debug, Default)]
struct Lacking {
    /// In the order of the list.
    runs: Vec<(u64, u64)>,
    pages: RangeSet,
    /// The mappings that lack them.
    areas: Vec<(u64, u64)>,
    uffd: Option<OwnedFd>,
}

/// The pages of a list that came from the peer, and the mappings that they are in: private and anonymous, all of them.
pub(super) fn check(later: &Later, layout: &Layout) -> Result<(RangeSet, Vec<(u64, u64)>), RestoreError> {
    let vpid = later.vpid;
    let refuse = |why| RestoreError::Layout { vpid, why };
    let process = layout.processes.iter().find(|process| process.vpid == vpid);
    let process = process.filter(|process| process.zombie.is_none());
    let process = process.ok_or(RestoreError::NoProcess { vpid })?;
    let mut runs = later.runs.clone();
    runs.sort_unstable();
    let mut pages = RangeSet::new();
    for (start, end) in runs {
        if start >= end || !start.is_multiple_of(PAGE_SIZE) || !end.is_multiple_of(PAGE_SIZE) {
            return Err(refuse("pages that come later are no pages"));
        }
        pages.insert(start, end);
    }
    let anonymous = process.vmas.iter().filter(|vma| vma.mapping == Mapping::PrivateAnonymous);
    let mut memory = RangeSet::new();
    anonymous.clone().for_each(|vma| memory.insert(vma.start, vma.end));
    if !pages.difference(&memory).is_empty() {
        return Err(refuse("pages that come later are not in its private memory"));
    }
    let touched = anonymous.filter(|vma| pages.within(vma.start, vma.end).next().is_some());
    let areas = touched.map(|vma| (vma.start, vma.end)).collect();
    Ok((pages, areas))
}

/// Drops pages of a restorer.
pub(super) fn drop_pages(
    restorer: &mut Restorer,
    runs: impl Iterator<Item = (u64, u64)>,
) -> Result<(), RestoreError> {
    let discards = Discards { discard: runs.collect(), ..Discards::default() };
    for result in restorer.leader.run(&discards.calls())? {
        need(restorer.vpid, result, "drop the pages that come later")?;
    }
    Ok(())
}

/// Pages that are there, in memory or swapped out.
fn populated(pid: Pid, areas: &[(u64, u64)]) -> Result<RangeSet, nix::Error> {
    let pagemap = File::open(format!("/proc/{pid}/pagemap")).map_err(|error| errno(&error))?;
    let query = Query { any_of: category::PRESENT | category::SWAPPED, ..Query::default() };
    let mut regions = vec![Region::default(); REGIONS];
    let mut found = RangeSet::new();
    for (start, end) in areas {
        let mut at = *start;
        while at < *end {
            let (count, walked) = pagemap::scan(pagemap.as_fd(), at, *end, query, &mut regions)?;
            regions.iter().take(count).for_each(|region| found.insert(region.start, region.end));
            if count == 0 || walked <= at {
                break;
            }
            at = walked;
        }
    }
    Ok(found)
}

impl Absent {
    /// Takes a list that came from the peer.
    pub(super) fn expect(&mut self, later: Later, layout: &Layout) -> Result<(), RestoreError> {
        let (pages, areas) = check(&later, layout)?;
        let lacking = self.of.entry(later.vpid).or_default();
        lacking.runs.extend(later.runs);
        lacking.pages = lacking.pages.union(&pages);
        lacking.areas.extend(areas);
        lacking.areas.sort_unstable();
        lacking.areas.dedup();
        Ok(())
    }

    /// Makes the userfaultfd of a process that lacks pages.
    pub(super) fn prepare(&mut self, restorer: &mut Restorer) -> Result<(), RestoreError> {
        let vpid = restorer.vpid;
        let Some(lacking) = self.of.get_mut(&vpid) else { return Ok(()) };
        let device = device().map_err(RestoreError::Device)?;
        let channel = FdChannel::open(&mut restorer.leader)?;
        let numbers = channel.give(&mut restorer.leader, &[device.as_fd()])?;
        channel.close(&mut restorer.leader)?;
        let number = numbers.first().copied().unwrap_or(u64::MAX);
        let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
        let made = restorer.leader.run(&[
            Call::new(libc::SYS_ioctl, &[number, missing::USERFAULTFD_IOC_NEW, flags]),
            Call::new(libc::SYS_close, &[number]),
        ])?;
        let descriptor = need(vpid, made.first().copied().unwrap_or(-1), "make a userfaultfd")?;
        let pid = restorer.leader.pid();
        let fetched = pidfd::open(pid).and_then(|process| pidfd::getfd(process, descriptor as i32));
        restorer.leader.run(&[Call::new(libc::SYS_close, &[descriptor])])?;
        let failed = |what| move |source| RestoreError::Wait { vpid, what, source };
        let uffd = fetched.map_err(failed("its userfaultfd cannot be fetched"))?;
        userfaultfd::handshake(uffd.as_fd(), missing::EVENTS)
            .map_err(failed("its userfaultfd does not tell what it does to its memory"))?;
        lacking.uffd = Some(uffd);
        Ok(())
    }

    /// From here on the process waits for what it lacks. Remote calls must not touch the program's memory any more.
    pub(super) fn let_wait(&mut self, restorer: &mut Restorer) -> Result<(), RestoreError> {
        let vpid = restorer.vpid;
        let Some(Lacking { pages, areas, uffd, .. }) = self.of.get(&vpid) else { return Ok(()) };
        let unprepared = RestoreError::Layout { vpid, why: "it was not made ready to wait for its pages" };
        let uffd = uffd.as_ref().ok_or(unprepared)?;
        let failed = |what| move |source| RestoreError::Wait { vpid, what, source };
        let prctl =
            |option: i32, on: u64, flags: u64| Call::new(libc::SYS_prctl, &[option as u64, on, flags, 0, 0]);
        let was = restorer
            .leader
            .run(&[prctl(libc::PR_GET_THP_DISABLE, 0, 0), prctl(libc::PR_SET_THP_DISABLE, 1, 0)])?;
        let disabled = need(vpid, was.first().copied().unwrap_or(-1), "ask for huge pages")?;
        need(vpid, was.get(1).copied().unwrap_or(-1), "keep huge pages away")?;
        // Most of them were dropped while the container ran.
        let pid = restorer.leader.pid();
        let stale = populated(pid, areas).map_err(failed("its pages cannot be looked at"))?;
        drop_pages(restorer, stale.intersection(pages).iter())?;
        for (start, end) in areas {
            missing::register(uffd.as_fd(), *start, *end)
                .map_err(failed("its memory cannot be registered"))?;
        }
        // A page that is there would never be waited for.
        let there = populated(pid, areas).map_err(failed("its pages cannot be looked at"))?;
        if !there.intersection(pages).is_empty() {
            return Err(failed("a page that comes later is there")(nix::Error::EEXIST));
        }
        // With flags since Linux 6.18: 3 is "but where it is advised".
        let flags = if disabled == 3 { 2 } else { 0 };
        let back = restorer.leader.run(&[prctl(libc::PR_SET_THP_DISABLE, disabled & 1, flags)])?;
        need(vpid, back.first().copied().unwrap_or(-1), "allow huge pages again")?;
        Ok(())
    }

    /// What is lacking, once every process waits for it.
    pub(super) fn into_lacks(self) -> Vec<(Lack, OwnedFd)> {
        let lack = |(vpid, lacking): (Vpid, Lacking)| {
            let Lacking { runs, areas, uffd, .. } = lacking;
            Some((Lack { later: Later { vpid, runs }, areas }, uffd?))
        };
        self.of.into_iter().filter_map(lack).collect()
    }
}
