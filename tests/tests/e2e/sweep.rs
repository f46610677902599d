//! Agents that are killed at every point of a migration that the agent knows: after their restart exactly one copy runs,
//! where the point says, with its data and its connections, nothing is left of the other, and a second migration works.
//!
//! `FAULT_POINTS=WORD` leaves only points whose name contains the word.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pclive_tests::command::{faulty_agent, output};
use pclive_tests::ctl::Following;
use pclive_tests::link::TEN_GIGABIT;
use pclive_tests::workload::clients::Clients;
use pclive_tests::workload::redis::{Redis, bundle};
use pclive_tests::{Container, Host, Lab};

use crate::{migrate, ready};

/// Least number of points: one that vanished would not be missed otherwise.
const LEAST_POINTS: usize = 92;

/// A point as the agent describes it.
#[derive(Debug)]
pub(crate) struct Point {
    pub(crate) name: String,
    /// Where the container runs afterwards: "source", "destination", or "decided": where the destination says.
    pub(crate) survivor: String,
    /// The policy of a migration that comes to it.
    pub(crate) policy: String,
}

impl Point {
    fn parse(line: &str) -> Result<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, survivor, policy] = words[..] else { bail!("not a point: {line}") };
        Ok(Self { name: name.into(), survivor: survivor.into(), policy: policy.into() })
    }

    fn is_of_undoing(&self) -> bool {
        matches!(self.policy.as_str(), "keep" | "undo")
    }

    /// The options of such a migration; `verify` is no policy, but an option of its own.
    pub(crate) fn options(&self) -> Vec<&str> {
        if self.policy == "verify" {
            return vec!["--verify", "--max-rounds", "3"];
        }
        let rounds = match self.policy.as_str() {
            "cancel" => "1",
            // Steps are taken when rounds no longer shrink, and no more at their limit.
            "throttle" => "15",
            _ => "3",
        };
        let downtime = if self.policy == "stop-anyway" { "300ms" } else { "1ms" };
        vec!["--policy", &self.policy, "--max-downtime", downtime, "--max-rounds", rounds]
    }
}

/// Every point of a migration.
pub(crate) fn points() -> Result<Vec<Point>> {
    Ok(all_points()?.into_iter().filter(|point| !point.is_of_undoing()).collect())
}

/// The points of keeping an original, and of going back to it.
pub(crate) fn points_of_undoing() -> Result<Vec<Point>> {
    Ok(all_points()?.into_iter().filter(Point::is_of_undoing).collect())
}

fn all_points() -> Result<Vec<Point>> {
    let listed = output(Command::new(faulty_agent()?).arg("fault-points"))?;
    listed.lines().map(Point::parse).collect()
}

/// A lab with a small Redis that moves, and what watches it.
pub(crate) struct Sweep {
    pub(crate) container: Container,
    pub(crate) clients: Clients,
    pub(crate) lab: Lab,
    keys: u64,
}

impl Sweep {
    pub(crate) fn new() -> Result<Self> {
        let lab = Lab::without_agents(TEN_GIGABIT)?;
        lab.certify()?;
        lab.a.start_faulty_agent("")?;
        lab.b.start_faulty_agent("")?;
        let container = lab.start(&bundle("redis-1"))?;
        let redis = Redis::new(&lab.client, container.v4);
        let keys = redis.populate(8 << 20)?;
        let clients = redis.clients(2, Duration::from_millis(1))?;
        Ok(Self { container, clients, lab, keys })
    }

    /// For a point that needs them, clients that write so much that it is worth a policy.
    pub(crate) fn writers(&self, point: &Point) -> Result<Option<Clients>> {
        if !["throttle", "post-copy"].contains(&point.policy.as_str()) {
            return Ok(None);
        }
        let writers = Redis::new(&self.lab.client, self.container.v4).overwriting(2, self.keys)?;
        writers.wait_for_answers(100)?;
        Ok(Some(writers))
    }

    /// Where it runs, and the other host.
    pub(crate) fn hosts(&self) -> Result<(&Host, &Host)> {
        let running =
            |host| Ok::<_, anyhow::Error>(self.container.status(host)?.as_deref() == Some("running"));
        match (running(&self.lab.a)?, running(&self.lab.b)?) {
            (true, false) => Ok((&self.lab.a, &self.lab.b)),
            (false, true) => Ok((&self.lab.b, &self.lab.a)),
            (true, true) => bail!("two copies run"),
            (false, false) => bail!("no copy runs"),
        }
    }

    /// Kills the agent at the point and looks at what comes of it.
    fn survive(&self, point: &Point) -> Result<()> {
        let (source, destination) = self.hosts()?;
        let victim = if point.name.starts_with("source") { source } else { destination };
        let writers = self.writers(point)?;
        let untouched = if writers.is_none() { Some(self.digest()?) } else { None };
        victim.arm(&format!("{}:kill", point.name))?;
        let following = Following::start(source, &self.container.name, destination.name(), &point.options())?;
        victim.await_agent_end().context("the point was not reached")?;
        victim.start_faulty_agent("")?;
        drop(following);
        source.await_ends()?;
        destination.await_ends()?;
        source.audit_agrees()?;
        destination.audit_agrees()?;
        let (here, gone) = self.hosts()?;
        let survivor = if here.name() == source.name() { "source" } else { "destination" };
        let expected = match point.survivor.as_str() {
            "decided" if destination.migrations()?.first().is_some_and(|last| last["phase"] == "done") => {
                "destination"
            }
            "decided" => "source",
            known => known,
        };
        ensure!(survivor == expected, "it runs at the {survivor}, not at the {expected}");
        here.await_clean(&[&self.container])?;
        gone.await_clean(&[])?;
        self.clients.wait_for_answers(20)?;
        migrate(&self.container, here, gone, &[])?;
        self.clients.wait_for_answers(20)?;
        if let Some(digest) = untouched {
            ensure!(self.digest()? == digest, "the data set has changed");
        }
        writers.map_or(Ok(()), |writers| writers.stop()?.nothing_lost())
    }

    /// Of the whole data set.
    fn digest(&self) -> Result<u64> {
        Redis::new(&self.lab.client, self.container.v4).digest(self.keys)
    }

    pub(crate) fn last_words(&self) -> String {
        self.lab.a.last_words() + &self.lab.b.last_words()
    }
}

/// Every point of a role, one after the other in one lab. A lab in which one was not survived is replaced.
fn survives_every_point_of(role: &str) -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let all = points()?;
    ensure!(all.len() >= LEAST_POINTS, "{} points", all.len());
    let wanted = std::env::var("FAULT_POINTS").unwrap_or_default();
    let of_role = all.iter().filter(|point| point.name.starts_with(role) && point.name.contains(&wanted));
    let (mut sweep, mut failures, mut survived) = (Sweep::new()?, Vec::new(), 0);
    for point in of_role {
        let begun = Instant::now();
        match sweep.survive(point) {
            Ok(()) => survived += 1,
            Err(error) => {
                eprintln!("{}: {error:#}\n{}", point.name, sweep.last_words());
                failures.push(format!("{}: {error:#}", point.name));
                sweep = Sweep::new()?;
            }
        }
        eprintln!("{} by {}: {:?}", point.name, point.policy, begun.elapsed());
    }
    ensure!(failures.is_empty(), "{survived} points survived, and not: {failures:#?}");
    eprintln!("{survived} points survived");
    sweep.clients.stop()?.nothing_lost()
}

#[test]
fn source_killed_at_any_point_leaves_one_copy_where_the_point_says() -> Result<()> {
    survives_every_point_of("source")
}

#[test]
fn destination_killed_at_any_point_leaves_one_copy_where_the_point_says() -> Result<()> {
    survives_every_point_of("destination")
}
