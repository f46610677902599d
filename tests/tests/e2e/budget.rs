//! What the agents do while a container stands still: system calls, counted, for each thing that it has.
//!
//! Counts are about the same on every machine, however slow. A budget is what was counted and a little room: whoever
//! needs more says here why.

use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, anyhow, ensure};
use pclive_tests::ctl::Following;
use pclive_tests::link::TEN_GIGABIT;
use pclive_tests::syscalls::{Calls, Recorder};
use pclive_tests::wait::until;
use pclive_tests::workload::redis::{self, Redis};
use pclive_tests::workload::verifier::Verifier;
use pclive_tests::workload::{clients, crowd};
use pclive_tests::{Bundle, Container, Lab, needs};

use crate::{LIMIT, ready, runs_only_at};

/// The calls of both agents from just before the stop to the moment in which the copy runs.
#[derive(Debug)]
struct Stop {
    source: Calls,
    destination: Calls,
    round_trips: u32,
}

/// Moves a container, which is removed then.
fn stop_of(lab: &Lab, container: &Container) -> Result<Stop> {
    lab.a.arm("source-lock-prepared:hold")?;
    lab.b.arm("destination-released:hold")?;
    let following = Following::start(&lab.a, &container.name, lab.b.name(), &["--strategy", "global"])?;
    lab.a.await_hold()?;
    let (source, destination) = (Recorder::prepare(&lab.a)?, Recorder::prepare(&lab.b)?);
    source.start().and(destination.start())?;
    lab.a.end_hold()?;
    lab.b.await_hold()?;
    source.stop().and(destination.stop())?;
    let calls = (source.calls()?, destination.calls()?);
    drop((source, destination));
    lab.b.end_hold()?;
    let report = following.finish()?.map_err(|refusal| anyhow!("{refusal:?}"))?;
    let round_trips = report.ledger.as_ref().context("a report without its ledger")?.round_trips;
    let stop = Stop { source: calls.0, destination: calls.1, round_trips };
    runs_only_at(container, &lab.b, &lab.a)?;
    container.delete(&lab.b)?;
    Ok(stop)
}

/// Something of which a container can have many.
#[derive(Debug, Clone, Copy)]
enum Thing {
    Thread,
    Mapping,
    File,
    Process,
    Connection,
}

/// Calls for each of them, at most.
#[derive(Debug, Clone, Copy)]
struct Budget {
    /// All that the source's agent makes.
    source: f64,
    /// Those with which it lets a task run on, to its next stop or for good.
    source_stops: f64,
    /// All that the destination's agent makes.
    destination: f64,
    destination_stops: f64,
}

impl Thing {
    fn budget(self) -> Budget {
        let budget = |source, source_stops, destination, destination_stops| Budget {
            source,
            source_stops,
            destination,
            destination_stops,
        };
        match self {
            Self::Thread => budget(48.0, 1.5, 28.0, 2.5),
            // None. What is left is what the agents look at every few milliseconds.
            Self::Mapping => budget(0.2, 0.0, 0.2, 0.0),
            Self::File => budget(12.5, 0.0, 5.5, 0.0),
            Self::Process => budget(170.0, 1.5, 110.0, 11.5),
            Self::Connection => budget(82.0, 0.0, 36.0, 0.0),
        }
    }

    /// A container that has so many, and who must live as long as it.
    fn container(self, lab: &Lab, count: usize) -> Result<(Container, Vec<TcpStream>)> {
        let name = format!("{self:?}-{count}").to_lowercase();
        let crowd = |many: &str| {
            let number = |option| if option == many { count.to_string() } else { "2".to_owned() };
            let options =
                ["--threads", "--mappings", "--files"].map(|option| [option.to_owned(), number(option)]);
            let words: Vec<&str> = options.iter().flatten().map(String::as_str).collect();
            let container = lab.start(&crowd::bundle(&name, &words))?;
            Verifier::new(&lab.client, container.v4).check()?;
            Ok((container, Vec::new()))
        };
        match self {
            Self::Thread => crowd("--threads"),
            Self::Mapping => crowd("--mappings"),
            Self::File => crowd("--files"),
            Self::Process => {
                let busybox = "/usr/bin/busybox";
                let program =
                    format!("for i in $({busybox} seq {count}); do {busybox} sleep 1000 & done; wait");
                let words = [busybox, "sh", "-c", &program];
                let container = lab.start(&Bundle::new(&name, &words).program("busybox"))?;
                until("the start of all processes", LIMIT, || {
                    let list = container.exec(&lab.a, &[busybox, "ps"])?;
                    Ok(list.lines().filter(|line| line.trim_end().ends_with("sleep 1000")).count() == count)
                })?;
                Ok((container, Vec::new()))
            }
            Self::Connection => {
                let container = lab.start(&redis::bundle(&name))?;
                Redis::new(&lab.client, container.v4).populate(1 << 20)?;
                let address = SocketAddr::from((container.v4, redis::PORT));
                let connect = move || (0..count).map(|_| clients::connect(address)).collect::<Result<_>>();
                let thread = lab.client.in_network(connect)?;
                Ok((container, thread.join().map_err(|_| anyhow!("the client panicked"))??))
            }
        }
    }

    /// Fails if one more of it costs more than it may.
    fn keeps_its_budget(self, lab: &Lab, few: usize, many: usize) -> Result<()> {
        let (container, _clients) = self.container(lab, few)?;
        let less = stop_of(lab, &container)?;
        let (container, _clients) = self.container(lab, many)?;
        let more = stop_of(lab, &container)?;
        ensure!(more.destination.of("listen") == 0, "a listener was made in the stop: {}", more.destination);
        // The last state and Ready; the commit and Running.
        for stop in [&less, &more] {
            ensure!((1..=2).contains(&stop.round_trips), "{} round trips in a stop", stop.round_trips);
        }
        let each = |more: u64, less: u64| (more as f64 - less as f64) / (many - few) as f64;
        let all = |more: &Calls, less: &Calls| each(more.total(), less.total());
        let stops = |more: &Calls, less: &Calls| each(more.stops(), less.stops());
        let (source, destination) = ((&more.source, &less.source), (&more.destination, &less.destination));
        let budget = self.budget();
        let counts = [
            ("calls of the source", all(source.0, source.1), budget.source),
            ("stops at the source", stops(source.0, source.1), budget.source_stops),
            ("calls of the destination", all(destination.0, destination.1), budget.destination),
            ("stops at the destination", stops(destination.0, destination.1), budget.destination_stops),
        ];
        println!("{self:?}: {counts:.2?}");
        for (what, count, most) in counts {
            ensure!(
                count <= most,
                "{count:.2} {what} for each {self:?}, of {most} that it may have\n{few}: {less:?}\n{many}: {more:?}"
            );
        }
        Ok(())
    }
}

#[test]
fn no_thing_costs_more_calls_than_it_may() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let lab = Lab::without_agents(TEN_GIGABIT)?;
    if ![&lab.a, &lab.b].into_iter().all(|host| needs::allows(Recorder::available(host))) {
        return Ok(());
    }
    lab.certify()?;
    lab.a.start_faulty_agent("")?;
    lab.b.start_faulty_agent("")?;
    let things = [
        (Thing::Thread, 20, 220),
        (Thing::Mapping, 20, 2020),
        (Thing::File, 20, 520),
        (Thing::Process, 4, 54),
        (Thing::Connection, 4, 104),
    ];
    for (thing, few, many) in things {
        thing.keeps_its_budget(&lab, few, many).with_context(|| format!("{thing:?}"))?;
    }
    Ok(())
}
