//! A running container moves into a created one on the same host: the engine alone, without agents.

mod support;

use std::time::Duration;

use pclive_engine::capture::{Dumped, LastPages, Sink, SinkError, Source, SourceOptions};
use pclive_engine::model::{Batch, Deadline, Layout, codec};
use pclive_engine::restore::{Destination, DestinationOptions};
use support::Created;

/// Hands everything to the destination at once, through the wire's encoding where there is one.
struct Wire<'a> {
    destination: &'a mut Destination,
}

impl Sink for Wire<'_> {
    fn layout(&mut self, layout: &Layout) -> Result<(), SinkError> {
        let layout: Layout = codec::decode(&codec::encode(layout).unwrap()).unwrap();
        self.destination.apply_layout(&layout).map_err(|error| SinkError { reason: chain(&error) })
    }

    fn batch(&mut self, batch: Batch) -> Result<(), SinkError> {
        self.destination.fill(&batch).map_err(|error| SinkError { reason: chain(&error) })
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Moves a container; returns how long it was stopped.
fn relocate(from: &Created, to: &Created, rounds: u32) -> Duration {
    let mut source = Source::open(from.init(), SourceOptions::default()).unwrap();
    let blockers = source.check().unwrap();
    assert!(blockers.is_empty(), "{blockers:#?}");
    let mut destination = Destination::adopt(to.init(), DestinationOptions::default()).unwrap();
    for round in 0..rounds {
        let stats = source.round(&mut Wire { destination: &mut destination });
        let stats = stats.unwrap_or_else(|error| panic!("round {round}: {}", chain(&error)));
        eprintln!("round {round}: {stats:?}");
    }
    let begun = std::time::Instant::now();
    let mut frozen = source.freeze().unwrap();
    let (stats, dumped) = frozen
        .dump(&mut Wire { destination: &mut destination }, LastPages::Now)
        .unwrap_or_else(|error| panic!("final dump: {}", chain(&error)));
    let Dumped::State(state) = dumped else { panic!("not now: {dumped:?}") };
    eprintln!("final: {stats:?}");
    let state = codec::decode(&codec::encode(&state).unwrap()).unwrap();
    let ledger = destination.restore(&state).unwrap_or_else(|error| panic!("restore: {}", chain(&error)));
    frozen.hold().unwrap_or_else(|error| panic!("{}", chain(&error)));
    destination.resume().unwrap_or_else(|error| panic!("resume: {}", chain(&error)));
    let stopped = begun.elapsed();
    eprintln!("stopped {stopped:?}, {ledger:?}");
    frozen.destroy().unwrap_or_else(|error| panic!("destroy: {}", chain(&error)));
    stopped
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Deadline::after(Duration::from_secs(20));
    while !done() {
        assert!(!deadline.passed(), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn last_number(text: &str) -> u64 {
    text.lines().filter_map(|line| line.trim().parse().ok()).next_back().unwrap_or(0)
}

const COUNTER: &[&str] = &["sh", "-c", "i=0; while true; do i=$((i+1)); echo $i; done"];

#[test]
fn shell_counts_on_where_it_was() {
    let (from, to) = (Created::new("count-a", COUNTER), Created::new("count-b", COUNTER));
    from.start();
    wait_until("counting", || last_number(&from.output()) > 100);
    relocate(&from, &to, 3);
    wait_until("counting at the destination", || !to.output().is_empty());
    let last = last_number(&from.output());
    wait_until("more numbers", || to.output().lines().count() > 100);
    let first: u64 = to.output().lines().next().unwrap().trim().parse().unwrap();
    assert_eq!(first, last + 1, "no number is lost and none comes twice");
}

/// Takes everything and keeps nothing.
struct Nowhere;

impl Sink for Nowhere {
    fn layout(&mut self, _: &Layout) -> Result<(), SinkError> {
        Ok(())
    }

    fn batch(&mut self, _: Batch) -> Result<(), SinkError> {
        Ok(())
    }
}

#[test]
fn a_container_that_was_only_watched_is_as_before() {
    let container = Created::new("watched", COUNTER);
    container.start();
    wait_until("counting", || last_number(&container.output()) > 100);
    let before = std::fs::read_to_string(format!("/proc/{}/maps", container.init())).unwrap();
    {
        let mut source = Source::open(container.init(), SourceOptions::default()).unwrap();
        let all = source.round(&mut Nowhere).unwrap();
        wait_until("a written page", || source.pending_pages().unwrap() > 0);
        assert!(source.pending_pages().unwrap() <= all.data_pages + all.zero_pages, "{all:?}");
    }
    let after = std::fs::read_to_string(format!("/proc/{}/maps", container.init())).unwrap();
    assert_eq!(before, after, "nothing is left behind");
    let last = last_number(&container.output());
    wait_until("counting on", || last_number(&container.output()) > last + 100);
}

#[test]
fn source_runs_on_after_a_dump_that_led_nowhere() {
    let (from, to) = (Created::new("back-a", COUNTER), Created::new("back-b", COUNTER));
    from.start();
    wait_until("counting", || last_number(&from.output()) > 100);
    let before = std::fs::read_to_string(format!("/proc/{}/maps", from.init())).unwrap();
    {
        let mut source = Source::open(from.init(), SourceOptions::default()).unwrap();
        let mut destination = Destination::adopt(to.init(), DestinationOptions::default()).unwrap();
        for _ in 0..3 {
            source
                .round(&mut Wire { destination: &mut destination })
                .unwrap_or_else(|e| panic!("{}", chain(&e)));
        }
        let mut frozen = source.freeze().unwrap();
        frozen
            .dump(&mut Wire { destination: &mut destination }, LastPages::Now)
            .unwrap_or_else(|e| panic!("{}", chain(&e)));
        frozen.hold().unwrap();
        let stopped_at = last_number(&from.output());
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(last_number(&from.output()), stopped_at, "it is stopped");
    }
    let resumed_at = last_number(&from.output());
    wait_until("counting on", || last_number(&from.output()) > resumed_at + 100);
    let numbers: Vec<u64> = from.output().lines().map(|line| line.trim().parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "no number is lost and none comes twice");
    let after = std::fs::read_to_string(format!("/proc/{}/maps", from.init())).unwrap();
    assert_eq!(before, after, "nothing is left behind");
    assert_eq!(to.output(), "", "nothing ran at the destination");
}
