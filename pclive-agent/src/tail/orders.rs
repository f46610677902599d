//! Which pages are asked for next. Pure.
//!
//! Pages that a task waits for go first. The others follow in the order of the source's list, only as many at a time as
//! keep the link busy: what is on its way delays the next page that somebody waits for.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use pclive_engine::model::{PAGE_SIZE, Vpid};

/// Pages that are asked for at once,
const CHUNK: u64 = 32;
/// and while tasks wait for others: an answer on its way delays theirs by as much as its pages take.
const SMALL_CHUNK: u64 = 16;
/// Who has waited just now will soon wait again.
const CALM: Duration = Duration::from_micros(500);
/// Bounds of the window, pages.
const LEAST_WINDOW: u64 = CHUNK;
const FIRST_WINDOW: u64 = 4 * CHUNK;
const LARGEST_WINDOW: u64 = 64 * CHUNK;
/// An answer that takes longer than the shortest twice and this has waited behind others.
const SLACK: Duration = Duration::from_micros(300);

/// Pages that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) vpid: Vpid,
    pub(super) start: u64,
    pub(super) pages: u64,
    /// A task waits for it.
    pub(super) urgent: bool,
    pub(super) at: Instant,
}

impl Order {
    fn end(&self) -> u64 {
        self.start + self.pages * PAGE_SIZE
    }

    fn covers(&self, vpid: Vpid, page: u64) -> bool {
        self.vpid == vpid && self.start <= page && page < self.end()
    }
}

/// What is to be asked, and what was.
#[derive(Debug)]
pub(super) struct Orders {
    urgent: VecDeque<(Vpid, u64)>,
    rest: VecDeque<(Vpid, u64, u64)>,
    sent: HashMap<u64, Order>,
    next_id: u64,
    window: u64,
    shortest: Option<Duration>,
    /// When a task last got what it waited for.
    waited: Option<Instant>,
}

impl Orders {
    /// Runs of bytes in the order in which they are to come.
    pub(super) fn new(rest: impl Iterator<Item = (Vpid, u64, u64)>) -> Self {
        Self {
            urgent: VecDeque::new(),
            rest: rest.collect(),
            sent: HashMap::new(),
            next_id: 1,
            window: FIRST_WINDOW,
            shortest: None,
            waited: None,
        }
    }

    /// A task waits for this page.
    pub(super) fn want(&mut self, vpid: Vpid, page: u64) {
        if !self.urgent.contains(&(vpid, page)) && !self.sent.values().any(|order| order.covers(vpid, page)) {
            self.urgent.push_back((vpid, page));
        }
    }

    /// A run that is to come after all others.
    pub(super) fn add(&mut self, vpid: Vpid, start: u64, end: u64) {
        self.rest.push_back((vpid, start, end));
    }

    /// True if nothing is to be asked and nothing is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.urgent.is_empty() && self.rest.is_empty() && self.sent.is_empty()
    }

    /// The next pages to ask for, if any may be now; `lacks` says whether a page is missing still.
    pub(super) fn next(&mut self, now: Instant, lacks: impl Fn(Vpid, u64) -> bool) -> Option<(u64, Order)> {
        while let Some((vpid, start)) = self.urgent.pop_front() {
            if lacks(vpid, start) {
                return Some(self.send(Order { vpid, start, pages: 1, urgent: true, at: now }));
            }
        }
        let (mut quiet, mut pages) =
            (self.waited.is_none_or(|at| now.saturating_duration_since(at) > CALM), 0);
        for order in self.sent.values() {
            quiet &= !order.urgent;
            pages += if order.urgent { 0 } else { order.pages };
        }
        let (window, chunk) = if quiet { (self.window, CHUNK) } else { (SMALL_CHUNK, SMALL_CHUNK) };
        if pages + chunk > window {
            return None;
        }
        let (vpid, start, pages) = self.chunk(chunk, lacks)?;
        Some(self.send(Order { vpid, start, pages, urgent: false, at: now }))
    }

    /// The first pages of the rest that are missing and not asked for.
    fn chunk(&mut self, most: u64, lacks: impl Fn(Vpid, u64) -> bool) -> Option<(Vpid, u64, u64)> {
        while let Some((vpid, start, end)) = self.rest.pop_front() {
            let wanted =
                |page: &u64| lacks(vpid, *page) && !self.sent.values().any(|order| order.covers(vpid, *page));
            let mut pages = (start..end).step_by(PAGE_SIZE as usize);
            let Some(first) = pages.find(|page| wanted(page)) else { continue };
            let more = pages.take(most as usize - 1).take_while(wanted).count() as u64;
            let past = first + (1 + more) * PAGE_SIZE;
            if past < end {
                self.rest.push_front((vpid, past, end));
            }
            return Some((vpid, first, 1 + more));
        }
        None
    }

    fn send(&mut self, order: Order) -> (u64, Order) {
        let id = self.next_id;
        self.next_id += 1;
        self.sent.insert(id, order);
        (id, order)
    }

    /// The answer to an order has come.
    pub(super) fn answered(&mut self, id: u64, now: Instant) -> Option<Order> {
        let order = self.sent.remove(&id)?;
        let took = now.saturating_duration_since(order.at);
        let shortest = self.shortest.map_or(took, |shortest| shortest.min(took));
        self.shortest = Some(shortest);
        if order.urgent {
            self.waited = Some(now);
        } else {
            let crowded = took > shortest * 2 + SLACK;
            self.window = if crowded { self.window / 2 } else { self.window + CHUNK / 2 };
            self.window = self.window.clamp(LEAST_WINDOW, LARGEST_WINDOW);
        }
        Some(order)
    }

    /// The shortest time from an order to its answer.
    pub(super) fn shortest(&self) -> Duration {
        self.shortest.unwrap_or_default()
    }

    /// Nothing that was asked for will be answered: it is asked again.
    pub(super) fn link_broke(&mut self) {
        std::mem::take(&mut self.sent).into_values().for_each(|order| self.again(order));
    }

    /// What came was not what had been asked for.
    pub(super) fn again(&mut self, order: Order) {
        if order.urgent {
            self.urgent.push_front((order.vpid, order.start));
        } else {
            self.rest.push_front((order.vpid, order.start, order.end()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: u64 = PAGE_SIZE;
    const V: Vpid = Vpid(1);

    fn orders(pages: u64) -> Orders {
        Orders::new(std::iter::once((V, 0, pages * P)))
    }

    #[test]
    fn pages_that_somebody_waits_for_go_first_and_once() {
        let (mut orders, now) = (orders(1000), Instant::now());
        let (_, first) = orders.next(now, |_, _| true).unwrap();
        assert_eq!((first.start, first.pages, first.urgent), (0, CHUNK, false));
        orders.want(V, 5 * P);
        orders.want(V, 500 * P);
        orders.want(V, 500 * P);
        let (id, order) = orders.next(now, |_, _| true).unwrap();
        assert_eq!((order.start, order.pages, order.urgent), (500 * P, 1, true));
        assert!(orders.next(now, |_, _| true).is_none(), "one chunk is on its way, and somebody waits");
        assert_eq!(orders.answered(id, now), Some(order));
        assert!(orders.next(now, |_, _| true).is_none(), "they will wait again");
        assert_eq!(orders.next(now + 2 * CALM, |_, _| true).unwrap().1.start, CHUNK * P);
    }

    #[test]
    fn what_is_not_missing_any_more_is_not_asked_for() {
        let (mut orders, now) = (orders(100), Instant::now());
        orders.want(V, 0);
        let (_, order) = orders.next(now, |_, page| page >= 40 * P).unwrap();
        assert_eq!((order.start, order.urgent), (40 * P, false));
    }

    #[test]
    fn every_page_is_asked_for_once_and_again_when_the_link_broke() {
        let (mut orders, now) = (orders(200), Instant::now());
        let mut came = std::collections::BTreeSet::new();
        let mut broken = false;
        while !orders.is_idle() {
            let mut ids = Vec::new();
            let missing = came.clone();
            while let Some((id, order)) = orders.next(now, |_, page| !missing.contains(&page)) {
                ids.push((id, order));
            }
            if came.len() > 50 && !broken {
                broken = true;
                orders.link_broke();
                continue;
            }
            for (id, order) in ids {
                orders.answered(id, now).unwrap();
                (0..order.pages).for_each(|page| assert!(came.insert(order.start + page * P)));
            }
        }
        assert!(broken && came.len() == 200);
    }

    #[test]
    fn window_falls_when_answers_wait_for_each_other() {
        let (mut orders, begun) = (orders(1 << 20), Instant::now());
        for _ in 0..20 {
            let (id, _) = orders.next(begun, |_, _| true).unwrap();
            orders.answered(id, begun + Duration::from_micros(100)).unwrap();
        }
        let wide = orders.window;
        assert!(wide > FIRST_WINDOW);
        let (id, _) = orders.next(begun, |_, _| true).unwrap();
        orders.answered(id, begun + Duration::from_millis(5)).unwrap();
        assert_eq!(orders.window, wide / 2);
    }
}
