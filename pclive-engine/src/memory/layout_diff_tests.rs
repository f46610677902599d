//! The planner against an oracle that simulates every page.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::model::layout::MappedFile;

/// A page as the oracle sees it. `fresh` is true once its contents were lost.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Page {
    shows: Vma,
    fresh: bool,
}

type Memory = BTreeMap<u64, Page>;

fn pages(vmas: &[Vma]) -> Memory {
    let page = |vma: &Vma, at: u64| (at, Page { shows: vma.cut(at, at + PAGE_SIZE), fresh: false });
    vmas.iter().flat_map(|vma| (vma.start..vma.end).step_by(4096).map(move |at| page(vma, at))).collect()
}

/// Runs the steps page by page; a step that could fail in a kernel fails here.
fn run(memory: &mut Memory, steps: &[LayoutOp]) {
    let each = |start: u64, end: u64| (start..end).step_by(4096);
    for step in steps {
        match step {
            LayoutOp::Unmap { start, end } => {
                each(*start, *end).for_each(|at| assert!(memory.remove(&at).is_some(), "unmaps nothing"));
            }
            LayoutOp::Map(vma) => each(vma.start, vma.end).for_each(|at| {
                let page = Page { shows: vma.cut(at, at + PAGE_SIZE), fresh: true };
                assert!(memory.insert(at, page).is_none(), "maps over something");
            }),
            LayoutOp::Protect { start, end, protection } => each(*start, *end).for_each(|at| {
                memory.get_mut(&at).expect("protects a mapping").shows.protection = *protection;
            }),
            LayoutOp::Advise { start, end, old, new } => each(*start, *end).for_each(|at| {
                let flags = &mut memory.get_mut(&at).expect("advises a mapping").shows.flags;
                assert_eq!(advisable(*flags), advisable(*old));
                *flags = *new;
            }),
        }
    }
}

fn mapping() -> impl Strategy<Value = Mapping> {
    let file = |offset: u64| MappedFile { path: b"/f".to_vec(), offset: offset * PAGE_SIZE, size: 1 };
    prop_oneof![
        3 => Just(Mapping::PrivateAnonymous),
        2 => (0u64..3).prop_map(move |at| Mapping::PrivateFile(file(at))),
        1 => (0u64..3, any::<bool>())
            .prop_map(move |(at, may_write)| Mapping::SharedFile { file: file(at), may_write, object: None }),
        1 => (0u64..2, 0u64..3)
            .prop_map(|(object, at)| Mapping::SharedObject { object, offset: at * PAGE_SIZE, may_write: true }),
    ]
}

prop_compose! {
    fn vma()(
        gap in 0u64..3, len in 1u64..6, write: bool, dont_dump: bool, locked: bool, grows_down in 0u8..12,
        mapping in mapping()
    ) -> (u64, Vma) {
        let flags = VmaFlags { dont_dump, locked, grows_down: grows_down == 0, ..VmaFlags::default() };
        let protection = Protection { read: true, write, exec: false };
        (gap * PAGE_SIZE, Vma { start: 0, end: len * PAGE_SIZE, protection, flags, mapping })
    }
}

fn vmas() -> impl Strategy<Value = Vec<Vma>> {
    prop::collection::vec(vma(), 0..8).prop_map(|list| {
        let mut end = PAGE_SIZE;
        let place = |(gap, mut vma): (u64, Vma)| {
            (vma.start, vma.end) = (end + gap, end + gap + vma.end);
            end = vma.end;
            vma
        };
        list.into_iter().map(place).collect()
    })
}

proptest! {
    #[test]
    fn steps_lead_to_the_new_mappings_and_lose_only_what_changed(old in vmas(), new in vmas()) {
        let (before, after) = (pages(&old), pages(&new));
        let mut memory = before.clone();
        run(&mut memory, &plan(&old, &new));
        prop_assert!(memory.keys().eq(after.keys()));
        for (at, page) in &memory {
            prop_assert_eq!(&page.shows, &after[at].shows);
            let kept = before.get(at).is_some_and(|was| same_memory(&was.shows, &page.shows, *at));
            prop_assert_eq!(page.fresh, !kept, "contents at {:x}", at);
        }
    }

    #[test]
    fn splitting_mappings_needs_no_step(whole in vmas()) {
        let halves = |vma: &Vma| {
            let middle = vma.start + vma.len() / 2 / PAGE_SIZE * PAGE_SIZE;
            let parts = [vma.cut(vma.start, middle), vma.cut(middle, vma.end)];
            parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>()
        };
        let split: Vec<Vma> = whole.iter().flat_map(halves).collect();
        prop_assert_eq!(plan(&whole, &split), vec![]);
        prop_assert_eq!(plan(&split, &whole), vec![]);
    }
}

fn anonymous(start: u64, end: u64) -> Vma {
    let protection = Protection { read: true, write: true, exec: false };
    Vma { start, end, protection, flags: VmaFlags::default(), mapping: Mapping::PrivateAnonymous }
}

#[test]
fn a_heap_that_grew_is_mapped_where_it_is_new_only() {
    let steps = plan(&[anonymous(0x1000, 0x5000)], &[anonymous(0x1000, 0x9000)]);
    assert_eq!(steps, [LayoutOp::Map(anonymous(0x5000, 0x9000))]);
}

#[test]
fn a_file_that_grew_is_not_mapped_again() {
    let file = |size| MappedFile { path: b"/f".to_vec(), offset: 0, size };
    let vma = |size| Vma { mapping: Mapping::PrivateFile(file(size)), ..anonymous(0x1000, 0x2000) };
    assert_eq!(plan(&[vma(1)], &[vma(2)]), []);
}

#[test]
fn mappings_that_no_kernel_reports_are_refused() {
    let refused = |vmas: &[Vma]| check_vmas(vmas).unwrap_err().what;
    assert_eq!(refused(&[anonymous(0x1000, 0x1000)]), "is empty");
    assert_eq!(refused(&[anonymous(0x1000, 0x1800)]), "is not page-aligned");
    assert_eq!(refused(&[anonymous(0x1000, USER_END + 0x1000)]), "is not user memory");
    assert_eq!(
        refused(&[anonymous(0x1000, 0x3000), anonymous(0x2000, 0x4000)]),
        "overlaps the one before it"
    );
    assert_eq!(check_vmas(&[anonymous(0x1000, 0x3000), anonymous(0x3000, USER_END)]), Ok(()));
}
