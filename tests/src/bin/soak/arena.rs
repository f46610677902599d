//! The lab of the soak: two hosts, a Redis with clients, a memory torture, and a container that may be killed.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::Signal;
use pclive_tests::command::output;
use pclive_tests::ctl::Following;
use pclive_tests::link::TEN_GIGABIT;
use pclive_tests::workload::clients::Clients;
use pclive_tests::workload::redis::{self, Redis};
use pclive_tests::workload::torture;
use pclive_tests::workload::verifier::Verifier;
use pclive_tests::{Container, Host, Lab};

use crate::fault::{End, Fault, Moment, Step};
use crate::tally::{Tally, Wrong};

/// Redis's data set.
const DATA_BYTES: u64 = 32 << 20;
/// Answers that show that the clients go on.
const MORE: u64 = 20;
/// Milliseconds of the grace of the commit: a link that is cut for seconds leads to doubt, which must end.
const AGENT: &str = "commit_grace_ms = 1000\n";

/// What was found that must not be.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) kind: Wrong,
    pub(crate) error: anyhow::Error,
}

fn finding<E: Into<anyhow::Error>>(kind: Wrong) -> impl Fn(E) -> Finding {
    move |error| Finding { kind, error: error.into() }
}

/// The lab and what runs in it.
pub(crate) struct Arena {
    /// Taken at the end.
    clients: Option<Clients>,
    /// The Redis, the torture, and the one that may be killed.
    containers: [Container; 3],
    lab: Lab,
}

impl Arena {
    pub(crate) fn new() -> Result<Self> {
        let lab = Lab::without_agents(TEN_GIGABIT)?;
        lab.certify()?;
        lab.a.start_agent_with(AGENT)?;
        lab.b.start_agent_with(AGENT)?;
        let redis = lab.start(&redis::bundle("redis-1"))?;
        let torture_options = ["--pause-us", "500", "--pages", "1024"];
        let torture = lab.start(&torture::bundle("torture-1", 1, &torture_options))?;
        let victim = lab.start(&torture::bundle("victim", 2, &torture_options))?;
        let server = Redis::new(&lab.client, redis.v4);
        server.populate(DATA_BYTES)?;
        let clients = Some(server.clients(4, Duration::from_millis(1))?);
        Ok(Self { clients, containers: [redis, torture, victim], lab })
    }

    /// One step; what came of the migrations, in words.
    pub(crate) fn take(&mut self, step: &Step, tally: &mut Tally) -> Result<String, Finding> {
        let subject = match step.fault {
            Fault::EndContainer => 2,
            _ => step.container,
        };
        let (source, destination) = self.hosts(subject)?;
        let stuck = finding(Wrong::Stuck);
        let container = &self.containers[subject];
        let mut following =
            Following::start(source, &container.name, destination.name(), step.options).map_err(&stuck)?;
        let other = &self.containers[1 - subject.min(1)];
        let beside = match step.together {
            true => {
                let (from, to) = self.hosts(1 - subject.min(1))?;
                Some(Following::start(from, &other.name, to.name(), &[]).map_err(&stuck)?)
            }
            false => None,
        };
        let reached = wait_for(step.moment, &mut following).map_err(&stuck)?;
        if reached || step.fault == Fault::Nothing {
            tally.fault(step.fault.kind());
            self.inflict(step.fault, (source, destination), container, &following).map_err(&stuck)?;
        }
        let mut words = Vec::new();
        for (name, following) in [(&container.name, Some(following)), (&other.name, beside)]
            .into_iter()
            .filter_map(|(name, following)| following.map(|following| (name, following)))
        {
            words.push(format!("{name} {}", ended(following, tally)));
        }
        self.check(step.fault)?;
        Ok(words.join(", "))
    }

    /// Where a container runs, and the other host.
    fn hosts(&self, container: usize) -> Result<(&Host, &Host), Finding> {
        let container = &self.containers[container];
        let runs =
            |host: &Host| -> Result<bool> { Ok(container.status(host)?.as_deref() == Some("running")) };
        let at = [runs(&self.lab.a), runs(&self.lab.b)];
        let [a, b] = at.map(|runs| runs.map_err(finding(Wrong::Stuck)));
        match (a?, b?) {
            (true, false) => Ok((&self.lab.a, &self.lab.b)),
            (false, true) => Ok((&self.lab.b, &self.lab.a)),
            (true, true) => Err(Finding {
                kind: Wrong::Duplicated,
                error: anyhow!("two copies of {} run", container.name),
            }),
            (false, false) => {
                Err(Finding { kind: Wrong::Lost, error: anyhow!("no copy of {} runs", container.name) })
            }
        }
    }

    fn inflict(
        &self,
        fault: Fault,
        (source, destination): (&Host, &Host),
        container: &Container,
        following: &Following,
    ) -> Result<()> {
        let at = |end| if end == End::Source { source } else { destination };
        match fault {
            Fault::Nothing => Ok(()),
            Fault::Kill(end, down) => {
                at(end).stop_agent(Signal::SIGKILL)?;
                std::thread::sleep(down);
                at(end).start_agent_with(AGENT)
            }
            Fault::KillBoth(between) => {
                source.stop_agent(Signal::SIGKILL)?;
                std::thread::sleep(between);
                destination.stop_agent(Signal::SIGKILL)?;
                source.start_agent_with(AGENT)?;
                destination.start_agent_with(AGENT)
            }
            Fault::Cut(time) => self.filter("drop", time),
            Fault::Reset(time) => self.filter("reject with tcp reset", time),
            Fault::Slow(time) => {
                let shape = |rate: &str, burst: &str| {
                    let words = ["tc", "qdisc", "change", "dev", "uplink", "root", "tbf"];
                    let limit = ["rate", rate, "burst", burst, "latency", "50ms"];
                    source.node().run(&[&words[..], &limit].concat()).map(drop)
                };
                shape("100mbit", "64kb")?;
                std::thread::sleep(time);
                shape("10gbit", "4mb")
            }
            Fault::Cancel(end) => {
                let Some(id) = following.id() else { return Ok(()) };
                // Refused when it is too late, or the destination does not know it yet.
                let _ = output(at(end).ctl()?.args(["cancel", &id]));
                Ok(())
            }
            Fault::EndContainer => {
                // It may be on its way, or have arrived: wherever it runs.
                let _ = output(source.runc().args(["kill", &container.name, "KILL"]));
                Ok(())
            }
        }
    }

    /// Does this to every segment between the agents for a time.
    fn filter(&self, what: &str, time: Duration) -> Result<()> {
        let rules = |way: &str| format!("add rule inet cut in tcp {way} 7413 {what}\n");
        let text = "add table inet cut\nadd chain inet cut in { type filter hook input priority 0; }\n"
            .to_owned()
            + &rules("dport")
            + &rules("sport");
        for host in [&self.lab.a, &self.lab.b] {
            host.node().run(&["nft", &text])?;
        }
        std::thread::sleep(time);
        for host in [&self.lab.a, &self.lab.b] {
            host.node().run(&["nft", "delete table inet cut"])?;
        }
        Ok(())
    }

    /// Everything is as it should be.
    fn check(&mut self, fault: Fault) -> Result<(), Finding> {
        let lost = finding(Wrong::Lost);
        self.lab.a.await_ends().map_err(&lost)?;
        self.lab.b.await_ends().map_err(&lost)?;
        if fault == Fault::EndContainer {
            self.bury().map_err(finding(Wrong::Stuck))?;
        }
        let mut here: [Vec<&Container>; 2] = Default::default();
        for (index, container) in self.containers.iter().enumerate() {
            let (host, _) = self.hosts(index)?;
            here[usize::from(host.name() != self.lab.a.name())].push(container);
        }
        self.lab.a.await_clean(&here[0]).map_err(finding(Wrong::Leaked))?;
        self.lab.b.await_clean(&here[1]).map_err(finding(Wrong::Leaked))?;
        let clients = self.clients.as_ref().context("no clients").map_err(&lost)?;
        clients.wait_for_answers(MORE).map_err(&lost)?;
        for container in &self.containers[1..] {
            Verifier::new(&self.lab.client, container.v4).check().map_err(finding(Wrong::Corrupted))?;
        }
        Ok(())
    }

    /// Starts the container anew that was killed, if it was.
    fn bury(&self) -> Result<()> {
        let victim = &self.containers[2];
        let mut running = 0;
        for host in [&self.lab.a, &self.lab.b] {
            match victim.status(host)?.as_deref() {
                Some("running") => running += 1,
                Some(_) => victim.delete(host)?,
                None => {}
            }
        }
        if running == 0 {
            victim.start(&self.lab.a)?;
        }
        Ok(())
    }

    /// What the clients saw.
    pub(crate) fn finish(mut self) -> Result<(), Finding> {
        let Some(clients) = self.clients.take() else { return Ok(()) };
        let record = clients.stop().map_err(finding(Wrong::Lost))?;
        let kind = if record.lost_writes > 0 { Wrong::Corrupted } else { Wrong::Lost };
        record.nothing_lost().map_err(finding(kind))
    }

    pub(crate) fn last_words(&self) -> String {
        self.lab.a.last_words() + &self.lab.b.last_words()
    }
}

/// Waits for the moment; false when the migration had ended before.
fn wait_for(moment: Moment, following: &mut Following) -> Result<bool> {
    let first = following.wait_for("its begin", |_| true);
    if first.is_err() {
        return Ok(false);
    }
    let pause = match moment {
        Moment::After(time) => time,
        Moment::Stopped(time) => match following.wait_for("the stop", |line| line["phase"] == "frozen") {
            Ok(_) => time,
            Err(_) => return Ok(false),
        },
    };
    std::thread::sleep(pause);
    Ok(true)
}

/// How a migration ended.
fn ended(following: Following, tally: &mut Tally) -> String {
    let outcome = following.everything().and_then(|said| match said.last() {
        Some(last) if last["event"] == "done" => Ok("done".to_owned()),
        Some(last) => Ok(last["error"]["code"].as_str().unwrap_or("ended without a word").to_owned()),
        None => bail!("nothing was said"),
    });
    let word = outcome.unwrap_or_else(|error| format!("not followed: {error:#}"));
    if word == "done" {
        tally.migrated += 1;
    } else {
        tally.not_migrated += 1;
    }
    word
}
