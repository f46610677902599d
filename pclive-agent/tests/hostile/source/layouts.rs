//! Layouts.

use pclive_engine::model::layout::{MappedFile, ObjectKind, ObjectLayout};
use pclive_engine::model::tree::{MemoryTree, Node, NodeKind, Ownership, Times};
use pclive_engine::model::{Layout, Mapping, ProcessLayout, Protection, ThreadLayout, Vma, VmaFlags, Vpid};
use pclive_proto::control::{Phase, Strategy};

use super::{in_layout, suite};
use crate::container::MOST_TASKS;
use crate::pair::Pair;
use crate::proxy::Attack;

const CHARACTER_DEVICE: u32 = 0o020_000;

type Edit = fn(&mut Layout);

/// A page where none is.
fn page(start: u64, mapping: Mapping) -> Vma {
    let protection = Protection { read: true, ..Protection::default() };
    Vma { start, end: start + 4096, protection, flags: VmaFlags::default(), mapping }
}

/// Maps a file in the lowest memory.
fn maps(layout: &mut Layout, path: &str, size: u64) {
    let file = MappedFile { path: path.into(), offset: 0, size };
    layout.processes[0].vmas.insert(0, page(0x10000, Mapping::PrivateFile(file)));
}

fn child(layout: &mut Layout, edit: impl Fn(&mut ProcessLayout)) {
    let mut child = layout.processes[0].clone();
    (child.parent, child.vpid) = (Vpid(1), Vpid(40));
    child.threads = vec![ThreadLayout { vtid: Vpid(40), start_time: 1 }];
    edit(&mut child);
    layout.processes.push(child);
}

fn tree(layout: &mut Layout, point: &str, nodes: &[(&str, NodeKind)]) {
    let node = |(path, kind): &(&str, NodeKind)| Node {
        path: path.as_bytes().into(),
        kind: kind.clone(),
        owner: Ownership { mode: 0o755, uid: 0, gid: 0 },
        times: Times::default(),
        attributes: Vec::new(),
    };
    let root = [("", NodeKind::Directory)];
    layout.trees.retain(|tree| tree.point != point.as_bytes());
    layout.trees.push(MemoryTree {
        point: point.into(),
        huge: false,
        nodes: root.iter().chain(nodes).map(node).collect(),
    });
}

const MAPPINGS: [(&str, &[&str], Edit); 13] = [
    ("mappings that overlap", &["ascending"], |layout| {
        let vma = layout.processes[0].vmas[0].clone();
        layout.processes[0].vmas.insert(0, vma);
    }),
    ("a mapping that ends before it begins", &["ascending"], |layout| {
        layout.processes[0].vmas[0].end = 0;
    }),
    ("a mapping of the kernel", &["ascending"], |layout| {
        layout.processes[0].vmas.push(page(0xffff_8000_0000_0000, Mapping::PrivateAnonymous));
    }),
    ("a mapping of parts of pages", &["ascending"], |layout| layout.processes[0].vmas[0].start += 7),
    ("a kernel mapping anywhere", &["kernel mapping"], |layout| {
        layout.processes[0].vdso.vdso = Some((4096, u64::MAX));
    }),
    ("an offset that wraps around", &["offset"], |layout| {
        let file = MappedFile { path: b"/usr/bin/python3".to_vec(), offset: u64::MAX - 4095, size: 0 };
        layout.processes[0].vmas.insert(0, page(0x10000, Mapping::PrivateFile(file)));
    }),
    ("a file by a relative path", &["not absolute"], |layout| maps(layout, "etc/passwd", 0)),
    ("a file through a link that leads out", &["cannot open the mapped file /data/escape"], |layout| {
        maps(layout, "/data/escape", 0);
    }),
    ("a file above the root", &["cannot open the mapped file"], |layout| {
        maps(layout, "/../../../../../../etc/passwd", 0);
    }),
    ("the machine's memory", &["no regular file"], |layout| maps(layout, "/data/mem", 0)),
    ("a FIFO", &["no regular file"], |layout| maps(layout, "/data/fifo", 0)),
    ("another process's memory", &["cannot open the mapped file", "bytes here", "cannot map"], |layout| {
        maps(layout, "/proc/self/mem", 0);
    }),
    ("a page of an object that is not there", &["object"], |layout| {
        let mapping = Mapping::SharedObject { object: 777, offset: 0, may_write: true };
        layout.processes[0].vmas.insert(0, page(0x10000, mapping));
    }),
];

const TASKS: [(&str, &[&str], Edit); 12] = [
    ("nobody", &["not init"], |layout| layout.processes.clear()),
    ("an init of another id", &["not init"], |layout| layout.processes[0].vpid = Vpid(7)),
    ("an id twice", &["used twice"], |layout| child(layout, |child| child.vpid = Vpid(1))),
    ("an id below zero", &["out of range", "its first thread"], |layout| {
        child(layout, |child| child.vpid = Vpid(-5));
    }),
    ("an id beyond all", &["out of range"], |layout| child(layout, |child| child.vpid = Vpid(i32::MAX))),
    ("a parent that comes later", &["parent"], |layout| child(layout, |child| child.parent = Vpid(41))),
    ("a group of no number", &["out of range"], |layout| child(layout, |child| child.pgid = Vpid(0))),
    ("a thread twice", &["used twice"], |layout| {
        let threads = &mut layout.processes[0].threads;
        let last = threads.last().unwrap().clone();
        threads.push(last);
    }),
    ("more threads than may be", &["cannot"], |layout| {
        let thread = |vtid| ThreadLayout { vtid: Vpid(vtid), start_time: 1 };
        let more = (1000..1000 + MOST_TASKS as i32).map(thread);
        layout.processes[0].threads.extend(more);
    }),
    ("a program above the root", &["cannot"], |layout| {
        layout.processes[0].exe = b"/../../../../../../../bin/no-such-program".to_vec();
    }),
    ("a program with a zero byte", &["zero byte"], |layout| layout.processes[0].exe = b"/usr\0".to_vec()),
    ("a terminal beyond all", &["terminal"], |layout| layout.processes[0].terminal = Some(1 << 20)),
];

const OBJECTS: [(&str, &[&str], Edit); 9] = [
    ("too many objects", &["too many shared memory objects"], |layout| {
        let object = |id| ObjectLayout { id, size: 0, huge: false, kind: ObjectKind::Anonymous };
        layout.objects.extend((1000..1000 + 70_000).map(object));
    }),
    ("an object of all memory", &["size is out of range"], |layout| {
        layout.objects.push(ObjectLayout {
            id: 999,
            size: u64::MAX,
            huge: false,
            kind: ObjectKind::Anonymous,
        });
    }),
    ("an object twice", &["used twice"], |layout| {
        let object = ObjectLayout { id: 999, size: 0, huge: false, kind: ObjectKind::Anonymous };
        layout.objects.extend([object.clone(), object]);
    }),
    ("an object that is the machine's memory", &["no regular file"], |layout| {
        let kind = ObjectKind::File(b"/data/mem".to_vec());
        layout.objects.push(ObjectLayout { id: 999, size: 4096, huge: false, kind });
    }),
    ("an object that is read-only", &["Read-only file system"], |layout| {
        let kind = ObjectKind::File(b"/usr/bin/env".to_vec());
        layout.objects.push(ObjectLayout { id: 999, size: 4096, huge: false, kind });
    }),
    ("files in memory where a disk is", &["no tmpfs"], |layout| tree(layout, "/usr", &[])),
    ("a file in memory above its root", &["in no directory"], |layout| {
        tree(layout, "/dev/shm", &[("../../escape", NodeKind::Fifo)]);
    }),
    ("a file in memory of the name ..", &["in no directory"], |layout| {
        tree(layout, "/dev/shm", &[("..", NodeKind::Directory)]);
    }),
    ("a device in memory", &["cannot make the device"], |layout| {
        let kind = NodeKind::Device { file_type: CHARACTER_DEVICE, number: 0x101 };
        tree(layout, "/dev/shm", &[("mem", kind)]);
    }),
];

async fn all(pair: &mut Pair, attacks: &[(&str, &[&str], Edit)]) {
    for (name, words, edit) in attacks {
        pair.refuses(name, words, in_layout(*edit)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn layouts_that_cannot_be_are_refused() {
    let Some(mut pair) = suite("layouts").await else { return };
    all(&mut pair, &MAPPINGS).await;
    all(&mut pair, &TASKS).await;
    all(&mut pair, &OBJECTS).await;
    pair.finish(Attack::default()).await;
}

/// A strategy that restores after the stop looks at what it is told all the same: the container is not stopped for it.
#[tokio::test(flavor = "multi_thread")]
async fn layout_that_cannot_be_is_refused_before_the_stop_by_every_strategy() {
    let Some(mut pair) = suite("staged").await else { return };
    for strategy in [Strategy::OneShot, Strategy::Pipelined] {
        for (name, words, edit) in [MAPPINGS[0], OBJECTS[1], TASKS[4]] {
            pair.refuses_by(strategy, name, words, in_layout(edit)).await;
            assert_eq!(pair.last_phase(), Phase::PreCopy, "{name} by {strategy:?}");
        }
    }
    pair.finish(Attack::default()).await;
}
