//! A container that runc has created becomes a skeleton.

mod support;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use pclive_engine::model::layout::VdsoLayout;
use pclive_engine::model::terminal::number_of_device;
use pclive_engine::model::{
    Layout, Mapping, Pid, ProcessLayout, Protection, ThreadLayout, Vma, VmaFlags, Vpid,
};
use pclive_engine::restore::{Destination, DestinationOptions};
use support::Created;

fn thread(vtid: i32) -> ThreadLayout {
    ThreadLayout { vtid: Vpid(vtid), start_time: 1000 + u64::from(vtid.unsigned_abs()) }
}

fn process(vpid: i32, parent: i32, session: i32, threads: &[i32]) -> ProcessLayout {
    let base = 0x7ffd_1000_0000;
    ProcessLayout {
        vpid: Vpid(vpid),
        start_time: 1000 + u64::from(vpid.unsigned_abs()),
        parent: Vpid(parent),
        pgid: Vpid(session),
        sid: Vpid(session),
        terminal: None,
        zombie: None,
        generation: 0,
        exe: b"/bin/busybox".to_vec(),
        threads: std::iter::once(vpid).chain(threads.iter().copied()).map(thread).collect(),
        vmas: vec![
            vma(0x40_0000, 0x40_2000, Mapping::PrivateAnonymous),
            vma(0x5555_0000_0000, 0x5555_0010_0000, Mapping::PrivateAnonymous),
        ],
        vdso: VdsoLayout {
            vvar: Some((base, base + 0x4000)),
            vvar_vclock: Some((base + 0x4000, base + 0x6000)),
            vdso: Some((base + 0x6000, base + 0x8000)),
        },
    }
}

fn vma(start: u64, end: u64, mapping: Mapping) -> Vma {
    let protection = Protection { read: true, write: true, exec: false };
    Vma { start, end, protection, flags: VmaFlags::default(), mapping }
}

/// (vpid, parent's vpid, group, session, threads) of every process of the container, by `/proc`.
fn tree(init: Pid) -> Vec<(i32, i32, i32, i32, usize)> {
    let mut found: Vec<_> = pclive_engine::capture::tree::read(init)
        .unwrap()
        .into_iter()
        .map(|p| (p.vpid.0, p.parent.0, p.pgid.0, p.sid.0, p.threads.len()))
        .collect();
    found.sort_unstable();
    found
}

#[test]
fn skeleton_follows_tasks_born_and_gone() {
    let container = Created::new("tree", &["sh"]);
    let init = container.init();
    let mut destination = Destination::adopt(init, DestinationOptions::default()).unwrap();
    let mut layout = Layout { processes: vec![process(1, 0, 1, &[7, 300])], ..Layout::default() };
    layout.processes.push(process(2, 1, 1, &[]));
    layout.processes.push(process(250, 2, 250, &[251]));
    layout.processes.push(process(12, 250, 250, &[]));
    destination.apply_layout(&layout).unwrap();
    assert_eq!(tree(init), [(1, 0, 1, 1, 3), (2, 1, 1, 1, 1), (12, 250, 250, 250, 1), (250, 2, 250, 250, 2)]);
    assert_eq!(fs::read_link(format!("/proc/{init}/exe")).unwrap(), Path::new("/bin/busybox"));
    let maps = fs::read_to_string(format!("/proc/{init}/maps")).unwrap();
    assert!(
        maps.contains("7ffd10006000-7ffd10008000 r-xp 00000000 00:00 0                          [vdso]"),
        "{maps}"
    );
    assert!(maps.contains("00400000-00402000 rw-p"), "{maps}");

    // 250 ends, its child goes to init; 2 executes another program; a thread of 1 ends and another is born.
    layout.processes.truncate(2);
    layout.processes[0].threads = [1, 7, 301].map(thread).to_vec();
    layout.processes[1].exe = b"/bin/other".to_vec();
    layout.processes[1].generation = 1;
    layout.processes.push(process(12, 1, 250, &[]));
    destination.apply_layout(&layout).unwrap();
    assert_eq!(tree(init), [(1, 0, 1, 1, 3), (2, 1, 1, 1, 1), (12, 1, 250, 250, 1)]);

    // A session and a group whose leaders have long ended, and an id used again.
    layout.processes.push(process(40, 1, 39, &[]));
    layout.processes[1].start_time += 1;
    layout.processes[1].pgid = Vpid(20);
    destination.apply_layout(&layout).unwrap();
    assert_eq!(tree(init), [(1, 0, 1, 1, 3), (2, 1, 20, 1, 1), (12, 1, 250, 250, 1), (40, 1, 39, 39, 1)]);
    drop(destination);
    assert!(
        !Path::new(&format!("/proc/{init}/exe")).exists()
            || fs::read_link(format!("/proc/{init}/exe")).is_err()
    );
}

/// (vpid, number of the controlling terminal) of every process of the container, by `/proc`.
fn controlling_terminals(init: Pid) -> Vec<(i32, Option<u32>)> {
    let tree = pclive_engine::capture::tree::read(init).unwrap();
    let terminal = |p: &pclive_engine::capture::tree::TreeProcess| number_of_device(p.terminal.into());
    let mut found: Vec<_> = tree.iter().map(|p| (p.vpid.0, terminal(p))).collect();
    found.sort_unstable();
    found
}

#[test]
fn sessions_have_their_terminals_and_processes_without_one_drop_it() {
    let container = Created::new("terminals", &["sh"]);
    let init = container.init();
    let mut destination = Destination::adopt(init, DestinationOptions::default()).unwrap();
    let mut layout = Layout { processes: vec![process(1, 0, 1, &[])], ..Layout::default() };
    let with = |process: ProcessLayout, terminal| ProcessLayout { terminal, ..process };
    layout.processes.push(with(process(20, 1, 20, &[]), Some(2)));
    layout.processes.push(with(process(21, 20, 20, &[]), Some(2)));
    layout.processes.push(process(22, 20, 20, &[]));
    layout.processes.push(process(30, 1, 30, &[]));
    destination.apply_layout(&layout).unwrap();
    let expected = [(1, None), (20, Some(2)), (21, Some(2)), (22, None), (30, None)];
    assert_eq!(controlling_terminals(init), expected);

    // 30 takes a terminal and then has children; an orphan of session 20 went to init.
    layout.processes[4].terminal = Some(0);
    layout.processes.push(with(process(31, 30, 30, &[]), Some(0)));
    layout.processes.push(with(process(40, 1, 20, &[]), Some(2)));
    destination.apply_layout(&layout).unwrap();
    let expected = [(20, Some(2)), (21, Some(2)), (22, None), (30, Some(0)), (31, Some(0)), (40, Some(2))];
    assert_eq!(controlling_terminals(init)[1..], expected);

    // 20 ends and its session loses the terminal, which another session takes; 30 gives its own up.
    layout.processes.remove(1);
    for process in &mut layout.processes {
        process.terminal = None;
        if process.parent == Vpid(20) {
            process.parent = Vpid(1);
        }
    }
    layout.processes.push(with(process(50, 1, 50, &[]), Some(2)));
    destination.apply_layout(&layout).unwrap();
    let expected = [(1, None), (21, None), (22, None), (30, None), (31, None), (40, None), (50, Some(2))];
    assert_eq!(controlling_terminals(init), expected);
}

#[test]
fn hostile_layout_is_refused_and_changes_nothing() {
    let container = Created::new("hostile", &["sh"]);
    let init = container.init();
    let mut destination = Destination::adopt(init, DestinationOptions::default()).unwrap();
    let good = Layout { processes: vec![process(1, 0, 1, &[])], ..Layout::default() };
    destination.apply_layout(&good).unwrap();
    let spoil: [fn(&mut Layout); 6] = [
        |l| l.processes[0].vmas[0].start = 0x1001,
        |l| l.processes[0].vmas[0].end = u64::MAX - 0xfff,
        |l| l.processes[0].exe = b"relative".to_vec(),
        |l| l.processes.push(process(5, 9, 1, &[])),
        |l| l.processes.push(process(-3, 1, 1, &[])),
        |l| l.processes.clear(),
    ];
    for spoil in spoil {
        let mut bad = good.clone();
        spoil(&mut bad);
        let refused = destination.apply_layout(&bad).unwrap_err();
        assert!(refused.to_string().starts_with("cannot accept the layout"), "{refused}");
    }
    assert_eq!(tree(init), [(1, 0, 1, 1, 1)]);
}

/// The runtime's init is a Go program, whose scheduler sends SIGURG to its threads at any time.
#[test]
fn signals_of_the_runtimes_scheduler_do_not_stop_an_adoption() {
    let container = Created::new("urgent", &["sh"]);
    let init = container.init();
    let mut destination = Destination::adopt(init, DestinationOptions::default()).unwrap();
    let layout = Layout { processes: vec![process(1, 0, 1, &[])], ..Layout::default() };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _ = kill(nix::unistd::Pid::from_raw(init.0), Signal::SIGURG);
                std::thread::sleep(Duration::from_micros(20));
            }
        });
        let applied = destination.apply_layout(&layout);
        done.store(true, Ordering::Relaxed);
        applied.unwrap();
    });
    assert_eq!(tree(init), [(1, 0, 1, 1, 1)]);
}
