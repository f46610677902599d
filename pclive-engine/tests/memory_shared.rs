//! Shared memory of real processes into an object, round by round.

mod subject;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use pclive_engine::capture::SinkError;
use pclive_engine::memory::{AddressSpace, MemoryError, ObjectStore, Objects, Task};
use pclive_engine::model::layout::{ObjectKind, ObjectLayout};
use pclive_engine::model::{Batch, ExtentKind, Target};
use pclive_tests::huge_pages::HugePages;
use proptest::prelude::*;
use subject::{ARENA, PAGE, Subject};

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const PAGES: u64 = 24;
/// Pages of a huge page, which is as much as one table of the kernel describes.
const TABLE: u64 = 512;

/// Two processes that share memory, and the copy of that memory.
struct Family {
    members: [(Subject, AddressSpace); 2],
    objects: Objects,
    store: ObjectStore,
    copy: File,
    pages: u64,
}

/// Both map what is at the arena's start of the first one; `path` is a file, or nothing for anonymous memory.
fn family(path: Option<&[u8]>) -> Family {
    family_of(PAGES, path)
}

/// Two that share so many pages.
fn family_of(pages: u64, path: Option<&[u8]>) -> Family {
    family_with(pages, path, tempfile::tempfile().unwrap())
}

fn family_with(pages: u64, path: Option<&[u8]>, copy: File) -> Family {
    let (mut first, mut second) = (Subject::start(), Subject::start());
    let end = ARENA + pages * PAGE;
    match path {
        Some(path) => {
            first.map_file(path, (ARENA, end), READ_WRITE, libc::MAP_SHARED, 0);
            second.map_file(path, (ARENA, end), READ_WRITE, libc::MAP_SHARED, 0);
        }
        None => {
            first.map(ARENA, pages * PAGE, READ_WRITE, libc::MAP_SHARED);
            let link = format!("/proc/{}/map_files/{ARENA:x}-{end:x}", first.pid());
            second.map_file(link.as_bytes(), (ARENA, end), READ_WRITE, libc::MAP_SHARED, 0);
        }
    }
    let (one, two) = (first.track(), second.track());
    // An object that was changed just now is compared as a whole, which would hide what a tracker overlooks.
    next_tick();
    copy.set_len(pages * PAGE).unwrap();
    let members = [(first, one), (second, two)];
    Family { members, objects: Objects::new(), store: ObjectStore::new(), copy, pages }
}

impl Family {
    fn layouts(&mut self) -> Vec<ObjectLayout> {
        self.objects.layouts()
    }

    /// One round; the sink fails after `patience` batches.
    fn round(&mut self, task: Task, patience: usize) -> (Vec<Batch>, Result<(), MemoryError>) {
        self.objects.begin_round();
        for (subject, space) in &mut self.members {
            let vmas = subject.vmas(&mut self.objects);
            space.collect_shared(&vmas, &mut self.objects).unwrap();
        }
        for object in self.layouts() {
            if !self.store.contains(object.id) {
                self.store.insert(&object, self.copy.try_clone().unwrap()).unwrap();
            }
        }
        let mut batches = Vec::new();
        let store = &mut self.store;
        let result = self.objects.round(task, 4 * PAGE as usize, &mut |batch| {
            if batches.len() == patience {
                return Err(SinkError { reason: "the test's sink is full".into() });
            }
            store.fill(&batch).unwrap();
            batches.push(batch);
            Ok(())
        });
        (batches, result.map(drop))
    }

    fn complete_round(&mut self) -> Vec<Batch> {
        let (batches, result) = self.round(Task::Runs, usize::MAX);
        result.unwrap();
        batches
    }

    /// The one in which the container is stopped.
    fn last_round(&mut self) -> Vec<Batch> {
        let (batches, result) = self.round(Task::IsStopped, usize::MAX);
        result.unwrap();
        batches
    }

    fn assert_same(&self, member: usize) {
        for page in 0..self.pages {
            let mut theirs = vec![0; PAGE as usize];
            self.copy.read_exact_at(&mut theirs, page * PAGE).unwrap();
            let ours = self.members[member].0.page(ARENA + page * PAGE).unwrap();
            assert!(ours == theirs, "page {page}: {:x?} and {:x?}", &ours[..16], &theirs[..16]);
        }
    }

    fn scribble(&mut self, member: usize, page: u64, pages: u64) {
        self.members[member].0.scribble(ARENA + page * PAGE, pages * PAGE);
    }
}

fn pages(batches: &[Batch], kind: ExtentKind) -> Vec<u64> {
    let extents = batches.iter().flat_map(|batch| &batch.extents).filter(|extent| extent.kind == kind);
    extents.flat_map(|e| (0..e.pages).map(|page| e.start / PAGE + page)).collect()
}

#[test]
fn writes_of_both_processes_are_sent_once() {
    let mut family = family(None);
    family.scribble(0, 0, 8);
    let batches = family.complete_round();
    assert_eq!(family.layouts().len(), 1);
    assert_eq!(family.layouts()[0].kind, ObjectKind::Anonymous);
    assert_eq!(pages(&batches, ExtentKind::Data), Vec::from_iter(0..8));
    assert!(batches.iter().all(|batch| batch.target == Target::Object(0)));
    family.scribble(0, 3, 1);
    family.scribble(1, 3, 2);
    family.scribble(1, 20, 1);
    assert_eq!(pages(&family.complete_round(), ExtentKind::Data), [3, 4, 20]);
    family.assert_same(0);
    family.assert_same(1);
}

#[test]
fn huge_pages_are_carried_as_a_whole() {
    let _allowed = HugePages::allow(8).unwrap();
    let huge = || File::from(memfd_create(c"huge", MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB).unwrap());
    let (ours, copy) = (huge(), huge());
    ours.set_len(2 * TABLE * PAGE).unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), ours.as_raw_fd());
    let mut family = family_with(2 * TABLE, Some(path.as_bytes()), copy);
    family.scribble(0, 3, 8);
    assert_eq!(pages(&family.complete_round(), ExtentKind::Data), Vec::from_iter(3..11));
    assert_eq!(family.layouts().iter().map(|object| object.huge).collect::<Vec<_>>(), [true]);
    family.assert_same(0);
    family.complete_round();
    family.scribble(1, TABLE + 7, 1);
    assert!(pages(&family.complete_round(), ExtentKind::Data).contains(&(TABLE + 7)));
    family.assert_same(0);
    family.members[1].0.must(libc::SYS_madvise, &[ARENA, TABLE * PAGE, libc::MADV_REMOVE as u64]);
    family.scribble(1, TABLE + 8, 1);
    family.last_round();
    family.assert_same(0);
}

#[test]
fn failed_round_keeps_dirty_bits() {
    let mut family = family(None);
    family.scribble(0, 0, 12);
    let (batches, result) = family.round(Task::Runs, 1);
    assert!(matches!(result, Err(MemoryError::Sink(_))));
    assert_eq!(pages(&batches, ExtentKind::Data), [0, 1, 2, 3]);
    assert_eq!(pages(&family.complete_round(), ExtentKind::Data), Vec::from_iter(4..12));
    family.assert_same(0);
}

#[test]
fn punched_holes_are_told() {
    let mut family = family(None);
    family.scribble(0, 0, 12);
    family.complete_round();
    family.members[1].0.must(libc::SYS_madvise, &[ARENA + 2 * PAGE, 5 * PAGE, libc::MADV_REMOVE as u64]);
    assert_eq!(pages(&family.complete_round(), ExtentKind::Hole), [2, 3, 4, 5, 6]);
    family.assert_same(0);
}

#[test]
fn what_a_process_wrote_before_it_unmapped_is_not_lost() {
    let mut family = family(None);
    family.scribble(0, 0, 12);
    family.complete_round();
    family.scribble(1, 5, 1);
    family.members[1].0.must(libc::SYS_munmap, &[ARENA, PAGES * PAGE]);
    assert_eq!(pages(&family.complete_round(), ExtentKind::Data), [5]);
    family.assert_same(0);
}

#[test]
fn what_a_child_wrote_and_ended_unseen_is_not_lost() {
    let mut family = family(None);
    family.scribble(0, 0, 12);
    family.complete_round();
    let end = ARENA + PAGES * PAGE;
    let link = format!("/proc/{}/map_files/{ARENA:x}-{end:x}", family.members[0].0.pid());
    let mut child = Subject::start();
    child.map_file(link.as_bytes(), (ARENA, end), READ_WRITE, libc::MAP_SHARED, 0);
    child.scribble(ARENA + 7 * PAGE, 10);
    drop(child);
    assert_eq!(pages(&family.last_round(), ExtentKind::Data), [7]);
    family.assert_same(1);
}

/// Where a process maps the memory for a moment.
const ELSEWHERE: u64 = ARENA + (1 << 30);

impl Family {
    /// A process maps the memory, reads all of it, writes into one page and unmaps it.
    fn write_in_passing(&mut self, member: usize, path: &[u8], page: u64) {
        let (subject, len) = (&mut self.members[member].0, self.pages * PAGE);
        subject.map_file(path, (ELSEWHERE, ELSEWHERE + len), READ_WRITE, libc::MAP_SHARED, 0);
        subject.must(libc::SYS_madvise, &[ELSEWHERE, len, libc::MADV_POPULATE_READ as u64]);
        subject.scribble(ELSEWHERE + page * PAGE + 3, 5);
        subject.must(libc::SYS_munmap, &[ELSEWHERE, len]);
    }
}

/// The clock of a file system moves on, so that what happens next has another time.
fn next_tick() {
    std::thread::sleep(Duration::from_millis(60));
}

fn nothing_of_a_moment_is_lost(path: &[u8]) {
    let mut family = family(Some(path));
    family.scribble(0, 0, 12);
    for page in [7, 3, 3, 11] {
        family.complete_round();
        next_tick();
        assert_eq!(pages(&family.complete_round(), ExtentKind::Data), [] as [u64; 0]);
        family.write_in_passing(1, path, page);
        assert_eq!(pages(&family.last_round(), ExtentKind::Data), [page]);
        family.assert_same(0);
    }
}

#[test]
fn what_was_written_into_a_mapping_of_a_moment_is_not_lost() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = directory.path().join("object");
    File::create(&path).unwrap().set_len(PAGES * PAGE).unwrap();
    nothing_of_a_moment_is_lost(path.as_os_str().as_encoded_bytes());
}

#[test]
fn what_was_written_into_a_mapping_of_a_moment_of_a_memfd_is_not_lost() {
    let file = File::from(memfd_create(c"object", MFdFlags::empty()).unwrap());
    file.set_len(PAGES * PAGE).unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    nothing_of_a_moment_is_lost(path.as_bytes());
}

#[test]
fn what_was_written_where_nothing_had_been_touched_and_discarded_is_not_lost() {
    let mut family = family_of(3 * TABLE, None);
    family.scribble(0, 0, 3 * TABLE);
    for member in [1, 0] {
        family.complete_round();
        next_tick();
        family.complete_round();
        next_tick();
        family.scribble(member, TABLE, TABLE);
        let (start, len, advice) = (ARENA + TABLE * PAGE, TABLE * PAGE, libc::MADV_DONTNEED as u64);
        family.members[member].0.must(libc::SYS_madvise, &[start, len, advice]);
        assert_eq!(pages(&family.complete_round(), ExtentKind::Data), Vec::from_iter(TABLE..2 * TABLE));
        family.assert_same(0);
    }
}

#[test]
fn mapped_file_is_sent_again_where_it_was_written_to() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(PAGES * PAGE).unwrap();
    let path = file.path().as_os_str().as_encoded_bytes().to_vec();
    let mut family = family(Some(&path));
    family.scribble(0, 1, 2);
    family.complete_round();
    assert_eq!(family.layouts()[0].kind, ObjectKind::File(path));
    family.assert_same(1);
    family.scribble(1, 2, 1);
    file.as_file().write_all_at(b"by write(2)", 9 * PAGE).unwrap();
    let sent = pages(&family.complete_round(), ExtentKind::Data);
    assert_eq!(sent, [2, 9]);
    family.assert_same(0);
}

#[test]
fn part_of_a_file_that_nobody_maps_any_more_is_no_hole() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(PAGES * PAGE).unwrap();
    let mut family = family(Some(file.path().as_os_str().as_encoded_bytes()));
    family.scribble(0, 0, 12);
    family.complete_round();
    family.scribble(1, 3, 1);
    family.scribble(0, 9, 1);
    for (member, _) in &mut family.members {
        member.must(libc::SYS_munmap, &[ARENA, 8 * PAGE]);
    }
    let batches = family.last_round();
    assert_eq!(pages(&batches, ExtentKind::Hole), [] as [u64; 0]);
    assert_eq!(pages(&batches, ExtentKind::Data), [3, 9]);
    let (mut theirs, mut ours) = ([0; (12 * PAGE) as usize], [0; (12 * PAGE) as usize]);
    family.copy.read_exact_at(&mut theirs, 0).unwrap();
    file.as_file().read_exact_at(&mut ours, 0).unwrap();
    assert!(ours == theirs, "the copy differs");
}

/// Something that one of the processes does to the shared memory.
#[derive(Debug, Clone)]
enum Step {
    Scribble { who: usize, at: u64, len: u64 },
    Advise { who: usize, at: u64, len: u64, advice: i32 },
    Protect { who: usize, at: u64, len: u64, protection: i32 },
    MapAgain { who: usize },
    Round { patience: usize },
}

fn step(advice: &'static [i32]) -> impl Strategy<Value = Step> {
    let (who, at, len) = (|| 0..2usize, || 0..PAGES - 8, || 1..9u64);
    prop_oneof![
        5 => (who(), at(), len()).prop_map(|(who, at, len)| Step::Scribble { who, at, len }),
        3 => (who(), at(), len(), prop::sample::select(advice))
            .prop_map(|(who, at, len, advice)| Step::Advise { who, at, len, advice }),
        1 => (who(), at(), len(), prop::sample::select(vec![libc::PROT_READ, READ_WRITE]))
            .prop_map(|(who, at, len, protection)| Step::Protect { who, at, len, protection }),
        1 => who().prop_map(|who| Step::MapAgain { who }),
        3 => prop_oneof![Just(usize::MAX), 0..4usize].prop_map(|patience| Step::Round { patience }),
    ]
}

impl Family {
    fn apply(&mut self, step: &Step) {
        let byte = |page: u64| ARENA + page * PAGE;
        match *step {
            Step::Scribble { who, at, len } => {
                self.members[who].0.scribble(byte(at) + 9, len * PAGE - 77);
            }
            Step::Advise { who, at, len, advice } => {
                let advice = advice as u64;
                self.members[who].0.call(libc::SYS_madvise, &[byte(at), len * PAGE, advice]);
            }
            Step::Protect { who, at, len, protection } => {
                let arguments = [byte(at), len * PAGE, protection as u64];
                self.members[who].0.must(libc::SYS_mprotect, &arguments);
            }
            Step::MapAgain { who } => {
                let (other, end) = (&self.members[1 - who].0, byte(PAGES));
                let maps = std::fs::read_to_string(format!("/proc/{}/maps", other.pid())).unwrap();
                let line = maps.lines().find(|line| line.starts_with(&format!("{ARENA:x}-"))).unwrap();
                let range = line.split(' ').next().unwrap();
                let link = format!("/proc/{}/map_files/{range}", other.pid());
                self.members[who].0.map_file(link.as_bytes(), (ARENA, end), READ_WRITE, libc::MAP_SHARED, 0);
            }
            Step::Round { patience } => {
                let (_, result) = self.round(Task::Runs, patience);
                assert!(matches!(result, Ok(()) | Err(MemoryError::Sink(_))), "{result:?}");
            }
        }
    }
}

/// MADV_DONTNEED, MADV_PAGEOUT, MADV_POPULATE_READ, MADV_POPULATE_WRITE.
const HARMLESS: &[i32] = &[4, 21, 22, 23];
/// With MADV_REMOVE, which punches holes.
const WITH_HOLES: &[i32] = &[4, 9, 21, 22, 23];

fn copy_is_the_same_after(steps: &[Step]) {
    let mut family = family(None);
    for step in steps {
        family.apply(step);
    }
    family.last_round();
    family.assert_same(0);
    family.assert_same(1);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 32,
        max_shrink_iters: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_copy_is_the_same_whatever_both_write(steps in prop::collection::vec(step(HARMLESS), 1..40)) {
        copy_is_the_same_after(&steps);
    }

    #[test]
    fn the_copy_is_the_same_whatever_both_write_and_discard(
        steps in prop::collection::vec(step(WITH_HOLES), 1..40)
    ) {
        copy_is_the_same_after(&steps);
    }
}
