//! The store against a map of single pages.

use std::collections::BTreeMap;

use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::model::{Extent, Mapping, PAGE_SIZE, Protection, VmaFlags};

const PAGE: usize = PAGE_SIZE as usize;

/// A page as the oracle sees it: the byte it is full of, or what else became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Page {
    Full(u8),
    Plain(ExtentKind),
}

fn batch(target: Target, extents: &[(u64, u64, Page)]) -> Batch {
    let mut payload = BytesMut::new();
    let mut list = Vec::new();
    for (start, pages, page) in extents {
        let kind = match page {
            Page::Full(byte) => {
                payload.resize(payload.len() + *pages as usize * PAGE, *byte);
                ExtentKind::Data
            }
            Page::Plain(kind) => *kind,
        };
        list.push(Extent { start: start * PAGE_SIZE, pages: *pages, kind });
    }
    Batch { target, extents: list, payload: payload.freeze() }
}

/// What is known of every page.
type Known = BTreeMap<(Target, u64), Page>;

fn pages_of(batch: &Batch) -> Known {
    check_batch(batch, u64::MAX).unwrap();
    let mut pages = Known::new();
    let mut contents = batch.payload.chunks_exact(PAGE);
    for extent in &batch.extents {
        for page in 0..extent.pages {
            let what = match extent.kind {
                ExtentKind::Data => {
                    let bytes = contents.next().unwrap();
                    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
                    Page::Full(bytes[0])
                }
                kind @ (ExtentKind::Zero | ExtentKind::Hole | ExtentKind::Guard) => Page::Plain(kind),
            };
            assert_eq!(pages.insert((batch.target, extent.start / PAGE_SIZE + page), what), None);
        }
    }
    pages
}

fn applied(staging: &mut Staging) -> Known {
    let mut all = Known::new();
    let put = &mut |batch: &Batch| {
        pages_of(batch).into_iter().for_each(|(at, page)| assert_eq!(all.insert(at, page), None));
        Ok::<(), StagingError>(())
    };
    staging.apply(put).unwrap();
    all
}

/// One batch of the whole rounds.
fn next(staging: &mut Staging) -> Known {
    let mut pages = Known::new();
    let put = &mut |batch: &Batch| {
        pages = pages_of(batch);
        Ok::<(), StagingError>(())
    };
    staging.apply_next(put).unwrap();
    pages
}

fn page() -> impl Strategy<Value = Page> {
    let plain = vec![ExtentKind::Zero, ExtentKind::Hole, ExtentKind::Guard];
    prop_oneof![4 => any::<u8>().prop_map(Page::Full), 1 => prop::sample::select(plain).prop_map(Page::Plain)]
}

proptest! {
    #[test]
    fn newest_word_on_every_page_is_yielded_once(
        writes in prop::collection::vec((0u64..2, 0u64..40, 1u64..9, page()), 0..60)
    ) {
        let mut staging = Staging::new(1 << 30).unwrap();
        let mut oracle = BTreeMap::new();
        for (object, start, pages, page) in writes {
            let target = Target::Object(object);
            staging.stage(&batch(target, &[(start, pages, page)])).unwrap();
            (start..start + pages).for_each(|at| { oracle.insert((target, at), page); });
            let data = oracle.values().filter(|page| matches!(page, Page::Full(_))).count();
            prop_assert_eq!(staging.staged_bytes(), (data * PAGE) as u64);
            prop_assert!(staging.peak_bytes() <= (2 * 49 * PAGE) as u64);
        }
        prop_assert_eq!(applied(&mut staging), oracle);
        prop_assert_eq!(staging.staged_bytes(), 0);
        prop_assert_eq!(applied(&mut staging), BTreeMap::new());
    }
}

/// What happens to a store between its first and its last round.
#[derive(Debug, Clone)]
enum Event {
    /// Pages of the round on its way.
    Stage(u64, u64, Page),
    /// The same pages by another way.
    Supersede(u64, u64, Page),
    /// The round is whole.
    Seal,
    /// One batch is taken.
    Next,
    /// A layout in which these pages are not mapped.
    Layout(u64, u64),
}

fn event() -> impl Strategy<Value = Event> {
    let run = || (0u64..40, 1u64..9);
    prop_oneof![
        6 => (run(), page()).prop_map(|((at, pages), page)| Event::Stage(at, pages, page)),
        1 => (run(), page()).prop_map(|((at, pages), page)| Event::Supersede(at, pages, page)),
        2 => Just(Event::Seal),
        4 => Just(Event::Next),
        1 => run().prop_map(|(at, pages)| Event::Layout(at, pages)),
    ]
}

proptest! {
    /// The oracle is a copy that every word reaches at once.
    #[test]
    fn a_copy_that_rounds_reach_late_ends_as_one_that_they_reach_at_once(
        events in prop::collection::vec(event(), 0..80)
    ) {
        let target = Target::Process(Vpid(1));
        let mut staging = Staging::new(1 << 30).unwrap();
        let (mut copy, mut oracle, mut arriving) = (Known::new(), Known::new(), Known::new());
        staging.follow(&layout(1, &[(0, 60)])).unwrap();
        for event in events {
            match event {
                Event::Stage(at, pages, page) => {
                    let batch = batch(target, &[(at, pages, page)]);
                    staging.stage(&batch).unwrap();
                    oracle.extend(pages_of(&batch));
                    arriving.extend(pages_of(&batch));
                }
                Event::Supersede(at, pages, page) => {
                    let batch = batch(target, &[(at, pages, page)]);
                    staging.supersede(&batch).unwrap();
                    oracle.extend(pages_of(&batch));
                    copy.extend(pages_of(&batch));
                    arriving.retain(|(_, page), _| !(at..at + pages).contains(page));
                }
                Event::Seal => {
                    staging.seal();
                    arriving.clear();
                }
                Event::Next => {
                    let some = next(&mut staging);
                    prop_assert!(some.keys().all(|at| !arriving.contains_key(at)), "a round that is not whole");
                    copy.extend(some);
                }
                Event::Layout(at, pages) => {
                    let left = [(0, at), (at + pages, 60)].map(|(from, to)| (from.min(60), to.max(1)));
                    let left: Vec<_> = left.into_iter().filter(|(from, to)| from < to && (at > 0 || *from > 0)).collect();
                    staging.follow(&layout(1, &left)).unwrap();
                    staging.follow(&layout(1, &[(0, 60)])).unwrap();
                    for known in [&mut copy, &mut oracle, &mut arriving] {
                        known.retain(|(_, page), _| !(at..at + pages).contains(page));
                    }
                }
            }
        }
        copy.extend(applied(&mut staging));
        prop_assert_eq!(copy, oracle);
        prop_assert_eq!(staging.staged_bytes(), 0);
    }
}

#[test]
fn a_round_on_its_way_is_not_yielded_and_its_pages_replace_older_ones() {
    let target = Target::Object(3);
    let mut staging = Staging::new(1 << 30).unwrap();
    staging.stage(&batch(target, &[(0, 4, Page::Full(1))])).unwrap();
    assert_eq!(next(&mut staging), Known::new());
    staging.seal();
    staging.stage(&batch(target, &[(2, 4, Page::Full(2))])).unwrap();
    let first: Known = (0..2).map(|page| ((target, page), Page::Full(1))).collect();
    assert_eq!(next(&mut staging), first);
    assert!(!staging.has_whole());
    assert_eq!(staging.staged_bytes(), 4 * PAGE_SIZE);
    assert_eq!(staging.peak_bytes(), 6 * PAGE_SIZE);
}

#[test]
fn memory_is_given_back_as_it_is_yielded() {
    use std::os::unix::fs::MetadataExt;
    let held = |staging: &Staging| staging.file.metadata().unwrap().blocks() * 512;
    let mut staging = Staging::new(1 << 30).unwrap();
    for part in 0..16 {
        staging.stage(&batch(Target::Object(0), &[(part * 256, 256, Page::Full(7))])).unwrap();
    }
    staging.seal();
    let mut before = held(&staging);
    assert_eq!(before, 16 << 20);
    while staging.has_whole() {
        next(&mut staging);
        assert!(held(&staging) < before);
        before = held(&staging);
    }
    assert_eq!(before, 0);
}

fn layout(generation: u32, vmas: &[(u64, u64)]) -> Layout {
    let vma = |(start, end): &(u64, u64)| Vma {
        start: start * PAGE_SIZE,
        end: end * PAGE_SIZE,
        protection: Protection::default(),
        flags: VmaFlags::default(),
        mapping: Mapping::PrivateAnonymous,
    };
    let process = ProcessLayout {
        vpid: Vpid(1),
        start_time: 7,
        parent: Vpid(0),
        pgid: Vpid(1),
        sid: Vpid(1),
        terminal: None,
        zombie: None,
        generation,
        exe: Vec::new(),
        threads: Vec::new(),
        vmas: vmas.iter().map(vma).collect(),
        vdso: Default::default(),
    };
    Layout { processes: vec![process], ..Layout::default() }
}

#[test]
fn pages_of_memory_that_is_no_more_are_dropped() {
    let target = Target::Process(Vpid(1));
    let mut staging = Staging::new(1 << 30).unwrap();
    staging.follow(&layout(1, &[(0, 10)])).unwrap();
    staging.stage(&batch(target, &[(0, 10, Page::Full(1))])).unwrap();
    staging.follow(&layout(1, &[(0, 3), (6, 10)])).unwrap();
    staging.follow(&layout(1, &[(0, 10)])).unwrap();
    let left: Vec<u64> = applied(&mut staging).into_keys().map(|(_, page)| page).collect();
    assert_eq!(left, [0, 1, 2, 6, 7, 8, 9]);
    staging.stage(&batch(target, &[(0, 10, Page::Full(1))])).unwrap();
    staging.follow(&layout(2, &[(0, 10)])).unwrap();
    assert_eq!(applied(&mut staging), BTreeMap::new());
}

#[test]
fn limit_is_kept_and_newer_contents_need_no_more_room() {
    let mut staging = Staging::new(4 * PAGE_SIZE).unwrap();
    let target = Target::Object(0);
    for byte in 0..10 {
        staging.stage(&batch(target, &[(0, 4, Page::Full(byte))])).unwrap();
    }
    let more = staging.stage(&batch(target, &[(4, 1, Page::Full(1))]));
    assert!(matches!(more, Err(StagingError::Full { .. })));
    assert_eq!(staging.peak_bytes(), 4 * PAGE_SIZE);
}

#[test]
fn malformed_batches_are_refused() {
    let mut staging = Staging::new(1 << 30).unwrap();
    let mut short = batch(Target::Object(0), &[(0, 2, Page::Full(1))]);
    short.payload.truncate(PAGE);
    assert!(matches!(staging.stage(&short), Err(StagingError::Malformed(_))));
    let mut huge = batch(Target::Object(0), &[]);
    huge.extents.push(Extent { start: 0, pages: u64::MAX, kind: ExtentKind::Zero });
    assert!(matches!(staging.stage(&huge), Err(StagingError::Malformed(_))));
}
