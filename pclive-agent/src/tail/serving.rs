//! The memory of every process that lacks pages, and the pages that have come and are not in place yet.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Instant;

use bytes::Bytes;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use pclive_engine::model::{PAGE_SIZE, Vpid};
use pclive_engine::tail::{Lack, News, Placing, Space, SpaceError};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::orders::Order;
use super::tally::Tally;

/// Spaces that are looked at in one go.
const EVENTS: usize = 64;

/// Readable when one of the spaces has news.
#[derive(Debug)]
struct Watch(Epoll);

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

/// Pages that wait for the kernel to take them.
#[derive(Debug)]
struct Late {
    order: Order,
    payload: Bytes,
}

/// All spaces of a copy.
#[derive(Debug)]
pub(super) struct Serving {
    watch: AsyncFd<Watch>,
    spaces: HashMap<u64, Space>,
    next_key: u64,
    /// Since when a task waits for a page.
    waiting: HashMap<(Vpid, u64), Instant>,
    late: Vec<Late>,
}

impl Serving {
    /// Listens to every process that lacks pages. To be called on the asynchronous runtime.
    #[expect(
        deprecated,
        reason = "sound for an epoll that is owned and never replaced; the other constructor is unsafe"
    )]
    pub(super) fn new(lacks: Vec<(Lack, OwnedFd)>) -> std::io::Result<Self> {
        let watch = Watch(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        let mut serving = Self {
            watch: AsyncFd::with_interest(watch, Interest::READABLE)?,
            spaces: HashMap::new(),
            next_key: 0,
            waiting: HashMap::new(),
            late: Vec::new(),
        };
        for (lack, uffd) in lacks {
            serving.add(Space::new(&lack, uffd))?;
        }
        Ok(serving)
    }

    fn add(&mut self, space: Space) -> std::io::Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, self.next_key);
        self.watch.get_ref().0.add(space.descriptor(), event)?;
        self.spaces.insert(self.next_key, space);
        self.next_key += 1;
        Ok(())
    }

    fn drop_space(&mut self, key: u64) {
        if let Some(space) = self.spaces.remove(&key) {
            // Its description may live on in the agent.
            let _ = self.watch.get_ref().0.delete(space.descriptor().as_fd());
        }
    }

    /// Waits for news.
    pub(super) async fn ready(&self) -> std::io::Result<()> {
        self.watch.readable().await.map(|mut guard| guard.clear_ready())
    }

    /// Hears all news; `want` is told which pages tasks wait for.
    pub(super) fn hear(&mut self, mut want: impl FnMut(Vpid, u64)) -> Result<(), SpaceError> {
        let owing = self.spaces.iter().filter(|(_, space)| space.owes()).map(|(key, _)| *key);
        let mut keys: Vec<u64> = owing.collect();
        loop {
            let mut events = [EpollEvent::empty(); EVENTS];
            let count = self.watch.get_ref().0.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
            keys.extend(events.iter().take(count).map(EpollEvent::data));
            if keys.is_empty() {
                return Ok(());
            }
            for key in keys.drain(..) {
                self.hear_one(key, &mut want)?;
            }
        }
    }

    fn hear_one(&mut self, key: u64, want: &mut impl FnMut(Vpid, u64)) -> Result<(), SpaceError> {
        let mut born = Vec::new();
        let mut gone = false;
        while let Some(space) = self.spaces.get_mut(&key) {
            match space.hear()? {
                News::Wanted(origin) => {
                    let vpid = space.vpid();
                    self.waiting.entry((vpid, origin)).or_insert_with(Instant::now);
                    want(vpid, origin);
                }
                // Nothing is put there any more: the kernel goes back to its own ways.
                News::Born(child) if child.missing().is_empty() && !child.owes() => drop(child),
                News::Born(child) => born.push(child),
                News::Settled => {}
                News::Nothing => break,
                News::Gone => {
                    gone = true;
                    break;
                }
            }
        }
        if gone {
            self.drop_space(key);
        }
        for child in born {
            let vpid = child.vpid();
            self.add(child).map_err(|error| {
                let source = error.raw_os_error().map_or(nix::Error::EIO, nix::Error::from_raw);
                SpaceError::Hear { vpid, source }
            })?;
        }
        Ok(())
    }

    /// Pages have come.
    pub(super) fn place(
        &mut self,
        order: Order,
        payload: Bytes,
        tally: &mut Tally,
    ) -> Result<(), SpaceError> {
        let pages = (0..order.pages).filter(|page| self.lacks(order.vpid, order.start + page * PAGE_SIZE));
        let pages = pages.count() as u64;
        *(if order.urgent { &mut tally.demand_pages } else { &mut tally.pushed_pages }) += pages;
        self.put(Late { order, payload }, tally)
    }

    /// Tries again to put pages in place that the kernel did not take.
    pub(super) fn settle(&mut self, tally: &mut Tally) -> Result<(), SpaceError> {
        std::mem::take(&mut self.late).into_iter().try_for_each(|late| self.put(late, tally))
    }

    fn put(&mut self, late: Late, tally: &mut Tally) -> Result<(), SpaceError> {
        let Order { vpid, start, pages, .. } = late.order;
        let (mut gone, mut again) = (Vec::new(), false);
        for (key, space) in self.spaces.iter_mut().filter(|(_, space)| space.vpid() == vpid) {
            match space.place(start, &late.payload)? {
                Placing::Done => {}
                Placing::Later | Placing::NoMemory => again = true,
                Placing::Gone => gone.push(*key),
            }
        }
        gone.into_iter().for_each(|key| self.drop_space(key));
        if again {
            self.late.push(late);
            return Ok(());
        }
        for page in (0..pages).map(|page| start + page * PAGE_SIZE) {
            if let Some(since) = self.waiting.remove(&(vpid, page)) {
                tally.waited(since.elapsed());
            }
        }
        Ok(())
    }

    /// True if something is to be tried again soon.
    pub(super) fn owes(&self) -> bool {
        !self.late.is_empty() || self.spaces.values().any(Space::owes)
    }

    /// True if a task waits for a page.
    pub(super) fn is_awaited(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether anybody lacks a page.
    pub(super) fn lacks(&self, vpid: Vpid, page: u64) -> bool {
        self.spaces.values().any(|space| space.vpid() == vpid && space.missing().lacks(page))
    }

    /// A page that every space has found missing first, as a run each.
    pub(super) fn first_missing(&self) -> Vec<(Vpid, u64, u64)> {
        let first = |space: &Space| {
            let page = space.missing().first()?;
            Some((space.vpid(), page, page + PAGE_SIZE))
        };
        self.spaces.values().filter_map(first).collect()
    }

    /// True once nobody lacks a page.
    pub(super) fn is_complete(&self) -> bool {
        self.spaces.values().all(|space| space.missing().is_empty())
    }

    /// Nobody waits for anything any more: the kernel goes back to its own ways.
    pub(super) fn release(&mut self) {
        self.spaces.clear();
        self.late.clear();
    }
}
