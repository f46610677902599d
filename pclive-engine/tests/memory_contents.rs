//! Digests of two processes' memory: equal for one and its copy, and different when one byte is.

mod subject;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use pclive_engine::memory::contents::{Contents, Place, Process, contents, count, places};
use pclive_engine::memory::layout_diff::plan;
use pclive_engine::memory::{Filler, Objects};
use pclive_engine::model::layout::{ObjectKind, ObjectLayout};
use pclive_engine::model::{Layout, ProcessLayout, Vma, Vpid};
use pclive_engine::remote::RemoteTask;
use subject::{ARENA, PAGE, Subject};

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// Where the parts of the memory are.
const ANONYMOUS: u64 = ARENA;
const LOCKED: u64 = ARENA + 0x100_0000;
const OF_FILE: u64 = ARENA + 0x200_0000;
const FILE_PAGES: u64 = 16;
const VPID: Vpid = Vpid(1);

/// A process, its copy, and a shared object of each.
struct Pair {
    source: Subject,
    copy: Subject,
    layout: Layout,
    shared: (File, File),
}

fn layout(vmas: Vec<Vma>) -> Layout {
    let process = ProcessLayout {
        vpid: VPID,
        start_time: 1,
        parent: Vpid(0),
        pgid: VPID,
        sid: VPID,
        terminal: None,
        zombie: None,
        generation: 1,
        exe: Vec::new(),
        threads: Vec::new(),
        vmas,
        vdso: Default::default(),
    };
    let object = ObjectLayout { id: 9, size: 3 * PAGE + 100, huge: false, kind: ObjectKind::Anonymous };
    Layout { processes: vec![process], objects: vec![object], ..Layout::default() }
}

fn put(subject: &mut Subject, address: u64, bytes: &[u8]) {
    let mem = File::options().write(true).open(format!("/proc/{}/mem", subject.pid())).unwrap();
    mem.write_all_at(bytes, address).unwrap();
}

impl Pair {
    /// Memory of every kind, moved in one round; the copy's unused parts are pages of zeros and of the file.
    fn moved() -> Self {
        let (mut source, mut copy) = (Subject::start(), Subject::start());
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let of_file: Vec<u8> = (0..FILE_PAGES * PAGE).map(|at| (at / 5 + at / PAGE) as u8).collect();
        file.write_all(&of_file).unwrap();
        let path = file.path().to_str().unwrap().as_bytes().to_vec();
        source.map(ANONYMOUS, 600 * PAGE, READ_WRITE, libc::MAP_PRIVATE);
        source.scribble(ANONYMOUS, 3 * PAGE);
        for page in (10..600).step_by(2) {
            put(&mut source, ANONYMOUS + page * PAGE, &[page as u8 + 1]);
        }
        source.map(LOCKED, 4 * PAGE, READ_WRITE, libc::MAP_PRIVATE);
        source.scribble(LOCKED, 2 * PAGE);
        source.must(libc::SYS_mprotect, &[LOCKED, 4 * PAGE, libc::PROT_NONE as u64]);
        source.map_file(&path, (OF_FILE, OF_FILE + FILE_PAGES * PAGE), READ_WRITE, libc::MAP_PRIVATE, 0);
        source.scribble(OF_FILE + 2 * PAGE, PAGE);
        put(&mut source, OF_FILE + 5 * PAGE, &[0; PAGE as usize]);

        let mut space = source.track();
        let vmas = source.vmas(&mut Objects::new());
        copy.follow(&plan(&[], &vmas));
        let mut filler = Filler::new(copy.pid());
        filler.set_layout(&vmas).unwrap();
        let fill = &mut |batch: pclive_engine::model::Batch| {
            let calls = filler.lift(&batch).unwrap().calls();
            copy.task.run(&calls).unwrap();
            let calls = filler.fill(&batch).unwrap().calls();
            copy.task.run(&calls).unwrap();
            Ok(())
        };
        space.round(&vmas, 5 * PAGE as usize, fill).unwrap();
        put(&mut copy, ANONYMOUS + 5 * PAGE, &[0; PAGE as usize]);
        put(&mut copy, OF_FILE + 9 * PAGE, &of_file[9 * PAGE as usize..10 * PAGE as usize]);

        let shared = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        shared.0.set_len(3 * PAGE + 100).unwrap();
        shared.1.write_all_at(&[0; 3 * PAGE as usize + 200], 0).unwrap();
        for file in [&shared.0, &shared.1] {
            file.write_all_at(b"shared", 2 * PAGE).unwrap();
        }
        shared.1.write_all_at(b"behind the end", 3 * PAGE + 100).unwrap();
        Self { source, copy, layout: layout(vmas), shared }
    }

    fn contents_of(&self, subject: &Subject, shared: &File, not_compared: Vec<(u64, u64)>) -> Contents {
        let mut process = Process::of(subject.pid(), std::iter::once(subject.pid())).unwrap();
        process.not_compared.extend(not_compared);
        let object = |id| (id == 9).then_some(shared);
        contents(&self.layout, &BTreeMap::from([(VPID, process)]), &object, &|| false).unwrap()
    }

    fn both(&self) -> (Contents, Contents) {
        let here = self.contents_of(&self.source, &self.shared.0, Vec::new());
        (here, self.contents_of(&self.copy, &self.shared.1, Vec::new()))
    }

    /// The places that differ.
    fn differing(&self) -> Vec<Place> {
        let (here, there) = self.both();
        assert_eq!((here.digests.len(), there.digests.len()), (count(&self.layout), count(&self.layout)));
        let pairs = here.digests.iter().zip(&there.digests).zip(places(&self.layout));
        pairs.filter(|((here, there), _)| here != there).map(|(_, place)| place).collect()
    }

    /// Flips one bit of the copy.
    fn flip(&mut self, address: u64) {
        let page = self.copy.page(address / PAGE * PAGE).unwrap();
        let byte = page[(address % PAGE) as usize] ^ 0x10;
        put(&mut self.copy, address, &[byte]);
    }
}

fn start_of(place: &Place) -> u64 {
    match place {
        Place::Mapping { start, .. } => *start,
        Place::Object { id, .. } => panic!("object {id} differs"),
    }
}

#[test]
fn a_moved_process_has_the_same_contents_whatever_is_a_hole_and_what_is_zeros() {
    let pair = Pair::moved();
    assert_eq!(pair.differing(), []);
    let (here, there) = pair.both();
    // Three and 295 pages, two locked ones, two that differ from the file, and one of the object.
    assert_eq!((here.pages, there.pages), (3 + 295 + 2 + 2 + 1, here.pages));
}

#[test]
fn one_other_bit_is_found_wherever_it_is() {
    let mut pair = Pair::moved();
    // In a page that was sent, in one that was never there, in one that cannot be read, in a copy of the file, in a page
    // of the file, and in one that is zeros where the file is not.
    let spots = [
        ANONYMOUS + 17,
        ANONYMOUS + 7 * PAGE + 4095,
        ANONYMOUS + 598 * PAGE,
        LOCKED + PAGE + 1,
        OF_FILE + 2 * PAGE,
        OF_FILE + 11 * PAGE + 3,
        OF_FILE + 5 * PAGE + 9,
    ];
    for spot in spots {
        pair.flip(spot);
        let differing = pair.differing();
        let starts: Vec<u64> = differing.iter().map(start_of).collect();
        let [start] = starts[..] else { panic!("{spot:#x}: {differing:x?}") };
        assert!(start == ANONYMOUS && spot < LOCKED || start == LOCKED && spot < OF_FILE || start == OF_FILE);
        pair.flip(spot);
        assert_eq!(pair.differing(), [], "{spot:#x} put back");
    }
}

#[test]
fn pages_that_have_changed_places_are_found() {
    let mut pair = Pair::moved();
    let pages = [0, 1].map(|page| pair.copy.page(ANONYMOUS + page * PAGE).unwrap());
    put(&mut pair.copy, ANONYMOUS, &pages[1]);
    put(&mut pair.copy, ANONYMOUS + PAGE, &pages[0]);
    assert_eq!(pair.differing().iter().map(start_of).collect::<Vec<_>>(), [ANONYMOUS]);
}

#[test]
fn one_other_byte_of_shared_memory_is_found() {
    let pair = Pair::moved();
    pair.shared.1.write_all_at(b"x", PAGE).unwrap();
    assert_eq!(pair.differing(), [Place::Object { id: 9, shown: None }]);
}

#[test]
fn bytes_that_the_kernel_writes_are_left_out_and_those_beside_them_are_not() {
    let mut pair = Pair::moved();
    let area = (ANONYMOUS + PAGE + 64, ANONYMOUS + PAGE + 96);
    let same = |pair: &Pair| {
        let here = pair.contents_of(&pair.source, &pair.shared.0, vec![area]);
        here == pair.contents_of(&pair.copy, &pair.shared.1, vec![area])
    };
    pair.flip(area.0);
    pair.flip(area.1 - 1);
    assert!(same(&pair));
    pair.flip(area.1);
    assert!(!same(&pair));
}
