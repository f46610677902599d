//! A layout that came from the peer is checked here before anything is made of it.

use std::collections::HashSet;

use super::RestoreError;
use super::spans::HIGHEST;
use crate::model::layout::{Layout, ObjectKind, ObjectLayout, ProcessLayout};
use crate::model::terminal::MOST_TERMINALS;
use crate::model::tree::{MOST_ATTRIBUTE_BYTES, MOST_ENTRIES, NodeKind, carries_attribute};
use crate::model::{FinalState, HUGE_PAGE_SIZE, Mapping, PAGE_SIZE, Vma, Vpid};

/// Most tasks (threads of all processes): what a PID namespace can hold.
const MAX_TASKS: usize = 4 << 20;
/// Most mappings of a process: far above `vm.max_map_count` in use anywhere.
const MAX_VMAS: usize = 1 << 20;
/// Most shared memory objects: the agent has a descriptor of each.
const MOST_OBJECTS: usize = 1 << 16;
/// Longest path, as in `PATH_MAX`.
const MAX_PATH: usize = 4096;
/// Longest name of a memfd.
const MAX_MEMFD_NAME: usize = 255;
/// Largest id, as in `PID_MAX_LIMIT`.
const MAX_ID: i32 = 4 << 20;
/// Largest kernel mapping.
const MAX_KERNEL_MAPPING: u64 = 1 << 20;

/// Checks a layout; says which process is wrong, and why. [`super::Destination::apply_layout`] does, too; who keeps a
/// layout for later does it at once.
pub fn layout(layout: &Layout) -> Result<(), RestoreError> {
    let first = layout.processes.first().map(|process| process.vpid);
    if first != Some(Vpid(1)) {
        return Err(RestoreError::Layout {
            vpid: first.unwrap_or(Vpid(0)),
            why: "the first process is not init",
        });
    }
    let mut ids = HashSet::new();
    for process in &layout.processes {
        let refuse = |why| RestoreError::Layout { vpid: process.vpid, why };
        if process.vpid != Vpid(1) && !ids.contains(&process.parent) {
            return Err(refuse("its parent does not come before it"));
        }
        if !ids.insert(process.vpid) {
            return Err(refuse("its id is used twice"));
        }
        self::process(process).map_err(refuse)?;
        for thread in process.threads.iter().skip(1) {
            if !id_in_range(thread.vtid) || !ids.insert(thread.vtid) {
                return Err(refuse("a thread's id is out of range or used twice"));
            }
        }
        if ids.len() > MAX_TASKS {
            return Err(refuse("there are too many tasks"));
        }
    }
    if let Some(open) = &layout.open {
        super::files::check_ahead(open)?;
    }
    objects(layout)
}

/// Checks that a final state speaks of just the processes and threads of the layout before it, in their order.
/// [`super::Destination::restore`] does.
pub fn state(state: &FinalState, layout: &Layout) -> Result<(), RestoreError> {
    let live: Vec<&ProcessLayout> =
        layout.processes.iter().filter(|process| process.zombie.is_none()).collect();
    if live.len() != state.processes.len() {
        let vpid = Vpid(1);
        return Err(RestoreError::Layout { vpid, why: "the final state has another number of processes" });
    }
    for (shape, process) in live.into_iter().zip(&state.processes) {
        let threads = shape.threads.iter().map(|thread| thread.vtid);
        if shape.vpid != process.vpid || !threads.eq(process.threads.iter().map(|thread| thread.vtid)) {
            let why = "the final state has other threads";
            return Err(RestoreError::Layout { vpid: shape.vpid, why });
        }
    }
    Ok(())
}

fn process(process: &ProcessLayout) -> Result<(), &'static str> {
    if ![process.vpid, process.pgid, process.sid].into_iter().all(id_in_range) {
        return Err("an id is out of range");
    }
    if process.terminal.is_some_and(|number| number >= MOST_TERMINALS) {
        return Err("its controlling terminal's number is out of range");
    }
    if process.zombie.is_some() {
        return Ok(());
    }
    if process.threads.first().map(|leader| leader.vtid) != Some(process.vpid) {
        return Err("its first thread is not its leader");
    }
    path(&process.exe)?;
    if process.vmas.len() > MAX_VMAS {
        return Err("it has too many mappings");
    }
    for span in super::spans::spans_of(&process.vdso) {
        if !range_ok(span) || span.1 - span.0 > MAX_KERNEL_MAPPING {
            return Err("a kernel mapping is out of range");
        }
    }
    let mut end = 0;
    for vma in &process.vmas {
        if !range_ok((vma.start, vma.end)) || vma.start < end {
            return Err("its mappings are not ascending page ranges of the user's address space");
        }
        end = vma.end;
        mapping(vma)?;
    }
    Ok(())
}

fn mapping(vma: &Vma) -> Result<(), &'static str> {
    match &vma.mapping {
        Mapping::PrivateAnonymous => Ok(()),
        Mapping::PrivateHuge if [vma.start, vma.end].iter().all(|at| at.is_multiple_of(HUGE_PAGE_SIZE)) => {
            Ok(())
        }
        Mapping::PrivateHuge => Err("a mapping of huge pages is not aligned to them"),
        Mapping::PrivateFile(file) | Mapping::SharedFile { file, .. } => {
            path(&file.path)?;
            offset(file.offset, vma)
        }
        Mapping::SharedObject { offset: at, .. } | Mapping::PrivateObject { offset: at, .. } => {
            offset(*at, vma)
        }
    }
}

fn offset(offset: u64, vma: &Vma) -> Result<(), &'static str> {
    let end = offset.checked_add(vma.len()).filter(|end| *end <= i64::MAX as u64);
    if offset.is_multiple_of(PAGE_SIZE) && end.is_some() {
        Ok(())
    } else {
        Err("a mapping's offset is out of range")
    }
}

/// Whether a segment that was asked for with a size is as long as its memory.
fn fits(size: u64, object: &ObjectLayout) -> bool {
    let whole = if object.huge { size.checked_next_multiple_of(HUGE_PAGE_SIZE) } else { Some(size) };
    whole == Some(object.size)
}

fn objects(layout: &Layout) -> Result<(), RestoreError> {
    let refuse = |why| RestoreError::Layout { vpid: Vpid(1), why };
    if layout.objects.len() > MOST_OBJECTS {
        return Err(refuse("there are too many shared memory objects"));
    }
    let mappings = layout.processes.iter().flat_map(|process| &process.vmas);
    let private = mappings.filter(|vma| matches!(vma.mapping, Mapping::PrivateObject { .. }));
    let privately: HashSet<u64> = private.filter_map(|vma| vma.mapping.object()).collect();
    let mut ids = HashSet::new();
    for object in &layout.objects {
        if !ids.insert(object.id) {
            return Err(refuse("a shared memory object's id is used twice"));
        }
        if object.huge && privately.contains(&object.id) {
            return Err(refuse("a shared memory object in huge pages is mapped privately"));
        }
        if object.size > i64::MAX as u64 / 2 {
            return Err(refuse("a shared memory object's size is out of range"));
        }
        if object.huge && !object.size.is_multiple_of(HUGE_PAGE_SIZE) {
            return Err(refuse("a shared memory object is not of whole huge pages"));
        }
        match &object.kind {
            ObjectKind::File(name) | ObjectKind::Unlinked { point: name, .. } => {
                path(name).map_err(refuse)?;
            }
            ObjectKind::Memfd { name, .. } if name.len() > MAX_MEMFD_NAME || name.contains(&0) => {
                return Err(refuse("a memfd's name is too long or holds a zero byte"));
            }
            ObjectKind::Segment(segment) if !fits(segment.size, object) => {
                return Err(refuse("a System V segment has another size than its memory"));
            }
            ObjectKind::Segment(segment) if segment.id < 0 => {
                return Err(refuse("a System V segment's id is out of range"));
            }
            ObjectKind::Anonymous
            | ObjectKind::TreeFile
            | ObjectKind::Memfd { .. }
            | ObjectKind::Segment(_) => {}
        }
    }
    trees(layout, &ids).map_err(refuse)
}

/// Every node below a directory that comes before it, and every file with an object of its own kind.
/// Those of the last node are not counted before it is taken.
const MOST_ATTRIBUTES: usize = 2 * MOST_ATTRIBUTE_BYTES;

fn trees(layout: &Layout, objects: &HashSet<u64>) -> Result<(), &'static str> {
    let mut points = HashSet::new();
    let (mut entries, mut attribute_bytes) = (0, 0);
    for tree in &layout.trees {
        path(&tree.point)?;
        require(points.insert(&tree.point), "two trees at one mount point")?;
        // One that is empty would have everything that is there removed.
        require(tree.nodes.first().is_some_and(|node| node.path.is_empty()), "a tree without its root")?;
        entries += tree.nodes.len();
        require(entries <= MOST_ENTRIES + layout.trees.len(), "too many files in memory")?;
        let mut directories: HashSet<&[u8]> = HashSet::new();
        let mut seen: HashSet<&[u8]> = HashSet::new();
        for node in &tree.nodes {
            let (above, name) = split(&node.path);
            if node.path.is_empty() {
                require(node.kind == NodeKind::Directory && seen.is_empty(), "a tree without its root")?;
            } else {
                require(is_name(name) && directories.contains(above), "a node that is in no directory")?;
            }
            require(seen.insert(&node.path), "a node that is twice in a tree")?;
            require(node.path.len() < MAX_PATH, "a node with a path that is too long")?;
            require(node.owner.mode <= 0o7777, "a node with impossible permissions")?;
            for (name, value) in &node.attributes {
                require(carries_attribute(name), "an attribute that is not carried")?;
                attribute_bytes += name.len() + value.len();
            }
            require(attribute_bytes <= MOST_ATTRIBUTES, "too many attributes of files in memory")?;
            match &node.kind {
                NodeKind::Directory => drop(directories.insert(&node.path)),
                NodeKind::File { object } => {
                    require(objects.contains(object), "a file in memory without its object")?;
                }
                NodeKind::Link(target) => require(!target.contains(&0), "a symbolic link to no path")?,
                NodeKind::Fifo | NodeKind::Socket | NodeKind::Device { .. } => {}
            }
        }
    }
    Ok(())
}

/// The directory of a path in a tree, and the name in it.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (path.get(..slash).unwrap_or_default(), path.get(slash + 1..).unwrap_or_default()),
        None => (&[], path),
    }
}

fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".." && !name.contains(&0)
}

fn require(holds: bool, why: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(why) }
}

fn path(path: &[u8]) -> Result<(), &'static str> {
    let ok = path.first() == Some(&b'/') && path.len() < MAX_PATH && !path.contains(&0);
    if ok { Ok(()) } else { Err("a path is not absolute, too long, or holds a zero byte") }
}

fn range_ok((start, end): (u64, u64)) -> bool {
    start < end && end <= HIGHEST && start.is_multiple_of(PAGE_SIZE) && end.is_multiple_of(PAGE_SIZE)
}

fn id_in_range(id: Vpid) -> bool {
    (1..=MAX_ID).contains(&id.0)
}
