//! Digests of what stopped processes have in memory, to be compared between the two ends of a migration.
//!
//! There is one for each private mapping, and one for each shared memory object, in the order of a layout that both ends
//! know: neither end tells addresses, and there are as many digests as the layout says. A digest is the sum of the digests
//! of pages (xxh3, 128 bit, seeded by the page's place), so that pages are read in any order, by as many threads as there
//! are CPUs. It finds accidents, not attacks: the memory compared is the container's own.
//!
//! What counts: a page that differs from what is there without it, which is zeros, or in a private mapping of a file that
//! file. So a hole and a page of zeros are equal, and so are a page of the file and a copy of it. What is left out is what
//! the layout has not (the kernel's `[vvar]` and `[vdso]`, the engine's own mapping), shared mappings that never could be
//! written (the file is the host's), and the bytes of [`Process::not_compared`]. Nothing is changed, but that pages
//! which were swapped out are read in again. Kernel: `PAGEMAP_SCAN` (Linux 6.7).

mod own;
mod piece;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;

use self::own::Own;
use self::piece::Piece;
use super::error::MemoryError;
use super::shared::data_ranges;
use super::space::shared_object;
use crate::model::layout::{Layout, ObjectLayout};
use crate::model::state::Rseq;
use crate::model::{Mapping, PAGE_SIZE, Pid, Vpid};
use crate::sys::ptrace_state;

/// What a digest is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A private mapping of a process: its own pages.
    Mapping {
        /// The process inside the container.
        vpid: Vpid,
        /// First address.
        start: u64,
        /// One past the last address.
        end: u64,
    },
    /// A shared memory object.
    Object {
        /// Its id.
        id: u64,
        /// A process that shows it, and where; `None` if only descriptors or directories lead to it.
        shown: Option<(Vpid, u64, u64)>,
    },
}

/// A process whose memory is read: stopped, and in the hands of the caller's thread.
#[derive(Debug, Clone)]
pub struct Process {
    /// As the agent sees it.
    pub pid: Pid,
    /// Addresses (first, one past the last) of bytes that the kernel writes by itself, so that they differ between two
    /// stops: count as zeros.
    pub not_compared: Vec<(u64, u64)>,
}

impl Process {
    /// A process whose threads, stopped by the calling thread, are `threads`. What is not compared of it are their
    /// restartable-sequence areas: the kernel writes the CPU into them whenever a thread comes back from a remote call.
    pub fn of(pid: Pid, threads: impl Iterator<Item = Pid>) -> Result<Self, MemoryError> {
        let mut not_compared = Vec::new();
        for thread in threads {
            let failed = |error: std::io::Error| {
                let source = super::errno(&error);
                MemoryError::Proc { pid: thread, name: "rseq area".into(), source }
            };
            let area = ptrace_state::rseq(thread).map_err(failed)?;
            let range = |area: Rseq| (area.address.0, area.address.0.saturating_add(area.size.into()));
            not_compared.extend(area.map(range));
        }
        Ok(Self { pid, not_compared })
    }
}

/// Looked at for each piece: whether nobody waits for the digests any more.
pub type Unwanted<'a> = &'a (dyn Fn() -> bool + Sync);

/// What a container has in memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contents {
    /// A digest for each of [`places`], in their order.
    pub digests: Vec<u128>,
    /// Pages that count.
    pub pages: u64,
}

/// What there is a digest of, in order.
pub fn places(layout: &Layout) -> impl Iterator<Item = Place> + '_ {
    let mappings = layout.processes.iter().flat_map(|process| {
        let private = process.vmas.iter().filter(|vma| is_private(&vma.mapping));
        private.map(|vma| Place::Mapping { vpid: process.vpid, start: vma.start, end: vma.end })
    });
    let shown = shown(layout);
    let object =
        move |object: &ObjectLayout| Place::Object { id: object.id, shown: shown.get(&object.id).copied() };
    mappings.chain(layout.objects.iter().map(object))
}

/// How many digests there are.
pub fn count(layout: &Layout) -> usize {
    let private = |vmas: &[crate::model::Vma]| vmas.iter().filter(|vma| is_private(&vma.mapping)).count();
    layout.processes.iter().map(|process| private(&process.vmas)).sum::<usize>() + layout.objects.len()
}

/// Reads everything that a layout names. `processes` has every process that has memory; `object` opens what is behind an
/// id. On `Err` a page or an object could not be read, or nobody waits any more.
pub fn contents<'a>(
    layout: &'a Layout,
    processes: &BTreeMap<Vpid, Process>,
    object: &dyn Fn(u64) -> Option<&'a File>,
    unwanted: Unwanted<'_>,
) -> Result<Contents, MemoryError> {
    let mut pieces = Vec::new();
    let mut at = 0;
    for process in &layout.processes {
        let private = process.vmas.iter().filter(|vma| is_private(&vma.mapping));
        let mappings: Vec<_> = private.collect();
        if let Some(subject) = processes.get(&process.vpid).filter(|_| !mappings.is_empty()) {
            let own = Own::find(subject.pid, &mappings)?;
            for (index, vma) in mappings.iter().enumerate() {
                own.pieces(at + index, vma, subject, &mut pieces)?;
            }
        }
        at += mappings.len();
    }
    for (index, layout_of) in layout.objects.iter().enumerate() {
        if let Some(file) = object(layout_of.id) {
            object_pieces(at + index, layout, layout_of, file, &mut pieces)?;
        }
    }
    piece::read_all(&pieces, at + layout.objects.len(), unwanted)
}

fn is_private(mapping: &Mapping) -> bool {
    match mapping {
        Mapping::PrivateAnonymous
        | Mapping::PrivateHuge
        | Mapping::PrivateFile(_)
        | Mapping::PrivateObject { .. } => true,
        Mapping::SharedFile { .. } | Mapping::SharedObject { .. } => false,
    }
}

/// Who shows each object first, and where.
fn shown(layout: &Layout) -> HashMap<u64, (Vpid, u64, u64)> {
    let mut shown = HashMap::new();
    for process in &layout.processes {
        for vma in &process.vmas {
            if let Some((object, _)) = shared_object(vma) {
                shown.entry(object).or_insert((process.vpid, vma.start, vma.end));
            }
        }
    }
    shown
}

/// The parts of an object that hold data; of a file that is there without us, those that are mapped.
fn object_pieces<'a>(
    index: usize,
    layout: &Layout,
    object: &'a ObjectLayout,
    file: &'a File,
    pieces: &mut Vec<Piece<'a>>,
) -> Result<(), MemoryError> {
    let unreadable = |error: std::io::Error| MemoryError::Object {
        kind: object.kind.clone(),
        offset: 0,
        source: super::errno(&error),
    };
    let mut data = data_ranges(file, object.size).map_err(unreadable)?;
    data.remove(object.size.next_multiple_of(PAGE_SIZE), u64::MAX);
    if object.kind.is_stored() {
        let mut mapped = super::ranges::RangeSet::new();
        for vma in layout.processes.iter().flat_map(|process| &process.vmas) {
            if let Some((_, offset)) = shared_object(vma).filter(|(id, _)| *id == object.id) {
                mapped.insert(offset, offset.saturating_add(vma.len()));
            }
        }
        data = data.intersection(&mapped);
    }
    piece::cut(data.iter(), |runs| pieces.push(Piece::of_object(index, object, file, runs)));
    Ok(())
}
