//! One run: the workload in a container, one migration, and what came of it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use pclive_tests::footprint::{Footprint, cpu_time};
use pclive_tests::host::Links;
use pclive_tests::measure::{Moved, WarmMemory, migrate};
use pclive_tests::wait::until;
use pclive_tests::workload::verifier::Verifier;
use pclive_tests::workload::{graph, postgres, redis, writer};
use pclive_tests::{Bundle, Container, Lab};

use crate::clients::Record;
use crate::criu::Criu;
use crate::hosts::Hosts;
use crate::load;
use crate::machine::Machine;
use crate::oltp;
use crate::outcome::{ContainerCost, Measures, Outcome, Run};
use crate::setting::{BUFFERS_MIB, Channel, Setting, Workload, Ycsb};
use crate::view::ClientView;
use crate::ycsb::Server;

/// How long the container is watched before the migration, and its clients after it.
const WATCH: Duration = Duration::from_secs(2);
/// How long a program may take to do something again.
const AFTER: Duration = Duration::from_secs(30);
/// What a run calls the container.
const NAME: &str = "bench";

/// Between which hosts.
#[derive(Debug)]
pub(crate) enum Site {
    /// Two on this machine, made for each run; what is measured beside PCLive, if something is.
    Lab(Option<Criu>),
    /// Two of the user's.
    Hosts(Hosts),
}

/// What all runs have in common.
#[derive(Debug)]
pub(crate) struct Session {
    /// Where.
    pub(crate) site: Site,
    /// Of all runs; see [`seed_of`].
    pub(crate) seed: u64,
    /// Where this program runs.
    pub(crate) machine: Machine,
}

/// The seed of a run: repetitions have other contents and choices, settings of one repetition the same.
pub(crate) fn seed_of(session: u64, repetition: u32) -> u64 {
    session.wrapping_mul(1_000_000).wrapping_add(u64::from(repetition))
}

impl Session {
    /// Leaves nothing behind in what is the user's.
    pub(crate) fn leave(&self) -> Result<()> {
        match &self.site {
            Site::Lab(_) => Ok(()),
            Site::Hosts(hosts) => hosts.leave(),
        }
    }

    /// Measures a setting once. A failure is an outcome too.
    pub(crate) fn run(&mut self, setting: &Setting, repetition: u32) -> Run {
        let seed = seed_of(self.seed, repetition);
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let measured = match &mut self.site {
            Site::Lab(criu) => in_lab(setting, seed, criu.as_ref()),
            Site::Hosts(hosts) => hosts.measure(setting, seed),
        };
        let outcome = match measured {
            Ok(measures) => Outcome::Measured(Box::new(measures)),
            Err(error) => Outcome::Failed { why: format!("{error:#}") },
        };
        Run {
            setting: setting.clone(),
            repetition,
            seed,
            began_unix_ms: u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX),
            machine: self.machine.clone(),
            outcome,
        }
    }
}

/// What moves a container between the hosts of a lab.
enum Mover<'a> {
    /// The agents, with these words to `pclivectl`.
    Agents(Vec<String>),
    /// runc with it.
    Criu(&'a Criu),
}

impl<'a> Mover<'a> {
    fn new(setting: &Setting, criu: Option<&'a Criu>) -> Result<Self> {
        Ok(match setting.words() {
            Some(words) => Self::Agents(words),
            None => Self::Criu(criu.context("there is no CRIU")?),
        })
    }

    /// Starts a container on host a that can be moved.
    fn start(&self, lab: &Lab, bundle: &Bundle) -> Result<Container> {
        match self {
            Self::Agents(_) => lab.start(bundle),
            Self::Criu(criu) => criu.start(lab, bundle),
        }
    }

    /// Moves it to host b.
    fn migrate(&self, lab: &Lab, container: &Container) -> Result<Moved> {
        match self {
            Self::Agents(words) => {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                migrate(lab, &container.name, &words)
            }
            Self::Criu(criu) => criu.migrate(lab, container),
        }
    }
}

fn in_lab(setting: &Setting, seed: u64, criu: Option<&Criu>) -> Result<Measures> {
    let mover = Mover::new(setting, criu)?;
    let links = match setting.channel {
        Channel::Tls => Links::Tls,
        Channel::Plain => Links::Plain,
    };
    let lab = Lab::with_speed(setting.link.speed(), links)?;
    match &setting.workload {
        Workload::Ycsb(ycsb) => {
            let container = mover.start(&lab, &redis::bundle(NAME))?;
            let server = Server::new(Some(&lab.client), (container.ip(), redis::PORT).into());
            server.load(ycsb.records, seed)?;
            let warm = warm(setting);
            with_clients(server, ycsb, seed, || watch(&lab, &mover, &container, warm))
        }
        Workload::Stress { mib, pages_per_second } => {
            verified(&lab, &mover, setting, &writer::bundle(NAME, *mib, *pages_per_second), "WRITTEN")
        }
        Workload::Oltp(oltp) => {
            let container = mover.start(&lab, &postgres::bundle(NAME, &format!("{BUFFERS_MIB}MB"))?)?;
            let server = oltp::Server::load(&lab.client, (container.ip(), 0).into(), *oltp)?;
            let warm = warm(setting);
            let clients = server.start(seed)?;
            seen(|| watch(&lab, &mover, &container, warm), || clients.stop())
        }
        Workload::Graph { scale, threads } => {
            verified(&lab, &mover, setting, &graph::bundle(NAME, *scale, *threads), "SEARCHES")
        }
    }
}

/// For the copy, and what may wait for it.
fn warm(setting: &Setting) -> WarmMemory {
    WarmMemory::new(setting.workload.memory_bytes() * 2)
}

/// Moves a program that verifies itself, and goes on afterwards: `count` asks it for a number that grows.
fn verified(
    lab: &Lab,
    mover: &Mover<'_>,
    setting: &Setting,
    bundle: &Bundle,
    count: &str,
) -> Result<Measures> {
    let container = mover.start(lab, bundle)?;
    let verifier = Verifier::new(&lab.client, container.v4);
    verifier.check().context("before the migration")?;
    let (moved, container) = watch(lab, mover, &container, warm(setting))?;
    verifier.check().context("after the migration")?;
    let counted = || Ok::<u64, anyhow::Error>(verifier.ask(count)?.parse()?);
    let before = counted()?;
    until("something that is done after the migration", AFTER, || Ok(counted()? > before))?;
    Ok(Measures { report: moved.report, clients: None, container })
}

/// Lets clients at a Redis that is filled while it moves.
pub(crate) fn with_clients(
    server: Server<'_>,
    ycsb: &Ycsb,
    seed: u64,
    moving: impl FnOnce() -> Result<(Moved, Option<ContainerCost>)>,
) -> Result<Measures> {
    if ycsb.clients == 0 {
        let (moved, container) = moving()?;
        server.check(ycsb.records, seed).context("after the migration")?;
        return Ok(Measures { report: moved.report, clients: None, container });
    }
    let clients = server.start(ycsb, seed)?;
    let measures = seen(moving, || clients.stop())?;
    server.check(ycsb.records, seed).context("after the migration")?;
    measures.clients.as_ref().map_or(Ok(()), |view| view.keeps_up(ycsb.rate))?;
    Ok(measures)
}

/// Moves a container while its clients work.
///
/// # Errors
/// When they lose a connection, or something that was acknowledged, too.
fn seen(
    moving: impl FnOnce() -> Result<(Moved, Option<ContainerCost>)>,
    stop: impl FnOnce() -> Result<Record>,
) -> Result<Measures> {
    std::thread::sleep(WATCH);
    let (moved, container) = moving()?;
    std::thread::sleep(WATCH);
    let view = ClientView::new(&stop()?, &moved)?;
    if !view.nothing_lost() {
        bail!("clients lost {} updates; {:?}", view.lost_updates, view.failures);
    }
    Ok(Measures { report: moved.report, clients: Some(view), container })
}

/// Watches the container for a while, moves it, and looks at what it took. Whatever uses it is running.
fn watch(
    lab: &Lab,
    mover: &Mover<'_>,
    container: &Container,
    warm: WarmMemory,
) -> Result<(Moved, Option<ContainerCost>)> {
    let (cpu, began) = (cpu_time(container, &lab.a)?, Instant::now());
    std::thread::sleep(WATCH);
    let at_rest = Footprint::of(container, &lab.a)?;
    let (cpu, watched) = (cpu_time(container, &lab.a)? - cpu, began.elapsed());
    drop(warm);
    let (moved, load) = load::during(|| cpu_time(container, &lab.a).ok(), || mover.migrate(lab, container));
    let moved = moved?;
    let cpu_in_rounds = load.cpus(moved.rounds_began..moved.stopped);
    let afterwards = Footprint::of(container, &lab.b)?;
    let cpu_at_rest = cpu.as_secs_f64() / watched.as_secs_f64();
    Ok((moved, Some(ContainerCost { at_rest, afterwards, cpu_at_rest, cpu_in_rounds })))
}
