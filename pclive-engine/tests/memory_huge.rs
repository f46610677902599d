//! Private memory in huge pages of hugetlbfs, from a real process into another one, round by round.

mod subject;

use pclive_engine::memory::MemoryError;
use pclive_engine::model::{ExtentKind, HUGE_PAGE_SIZE as HUGE};
use pclive_tests::huge_pages::HugePages;
use proptest::prelude::*;
use subject::pair::Pair;
use subject::{ARENA, PAGE, Subject};

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
/// Huge pages that the tests work on.
const PLACES: u64 = 4;
/// Enough for a process, its copy, and what neither has given back yet.
const ALLOWED: u64 = 4 * PLACES;
const PAGES: u64 = HUGE / PAGE;

/// KiB of huge pages that a process has to itself.
fn resident(subject: &Subject) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", subject.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Private_Hugetlb:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn huge_pages_stay_huge_and_are_sent_once_written() {
    let _allowed = HugePages::allow(ALLOWED).unwrap();
    let mut pair = Pair::start();
    assert_eq!(pair.source.map(ARENA, PLACES * HUGE, READ_WRITE, PRIVATE), ARENA.cast_signed());
    pair.source.scribble(ARENA + HUGE + 5, 3);
    pair.complete_round();
    assert_eq!((resident(&pair.source), resident(&pair.copy)), (2048, 2048));
    assert_eq!(pair.complete_round(), []);
    pair.source.scribble(ARENA + 2 * HUGE - 1, 2);
    let batches = pair.complete_round();
    let sent: u64 = batches.iter().flat_map(|batch| &batch.extents).map(|extent| extent.pages).sum();
    assert_eq!(sent, 2 * PAGES, "the kernel knows of huge pages only as a whole that they were written");
    pair.source.must(libc::SYS_madvise, &[ARENA + HUGE, HUGE, libc::MADV_DONTNEED as u64]);
    let batches = pair.complete_round();
    assert!(batches.iter().flat_map(|batch| &batch.extents).all(|extent| extent.kind == ExtentKind::Hole));
    assert_eq!((resident(&pair.source), resident(&pair.copy)), (2048, 2048));
    // To look at a huge page is to make it.
    pair.assert_same(PLACES * PAGES);
}

/// The kernel forgets that a page was written when it is discarded and then read (mm/hugetlb.c, `hugetlb_no_page`).
#[test]
fn page_that_was_discarded_and_only_read_again_is_zeros() {
    let _allowed = HugePages::allow(ALLOWED).unwrap();
    let mut pair = Pair::start();
    pair.source.map(ARENA, PLACES * HUGE, READ_WRITE, PRIVATE);
    for (place, page) in [(0, 3), (1, 0), (2, PAGES - 1), (3, 77)] {
        pair.source.scribble(ARENA + place * HUGE + page * PAGE + 4000, 90);
    }
    pair.complete_round();
    pair.source.must(libc::SYS_mprotect, &[ARENA + 2 * HUGE, HUGE, 0]);
    for place in [1, 2] {
        pair.source.must(libc::SYS_madvise, &[ARENA + place * HUGE, HUGE, libc::MADV_DONTNEED as u64]);
    }
    pair.source.must(libc::SYS_madvise, &[ARENA + HUGE, HUGE, libc::MADV_POPULATE_READ as u64]);
    let batches = pair.complete_round();
    assert!(batches.iter().flat_map(|batch| &batch.extents).all(|extent| extent.kind != ExtentKind::Data));
    pair.assert_same(PLACES * PAGES);
    pair.complete_round();
    assert_eq!(pair.complete_round(), [], "what was found out is known");
}

/// The same, of a page of which a round could hand over the first part only.
#[test]
fn page_of_which_a_part_was_sent_is_zeros_once_it_was_discarded() {
    let _allowed = HugePages::allow(ALLOWED).unwrap();
    let mut pair = Pair::start();
    pair.source.map(ARENA, HUGE, READ_WRITE, PRIVATE);
    pair.complete_round();
    for page in [3, 300] {
        pair.source.scribble(ARENA + page * PAGE, PAGE);
    }
    let (batches, failed) = pair.round(1);
    assert!(failed.is_err() && batches.iter().any(|batch| !batch.payload.is_empty()));
    pair.source.must(libc::SYS_madvise, &[ARENA, HUGE, libc::MADV_DONTNEED as u64]);
    pair.source.must(libc::SYS_madvise, &[ARENA, HUGE, libc::MADV_POPULATE_READ as u64]);
    pair.complete_round();
    pair.assert_same(PAGES);
}

/// A part of a mapping is moved in no test: Linux 6.18 keeps pages reserved for it that nobody can use any more.
#[test]
fn memory_that_moved_is_sent_again() {
    let _allowed = HugePages::allow(ALLOWED).unwrap();
    let mut pair = Pair::start();
    pair.source.map(ARENA, HUGE, READ_WRITE, PRIVATE);
    pair.source.scribble(ARENA, 5 * PAGE);
    pair.complete_round();
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    pair.source.must(libc::SYS_mremap, &[ARENA, HUGE, HUGE, flags, ARENA + 2 * HUGE]);
    pair.source.scribble(ARENA + 2 * HUGE + 7 * PAGE, 1);
    pair.complete_round();
    pair.assert_same(PLACES * PAGES);
}

/// Something that a program does to its memory; places are huge pages of the arena.
#[derive(Debug, Clone)]
enum Step {
    Map {
        at: u64,
        len: u64,
        protection: i32,
    },
    /// Ordinary memory, in pages.
    MapOrdinary {
        page: u64,
        len: u64,
    },
    Unmap {
        at: u64,
        len: u64,
    },
    Protect {
        at: u64,
        len: u64,
        protection: i32,
    },
    Advise {
        at: u64,
        len: u64,
        advice: u64,
    },
    Scribble {
        at: u64,
        len: u64,
    },
    Round {
        patience: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let at = || 0..PLACES;
    let len = || 1..3u64;
    let protection = || prop::sample::select(vec![READ_WRITE, READ_WRITE, libc::PROT_READ, libc::PROT_NONE]);
    // DONTNEED, POPULATE_READ, POPULATE_WRITE
    let advice = prop::sample::select(vec![4, 4, 22, 23]);
    prop_oneof![
        3 => (at(), len(), protection()).prop_map(|(at, len, protection)| Step::Map { at, len, protection }),
        1 => (0..PLACES * PAGES, 1..1000u64).prop_map(|(page, len)| Step::MapOrdinary { page, len }),
        1 => (at(), len()).prop_map(|(at, len)| Step::Unmap { at, len }),
        1 => (at(), len(), protection())
            .prop_map(|(at, len, protection)| Step::Protect { at, len, protection }),
        2 => (at(), len(), advice).prop_map(|(at, len, advice)| Step::Advise { at, len, advice }),
        5 => (0..PLACES * HUGE, 1..3 * PAGE).prop_map(|(at, len)| Step::Scribble { at, len }),
        3 => prop_oneof![Just(usize::MAX), 0..300usize].prop_map(|patience| Step::Round { patience }),
    ]
}

impl Step {
    /// What the kernel refuses changes nothing.
    fn run(&self, pair: &mut Pair) {
        let place = |number: u64| ARENA + number * HUGE;
        match *self {
            Step::Map { at, len, protection } => {
                pair.source.map(place(at), len * HUGE, protection, PRIVATE);
            }
            Step::MapOrdinary { page, len } => {
                pair.source.map(ARENA + page * PAGE, len * PAGE, READ_WRITE, libc::MAP_PRIVATE);
            }
            Step::Unmap { at, len } => {
                pair.source.call(libc::SYS_munmap, &[place(at), len * HUGE]);
            }
            Step::Protect { at, len, protection } => {
                pair.source.call(libc::SYS_mprotect, &[place(at), len * HUGE, protection as u64]);
            }
            Step::Advise { at, len, advice } => {
                pair.source.call(libc::SYS_madvise, &[place(at), len * HUGE, advice]);
            }
            Step::Scribble { at, len } => {
                pair.source.scribble(ARENA + at, len);
            }
            Step::Round { patience } => {
                let (_, result) = pair.round(patience);
                assert!(matches!(result, Ok(()) | Err(MemoryError::Sink(_))), "{result:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_copy_is_the_same_whatever_the_program_does(steps in prop::collection::vec(step(), 1..40)) {
        the_copy_is_the_same(Pair::start(), &steps);
    }

    #[test]
    fn rounds_that_wait_and_are_merged_make_the_same_copy(steps in prop::collection::vec(step(), 1..40)) {
        the_copy_is_the_same(Pair::pipelined(1), &steps);
    }
}

fn the_copy_is_the_same(mut pair: Pair, steps: &[Step]) {
    let _allowed = HugePages::allow(ALLOWED).unwrap();
    for step in steps {
        step.run(&mut pair);
    }
    for _ in 0..2 {
        pair.complete_round();
        pair.settle();
        // A mapping may reach beyond the last place.
        pair.assert_same((PLACES + 2) * PAGES);
    }
}
