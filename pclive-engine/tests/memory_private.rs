//! Private memory from a real process into another one, round by round.

mod subject;

use pclive_engine::memory::{MemoryError, Objects, SharedWrites};
use pclive_engine::model::{Batch, ExtentKind, Mapping};
use pclive_engine::remote::{Outcome, RemoteTask};
use proptest::prelude::*;
use subject::pair::Pair;
use subject::{ARENA, PAGE};

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

fn pages(batches: &[Batch], kind: ExtentKind) -> Vec<u64> {
    let extents = batches.iter().flat_map(|batch| &batch.extents).filter(|extent| extent.kind == kind);
    extents.flat_map(|e| (0..e.pages).map(|page| (e.start - ARENA) / PAGE + page)).collect()
}

#[test]
fn first_round_sends_what_is_there_and_the_next_what_was_written() {
    let mut pair = Pair::start();
    pair.source.map(ARENA, 16 * PAGE, READ_WRITE, libc::MAP_PRIVATE);
    pair.source.scribble(ARENA + 2 * PAGE, 4 * PAGE);
    assert_eq!(pages(&pair.complete_round(), ExtentKind::Data), [2, 3, 4, 5]);
    assert_eq!(pair.complete_round(), []);
    pair.source.scribble(ARENA + 4 * PAGE + 100, 8);
    pair.source.scribble(ARENA + 9 * PAGE, 1);
    assert_eq!(pages(&pair.complete_round(), ExtentKind::Data), [4, 9]);
    pair.assert_same(16);
}

#[test]
fn pending_pages_are_counted_and_stay_dirty() {
    let mut pair = Pair::start();
    pair.source.map(ARENA, 64 * PAGE, READ_WRITE, libc::MAP_PRIVATE);
    pair.source.scribble(ARENA, 8 * PAGE);
    pair.complete_round();
    let arena = [(ARENA, ARENA + 64 * PAGE)];
    let pending =
        |pair: &Pair| pair.space.pending(&arena, &mut Objects::new(), &mut SharedWrites::new()).unwrap();
    assert_eq!(pending(&pair), 0);
    pair.source.scribble(ARENA + 3 * PAGE, PAGE + 1);
    pair.source.scribble(ARENA + 20 * PAGE, 5 * PAGE);
    assert_eq!((pending(&pair), pending(&pair)), (7, 7));
    let (_, failed) = pair.round(0);
    assert!(failed.is_err());
    assert_eq!(pending(&pair), 7, "what was not handed over is still to be sent");
    assert_eq!(pages(&pair.complete_round(), ExtentKind::Data), [3, 4, 20, 21, 22, 23, 24]);
    assert_eq!(pending(&pair), 0);
}

#[test]
fn failed_round_keeps_dirty_bits() {
    let mut pair = Pair::start();
    pair.source.map(ARENA, 32 * PAGE, READ_WRITE, libc::MAP_PRIVATE);
    pair.source.scribble(ARENA, 32 * PAGE);
    let (batches, result) = pair.round(2);
    assert!(matches!(result, Err(MemoryError::Sink(_))));
    assert_eq!(pages(&batches, ExtentKind::Data), Vec::from_iter(0..10));
    assert_eq!(pages(&pair.complete_round(), ExtentKind::Data), Vec::from_iter(10..32));
    pair.assert_same(32);
}

#[test]
fn discarded_and_zero_pages_travel_without_contents() {
    let mut pair = Pair::start();
    pair.source.map(ARENA, 64 * PAGE, READ_WRITE, libc::MAP_PRIVATE);
    pair.source.scribble(ARENA, 64 * PAGE);
    pair.complete_round();
    pair.source.must(libc::SYS_madvise, &[ARENA + PAGE, 40 * PAGE, libc::MADV_DONTNEED as u64]);
    let null = pair.source.open(b"/dev/zero", libc::O_RDONLY);
    pair.source.must(libc::SYS_read, &[null, ARENA + 50 * PAGE, 3 * PAGE]);
    let batches = pair.complete_round();
    assert_eq!(pages(&batches, ExtentKind::Hole), Vec::from_iter(1..41));
    assert_eq!(pages(&batches, ExtentKind::Zero), [50, 51, 52]);
    assert_eq!(pages(&batches, ExtentKind::Data), [] as [u64; 0]);
    pair.assert_same(64);
}

#[test]
fn private_file_mapping_sends_only_pages_that_differ_from_the_file() {
    let mut pair = Pair::start();
    let path = pair.file.path().as_os_str().as_encoded_bytes().to_vec();
    pair.source.map_file(&path, (ARENA, ARENA + 16 * PAGE), READ_WRITE, libc::MAP_PRIVATE, 2 * PAGE);
    pair.source.must(libc::SYS_madvise, &[ARENA, 16 * PAGE, 22 /* MADV_POPULATE_READ */]);
    pair.source.scribble(ARENA + 3 * PAGE, 2 * PAGE);
    assert_eq!(pages(&pair.complete_round(), ExtentKind::Data), [3, 4]);
    pair.source.scribble(ARENA + 7 * PAGE, 10);
    pair.source.must(libc::SYS_madvise, &[ARENA + 4 * PAGE, PAGE, libc::MADV_DONTNEED as u64]);
    let batches = pair.complete_round();
    assert!(pages(&batches, ExtentKind::Data).contains(&7));
    pair.assert_same(16);
    assert_eq!(pages(&pair.complete_round(), ExtentKind::Hole), [4]);
    pair.assert_same(16);
    assert_eq!(pair.complete_round(), []);
}

#[test]
fn memory_without_any_permission_is_carried() {
    let mut pair = Pair::start();
    pair.source.map(ARENA, 8 * PAGE, READ_WRITE, libc::MAP_PRIVATE);
    pair.source.scribble(ARENA, 8 * PAGE);
    pair.source.must(libc::SYS_mprotect, &[ARENA + 2 * PAGE, 3 * PAGE, 0]);
    pair.source.must(libc::SYS_mprotect, &[ARENA + 6 * PAGE, PAGE, libc::PROT_READ as u64]);
    assert_eq!(pages(&pair.complete_round(), ExtentKind::Data), Vec::from_iter(0..8));
    pair.assert_same(8);
}

#[test]
fn memory_mapped_anew_at_the_same_address_is_sent_again() {
    let mut pair = Pair::start();
    pair.source.map(ARENA, 8 * PAGE, READ_WRITE, libc::MAP_PRIVATE);
    pair.source.scribble(ARENA, 8 * PAGE);
    pair.complete_round();
    pair.source.map(ARENA, 8 * PAGE, READ_WRITE, libc::MAP_PRIVATE);
    pair.source.scribble(ARENA + PAGE, PAGE);
    let batches = pair.complete_round();
    assert_eq!(pages(&batches, ExtentKind::Data), [1]);
    assert_eq!(pages(&batches, ExtentKind::Hole), [0, 2, 3, 4, 5, 6, 7]);
    pair.assert_same(8);
}

#[test]
fn another_program_means_another_address_space() {
    let mut pair = Pair::start();
    pair.source.map(ARENA, 8 * PAGE, READ_WRITE, libc::MAP_PRIVATE);
    pair.source.scribble(ARENA, 8 * PAGE);
    pair.complete_round();
    let at = pair.source.task.scratch().start;
    let words = [at.0 + 64, at.0 + 72, 0];
    let mut arguments: Vec<u8> = words.iter().flat_map(|word: &u64| word.to_le_bytes()).collect();
    arguments.resize(64, 0);
    arguments.extend_from_slice(b"sleep\0\0\0999\0/bin/sleep\0");
    pair.source.task.write(at, &arguments).unwrap();
    let call = pclive_engine::remote::Call::new(libc::SYS_execve, &[at.0 + 76, at.0, 0]);
    assert_eq!(pair.source.task.run_to(&[call]).unwrap().0, Outcome::Replaced);
    let result = pair.space.round(&[], 1 << 20, &mut |_| Ok(()));
    assert!(matches!(result, Err(MemoryError::AddressSpaceGone { .. })), "{result:?}");
}

#[test]
fn ended_process_is_reported_as_gone() {
    let Pair { source, mut space, vmas, .. } = Pair::start();
    drop(source);
    let result = space.round(&vmas, 1 << 20, &mut |_| Ok(()));
    assert!(matches!(result, Err(MemoryError::AddressSpaceGone { .. })), "{result:?}");
}

/// Something that a program does to its memory, in pages of the arena.
#[derive(Debug, Clone)]
enum Step {
    Map { at: u64, len: u64, protection: i32 },
    MapFile { at: u64, len: u64, offset: u64 },
    Unmap { at: u64, len: u64 },
    Protect { at: u64, len: u64, protection: i32 },
    Advise { at: u64, len: u64, advice: u64 },
    Scribble { at: u64, len: u64 },
    Zero { at: u64, len: u64 },
    Move { from: u64, len: u64, to: u64 },
    Round { patience: usize },
}

const ARENA_PAGES: u64 = 40;
const GUARD_INSTALL: u64 = 102;

fn step() -> impl Strategy<Value = Step> {
    let at = || 0..ARENA_PAGES - 8;
    let len = || 1..9u64;
    let protection =
        || prop::sample::select(vec![READ_WRITE, READ_WRITE, READ_WRITE, libc::PROT_READ, libc::PROT_NONE]);
    // DONTNEED, POPULATE_READ, POPULATE_WRITE, COLD, PAGEOUT, GUARD_REMOVE
    let advice = prop::sample::select(vec![4, 4, 22, 23, 20, 21, GUARD_INSTALL, 103]);
    prop_oneof![
        2 => (at(), len(), protection()).prop_map(|(at, len, protection)| Step::Map { at, len, protection }),
        2 => (at(), len(), 0..32u64).prop_map(|(at, len, offset)| Step::MapFile { at, len, offset }),
        1 => (at(), len()).prop_map(|(at, len)| Step::Unmap { at, len }),
        1 => (at(), len(), protection())
            .prop_map(|(at, len, protection)| Step::Protect { at, len, protection }),
        3 => (at(), len(), advice).prop_map(|(at, len, advice)| Step::Advise { at, len, advice }),
        4 => (at(), len()).prop_map(|(at, len)| Step::Scribble { at, len }),
        1 => (at(), len()).prop_map(|(at, len)| Step::Zero { at, len }),
        1 => (at(), len(), at()).prop_map(|(from, len, to)| Step::Move { from, len, to }),
        3 => prop_oneof![Just(usize::MAX), 0..4usize].prop_map(|patience| Step::Round { patience }),
    ]
}

fn has_file(pair: &Pair, start: u64, end: u64) -> bool {
    let vmas = pair.source.vmas(&mut Objects::new());
    let mut within = vmas.iter().filter(|vma| vma.start < end && vma.end > start);
    within.any(|vma| vma.mapping != Mapping::PrivateAnonymous)
}

impl Step {
    fn run(&self, pair: &mut Pair, zero: u64) {
        let byte = |page: u64| ARENA + page * PAGE;
        match *self {
            Step::Map { at, len, protection } => {
                pair.source.map(byte(at), len * PAGE, protection, libc::MAP_PRIVATE);
            }
            Step::MapFile { at, len, offset } => {
                let path = pair.file.path().as_os_str().as_encoded_bytes().to_vec();
                let range = (byte(at), byte(at + len));
                pair.source.map_file(&path, range, READ_WRITE, libc::MAP_PRIVATE, offset * PAGE);
            }
            Step::Unmap { at, len } => {
                pair.source.call(libc::SYS_munmap, &[byte(at), len * PAGE]);
            }
            Step::Protect { at, len, protection } => {
                pair.source.call(libc::SYS_mprotect, &[byte(at), len * PAGE, protection as u64]);
            }
            // Linux 6.18 retries for ever when a guard replaces a protected page of a file mapping: it leaves a
            // marker behind each time it discards the page.
            Step::Advise { at, len, advice: GUARD_INSTALL } if has_file(pair, byte(at), byte(at + len)) => {}
            Step::Advise { at, len, advice } => {
                pair.source.call(libc::SYS_madvise, &[byte(at), len * PAGE, advice]);
            }
            Step::Scribble { at, len } => {
                pair.source.scribble(byte(at) + 5, len * PAGE - 100);
            }
            Step::Zero { at, len } => {
                pair.source.call(libc::SYS_read, &[zero, byte(at), len * PAGE]);
            }
            Step::Move { from, len, to } => {
                let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
                pair.source.call(libc::SYS_mremap, &[byte(from), len * PAGE, len * PAGE, flags, byte(to)]);
            }
            Step::Round { patience } => {
                let (_, result) = pair.round(patience);
                assert!(matches!(result, Ok(()) | Err(MemoryError::Sink(_))), "{result:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_copy_is_the_same_whatever_the_program_does(steps in prop::collection::vec(step(), 1..60)) {
        the_copy_is_the_same(Pair::start(), &steps);
    }

    #[test]
    fn rounds_that_wait_and_are_merged_make_the_same_copy(
        steps in prop::collection::vec(step(), 1..60),
        slices in 0..3usize,
    ) {
        the_copy_is_the_same(Pair::pipelined(slices), &steps);
    }
}

fn the_copy_is_the_same(mut pair: Pair, steps: &[Step]) {
    let zero = pair.source.open(b"/dev/zero", libc::O_RDONLY);
    for step in steps {
        step.run(&mut pair, zero);
    }
    for _ in 0..2 {
        pair.complete_round();
        pair.settle();
        pair.assert_same(ARENA_PAGES);
    }
}

#[test]
fn contents_on_a_guard_page_whose_end_was_merged_away_arrive() {
    let mut pair = Pair::pipelined(0);
    pair.source.map(ARENA, 8 * PAGE, READ_WRITE, libc::MAP_PRIVATE);
    pair.source.scribble(ARENA, 8 * PAGE);
    pair.source.must(libc::SYS_madvise, &[ARENA + PAGE, 4 * PAGE, GUARD_INSTALL]);
    pair.complete_round();
    pair.settle();
    pair.source.must(libc::SYS_madvise, &[ARENA + PAGE, 3 * PAGE, 103 /* MADV_GUARD_REMOVE */]);
    pair.complete_round();
    pair.source.scribble(ARENA + 2 * PAGE, PAGE);
    pair.complete_round();
    pair.settle();
    pair.assert_same(8);
}
