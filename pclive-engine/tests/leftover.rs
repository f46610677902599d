//! A container that an agent left frozen, with nobody but the next agent to find it.

mod support;

use std::time::Duration;

use pclive_engine::capture::{Connections, LastPages, Leftover, Source, SourceOptions};
use pclive_engine::model::{Batch, Deadline, Layout, Pid};
use support::Created;

const COUNTER: &[&str] = &["sh", "-c", "i=0; while true; do i=$((i+1)); echo $i; done"];

/// A source's messages, to nobody.
struct Nowhere;

impl pclive_engine::capture::Sink for Nowhere {
    fn layout(&mut self, _: &Layout) -> Result<(), pclive_engine::capture::SinkError> {
        Ok(())
    }

    fn batch(&mut self, _: Batch) -> Result<(), pclive_engine::capture::SinkError> {
        Ok(())
    }
}

fn last_number(text: &str) -> u64 {
    text.lines().filter_map(|line| line.trim().parse().ok()).next_back().unwrap_or(0)
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Deadline::after(Duration::from_secs(20));
    while !done() {
        assert!(!deadline.passed(), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Takes a container as far as the commit and abandons it there.
fn abandoned(name: &str) -> (Created, Pid) {
    let container = Created::new(name, COUNTER);
    container.start();
    wait_until("counting", || last_number(&container.output()) > 100);
    let init = container.init();
    // A thread of its own, as the agent has: its end ends every trace.
    std::thread::scope(|scope| {
        let stopped = scope.spawn(|| {
            let mut source = Source::open(init, SourceOptions::default()).unwrap();
            source.round(&mut Nowhere).unwrap();
            let mut frozen = source.freeze().unwrap();
            frozen.dump(&mut Nowhere, LastPages::Now).unwrap();
            frozen.hold().unwrap();
            frozen.abandon();
        });
        stopped.join().unwrap();
    });
    (container, init)
}

#[test]
fn an_abandoned_container_stands_still_until_it_is_let_go() {
    let (container, init) = abandoned("left-go");
    let leftover = Leftover::find(init).unwrap();
    assert!(leftover.is_frozen().unwrap());
    let stopped_at = last_number(&container.output());
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(last_number(&container.output()), stopped_at, "it is stopped");
    leftover.let_go(Connections::Carry).unwrap();
    wait_until("counting on", || last_number(&container.output()) > stopped_at + 100);
    let numbers: Vec<u64> = container.output().lines().map(|line| line.trim().parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "no number is lost and none comes twice");
    assert!(!Leftover::find(init).unwrap().is_frozen().unwrap());
}

#[test]
fn an_abandoned_container_is_killed_without_running() {
    let (container, init) = abandoned("left-kill");
    let stopped_at = last_number(&container.output());
    Leftover::find(init).unwrap().destroy(Duration::from_secs(10)).unwrap();
    assert_eq!(last_number(&container.output()), stopped_at, "it has not run");
    assert!(Leftover::find(init).is_err() || !std::path::Path::new(&format!("/proc/{init}/exe")).exists());
}

#[test]
fn a_container_that_nobody_froze_is_let_go_without_effect() {
    let container = Created::new("left-free", COUNTER);
    container.start();
    let leftover = Leftover::find(container.init()).unwrap();
    assert!(!leftover.is_frozen().unwrap());
    leftover.let_go(Connections::Carry).unwrap();
    let seen = last_number(&container.output());
    wait_until("counting", || last_number(&container.output()) > seen);
}

/// Stops and dumps a container with a thread that then ends without letting go, as an agent that is killed does.
fn dumped_by_one_who_died(name: &str, program: &[&str]) -> Created {
    let container = Created::new(name, program);
    container.start();
    wait_until("counting", || last_number(&container.output()) > 10);
    let init = container.init();
    std::thread::scope(|scope| {
        let died = scope.spawn(|| {
            let mut source = Source::open(init, SourceOptions::default()).unwrap();
            source.round(&mut Nowhere).unwrap();
            let mut frozen = source.freeze().unwrap();
            frozen.dump(&mut Nowhere, LastPages::Now).unwrap();
            std::mem::forget(frozen);
            std::mem::forget(source);
        });
        died.join().unwrap();
    });
    container
}

#[test]
fn a_container_whose_agent_died_after_the_dump_runs_on() {
    let sleeper = ["sh", "-c", "i=0; while true; do i=$((i+1)); echo $i; usleep 1000; done"];
    for (name, program) in [("died-busy", COUNTER), ("died-asleep", &sleeper)] {
        let container = dumped_by_one_who_died(name, program);
        let seen = last_number(&container.output());
        wait_until("counting on", || last_number(&container.output()) > seen + 100);
        let numbers: Vec<u64> = container.output().lines().map(|line| line.trim().parse().unwrap()).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{name}: no number is lost");
    }
}
