//! A container goes on without its last pages: the engine alone, both ends on one host.

mod support;

use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pclive_engine::capture::{Dumped, LastPages, Sink, SinkError, Source, SourceOptions};
use pclive_engine::model::{Batch, Deadline, Layout, PAGE_SIZE, Pid};
use pclive_engine::restore::{Destination, DestinationOptions};
use pclive_engine::tail::{Later, News, Original, Placing, Space};
use support::Created;

/// Hands everything to the destination at once.
struct Wire<'a> {
    destination: &'a mut Destination,
    later_pages: u64,
}

fn failed(error: impl std::error::Error) -> SinkError {
    SinkError { reason: format!("{error}: {:?}", error.source().map(ToString::to_string)) }
}

impl Sink for Wire<'_> {
    fn layout(&mut self, layout: &Layout) -> Result<(), SinkError> {
        self.destination.apply_layout(layout).map_err(failed)
    }

    fn batch(&mut self, batch: Batch) -> Result<(), SinkError> {
        self.destination.fill(&batch).map_err(failed)
    }

    fn later(&mut self, later: Later) -> Result<(), SinkError> {
        self.later_pages += later.pages();
        self.destination.go_without(later).map_err(failed)
    }
}

/// What a tail came to.
#[derive(Debug, Default)]
struct Served {
    wanted: u64,
    born: u64,
    placed: u64,
}

/// Gives pages to the copy: those that somebody waits for at once, the others when nobody has waited for a while.
fn serve(mut spaces: Vec<Space>, original: Pid, patience: Duration) -> Served {
    let mut original = Original::open(original).unwrap();
    let mut served = Served::default();
    let mut page = vec![0; PAGE_SIZE as usize];
    let mut quiet_since = Instant::now();
    loop {
        let mut wanted = Vec::new();
        let mut born = Vec::new();
        spaces.retain_mut(|space| {
            loop {
                match space.hear().unwrap() {
                    News::Wanted(origin) => wanted.push((space.vpid(), origin)),
                    News::Born(child) => born.push(child),
                    News::Settled => {}
                    News::Nothing => return true,
                    News::Gone => return false,
                }
            }
        });
        served.born += born.len() as u64;
        spaces.extend(born);
        served.wanted += wanted.len() as u64;
        if wanted.is_empty() && quiet_since.elapsed() > patience {
            let rest =
                spaces.iter().find_map(|space| space.missing().first().map(|origin| (space.vpid(), origin)));
            match rest {
                Some(first) => wanted.push(first),
                None => return served,
            }
        } else if !wanted.is_empty() {
            quiet_since = Instant::now();
        }
        for (vpid, origin) in wanted {
            original.read(vpid, origin, &mut page).unwrap();
            spaces.retain_mut(|space| {
                if space.vpid() != vpid || !space.missing().lacks(origin) {
                    return true;
                }
                served.placed += 1;
                loop {
                    match space.place(origin, &page).unwrap() {
                        Placing::Done => return true,
                        Placing::Gone => return false,
                        // The test's container tells its news slowly enough for this.
                        Placing::Later | Placing::NoMemory => match space.hear().unwrap() {
                            News::Nothing | News::Settled => {}
                            other => panic!("{other:?} in between"),
                        },
                    }
                }
            });
        }
        if quiet_since.elapsed() < patience {
            let mut fds: Vec<PollFd<'_>> =
                spaces.iter().map(|space| PollFd::new(space.descriptor(), PollFlags::POLLIN)).collect();
            poll(&mut fds, PollTimeout::from(5u8)).unwrap();
        }
    }
}

fn relocate_without_pages(from: &Created, to: &Created) -> (u64, Served) {
    let mut source = Source::open(from.init(), SourceOptions::default()).unwrap();
    let mut destination = Destination::adopt(to.init(), DestinationOptions::default()).unwrap();
    for _ in 0..2 {
        source.round(&mut Wire { destination: &mut destination, later_pages: 0 }).unwrap();
    }
    // So that there is something to be late.
    wait_until("written pages", || source.pending_pages().unwrap() > 0);
    let mut frozen = source.freeze().unwrap();
    let mut wire = Wire { destination: &mut destination, later_pages: 0 };
    let (stats, dumped) = frozen.dump(&mut wire, LastPages::Later).unwrap();
    let later_pages = wire.later_pages;
    assert_eq!(stats.later_pages, later_pages);
    let Dumped::State(state) = dumped else { panic!("not now: {dumped:?}") };
    destination.restore(&state).unwrap();
    let lacks = destination.take_lacks();
    let spaces: Vec<Space> = lacks.into_iter().map(|(lack, uffd)| Space::new(&lack, uffd)).collect();
    assert_eq!(spaces.iter().map(|space| space.missing().pages()).sum::<u64>(), later_pages);
    frozen.hold().unwrap();
    destination.resume().unwrap();
    let served = serve(spaces, from.init(), Duration::from_millis(300));
    frozen.destroy().unwrap();
    (later_pages, served)
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Deadline::after(Duration::from_secs(20));
    while !done() {
        assert!(!deadline.passed(), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn numbers(container: &Created) -> Vec<u64> {
    container.output().lines().filter_map(|line| line.trim().parse().ok()).collect()
}

/// Counts on without a gap, `program` printing one number after the other.
fn counts_on(name: &str, program: &str) -> (u64, Served) {
    let program = &["sh", "-c", program];
    let from = Created::new(&format!("{name}-a"), program);
    let to = Created::new(&format!("{name}-b"), program);
    from.start();
    wait_until("counting", || numbers(&from).len() > 50);
    let (later, served) = relocate_without_pages(&from, &to);
    wait_until("counting at the destination", || numbers(&to).len() > 50);
    let all = [numbers(&from), numbers(&to)].concat();
    assert!(all.windows(2).all(|pair| pair[1] == pair[0] + 1), "no number is lost and none comes twice");
    (later, served)
}

#[test]
fn program_goes_on_while_its_pages_come_as_it_wants_them() {
    let (later, served) = counts_on("tail", "i=0; while true; do i=$((i+1)); echo $i; done");
    assert!(later > 0 && served.wanted > 0 && served.placed == later, "{later} {served:?}");
}

#[test]
fn children_that_are_born_meanwhile_lack_what_their_parent_lacks() {
    let forks = "i=0; while true; do i=$((i+1)); j=$(echo $i); echo $j; done";
    // Whether a child is born before the last page is there is a matter of chance.
    for attempt in 0..10 {
        let (later, served) = counts_on(&format!("tail-fork-{attempt}"), forks);
        assert!(later > 0 && served.wanted > 0, "{later} {served:?}");
        if served.born > 0 {
            return;
        }
    }
    panic!("no child was born while pages were missing");
}
