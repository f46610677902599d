//! Containers that go on without their last pages: nothing is lost, whatever happens to the link and to the agents
//! while the pages follow.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use pclive_tests::command::finish;
use pclive_tests::ctl::Following;
use pclive_tests::host::Links;
use pclive_tests::link::{Cut, GIGABIT, Speed, TEN_GIGABIT, Verdict};
use pclive_tests::wait::until;
use pclive_tests::workload::clients::Clients;
use pclive_tests::workload::redis::{Redis, bundle};
use pclive_tests::workload::torture;
use pclive_tests::workload::verifier::Verifier;
use pclive_tests::{Container, Host, Lab};
use serde_json::Value;

use crate::torture::strategy;
use crate::{migrate, ready, runs_only_at};

const OPTIONS: [&str; 6] = ["--policy", "post-copy", "--max-downtime", "1ms", "--max-rounds", "3"];
/// How long what follows may take.
const LIMIT: Duration = Duration::from_secs(90);

/// A Redis whose clients overwrite keys all over it.
fn busy(speed: Speed, mib: u64, clients: usize) -> Result<(Lab, Container, Clients)> {
    let lab = Lab::without_agents(speed)?;
    lab.certify()?;
    // A cut link is not to be taken for a destination that is lost.
    lab.a.start_agent_with("commit_grace_ms = 60000\n")?;
    lab.b.start_agent_with("commit_grace_ms = 60000\n")?;
    let container = lab.start(&bundle("redis-1"))?;
    let redis = Redis::new(&lab.client, container.v4);
    let keys = redis.populate(mib << 20)?;
    let clients = redis.overwriting(clients, keys)?;
    clients.wait_for_answers(1000)?;
    Ok((lab, container, clients))
}

/// What a migration that ended well says.
fn report(following: Following) -> Result<Value> {
    let said = following.everything()?;
    let done = said.last().filter(|line| line["event"] == "done").with_context(|| format!("{said:?}"))?;
    Ok(done["report"].clone())
}

fn figure(report: &Value, path: &str) -> u64 {
    report.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

/// Migrates from a to b; the report.
fn follow(lab: &Lab, container: &Container, options: &[&str]) -> Result<Value> {
    let following = Following::start(&lab.a, &container.name, lab.b.name(), options)?;
    let report =
        report(following).with_context(|| format!("{}{}", lab.a.last_words(), lab.b.last_words()))?;
    runs_only_at(container, &lab.b, &lab.a)?;
    Ok(report)
}

/// The round trip of the link between the hosts in the median: of a connection's first two segments.
fn round_trip(lab: &Lab) -> Result<Duration> {
    let agent = lab.a.peer_address();
    let thread = lab.b.node().in_network(move || -> Result<Duration> {
        let mut times = Vec::new();
        for _ in 0..51 {
            let asked = Instant::now();
            TcpStream::connect(agent)?;
            times.push(asked.elapsed());
        }
        times.sort_unstable();
        Ok(times[times.len() / 2])
    })?;
    thread.join().map_err(|_| anyhow::anyhow!("the client panicked"))?
}

#[test]
fn redis_under_write_load_goes_on_without_its_last_pages() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = busy(TEN_GIGABIT, 512, 4)?;
    let link = round_trip(&lab)?;
    let report = follow(&lab, &container, &OPTIONS)?;
    clients.wait_for_answers(1000)?;
    clients.stop()?.nothing_lost()?;
    eprintln!("link {link:?}, downtime {} ns, tail {}", report["downtime_ns"], report["tail"]);
    let tail = |name: &str| figure(&report, &format!("/tail/{name}"));
    ensure!(tail("pages") > 0 && tail("faults") > 0, "nothing came later: {report}");
    ensure!(tail("demand_pages") + tail("pushed_pages") <= tail("pages"), "{report}");
    let median = Duration::from_nanos(tail("fault_median_ns"));
    eprintln!(
        "a page that was waited for came within {median:?} in the median; twice the round trip and 200 us are {:?}",
        2 * link + Duration::from_micros(200)
    );
    // The machine that the lab is on has other things to do.
    ensure!(median < 2 * link + Duration::from_millis(2), "{median:?}");
    Ok(())
}

#[test]
fn downtime_does_not_depend_on_the_write_rate() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let mut downtimes = Vec::new();
    for clients in [1, 4] {
        for policy in ["stop-anyway", "post-copy"] {
            let (lab, container, clients_there) = busy(TEN_GIGABIT, 512, clients)?;
            let options = ["--policy", policy, "--max-downtime", "1ms", "--max-rounds", "3"];
            let report = follow(&lab, &container, &options)?;
            clients_there.stop()?.nothing_lost()?;
            let last = report["rounds"].as_array().and_then(|rounds| rounds.last()).context("no round")?;
            downtimes.push((policy, figure(&report, "/downtime_ns")));
            eprintln!(
                "DOWNTIME {policy} with {clients} clients: {:.1} ms, {} pages in the stop, {} later {}",
                figure(&report, "/downtime_ns") as f64 / 1e6,
                last["data_pages"],
                figure(&report, "/tail/pages"),
                report["ledger"],
            );
        }
    }
    let of = |wanted| downtimes.iter().filter(move |(policy, _)| *policy == wanted).map(|(_, time)| *time);
    let (shortest, longest) = (of("stop-anyway").min(), of("post-copy").max());
    ensure!(longest < shortest, "{downtimes:?}");
    Ok(())
}

#[test]
fn torture_keeps_every_byte_when_its_last_pages_follow() -> Result<()> {
    if !ready(&[]) {
        return Ok(());
    }
    let lab = Lab::with_speed(Some(GIGABIT), Links::Tls)?;
    let mut later = 0;
    for seed in crate::torture::seeds(300..304)? {
        for options in [&["--pause-us", "50"][..], &[]] {
            let name = format!("torture-{seed}-{}", options.len());
            let container = lab.start(&torture::bundle(&name, seed, options))?;
            let verifier = Verifier::new(&lab.client, container.v4);
            for turn in 0..4 {
                let (from, to) = if turn % 2 == 0 { (&lab.a, &lab.b) } else { (&lab.b, &lab.a) };
                verifier.check().with_context(|| format!("seed {seed}"))?;
                let limits = ["--policy", "post-copy", "--max-downtime", "1ms", "--max-rounds", "2"];
                let options = [&["--strategy", strategy(seed)], &limits[..]].concat();
                migrate(&container, from, to, &options).with_context(|| format!("seed {seed}"))?;
                verifier.check().with_context(|| {
                    let said = container.log(to);
                    let said: Vec<&str> = said.lines().rev().take(5).collect();
                    format!("seed {seed} after migration {turn}: {said:?}")
                })?;
                later += to.agent_log().matches("every page is in place").count();
            }
            let stats = verifier.ask("STATS")?;
            ensure!(stats.contains("failed=false"), "seed {seed}: {stats}");
            container.delete(&lab.a)?;
        }
    }
    ensure!(later > 0, "no page ever came later");
    Ok(())
}

/// A migration whose container runs at host b and lacks pages that the cut link keeps back.
fn cut_off<'a>(lab: &'a Lab, container: &Container) -> Result<(Following, Cut<'a>)> {
    let mut following = Following::start(&lab.a, &container.name, lab.b.name(), &OPTIONS)?;
    following.wait_for("the commit", |line| line["phase"] == "committed")?;
    until("the copy", LIMIT, || Ok(lab.b.agent_log().contains("container runs here")))?;
    let cut = Cut::new(lab.a.node(), Verdict::Drop)?;
    ensure!(!lab.b.agent_log().contains("every page is in place"), "it was over before the cut");
    Ok((following, cut))
}

#[test]
fn container_waits_while_the_link_is_cut_and_goes_on_when_it_is_back() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = busy(GIGABIT, 512, 4)?;
    let (following, cut) = cut_off(&lab, &container)?;
    // Longer than the link's keepalive: it has to be opened again.
    let cut_at = Instant::now();
    until("a link that is given up", LIMIT, || {
        Ok(lab.b.agent_log().contains("the link to the source broke"))
    })?;
    ensure!(!lab.b.agent_log().contains("every page is in place"), "the link was not cut");
    ensure!(container.status(&lab.a)?.is_some(), "the original is gone");
    eprintln!("cut for {:?}", cut_at.elapsed());
    cut.mend()?;
    let report = report(following)?;
    runs_only_at(&container, &lab.b, &lab.a)?;
    clients.wait_for_answers(1000)?;
    clients.stop()?.nothing_lost()?;
    eprintln!("tail {}", report["tail"]);
    ensure!(figure(&report, "/tail/reconnects") > 0, "{report}");
    Ok(())
}

fn ended(host: &Host) -> Result<()> {
    until(&format!("the end of every migration on {}", host.name()), LIMIT, || {
        let said = finish(host.ctl()?.args(["--json", "list"]))?;
        let listed: Value = serde_json::from_str(String::from_utf8_lossy(&said.stdout).trim())?;
        let open = |migration: &Value| migration["phase"] != "done" && migration["phase"] != "failed";
        Ok(!listed["migrations"].as_array().context("no list")?.iter().any(open))
    })
}

/// An agent dies while pages follow, and is started again: the pages go on following, and nothing is lost.
fn survives_the_death_of(dying: impl Fn(&Lab) -> &Host) -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = busy(GIGABIT, 512, 4)?;
    let (following, cut) = cut_off(&lab, &container)?;
    let host = dying(&lab);
    host.stop_agent(Signal::SIGKILL)?;
    cut.mend()?;
    host.start_agent_with("commit_grace_ms = 60000\n")?;
    drop(following);
    ended(&lab.a)?;
    ended(&lab.b)?;
    // It is done as soon as it is decided; then the original is removed.
    let gone = || Ok(container.status(&lab.a)?.is_none() && !container.has_cgroup(&lab.a));
    until("the end of the original", LIMIT, gone).with_context(|| {
        let (status, cgroup) = (container.status(&lab.a), container.has_cgroup(&lab.a));
        format!("{status:?}, cgroup {cgroup}\n{}{}", lab.a.last_words(), lab.b.last_words())
    })?;
    runs_only_at(&container, &lab.b, &lab.a)
        .with_context(|| format!("{}{}", lab.a.last_words(), lab.b.last_words()))?;
    clients.wait_for_answers(1000)?;
    clients.stop()?.nothing_lost()
}

#[test]
fn pages_go_on_following_when_the_destinations_agent_was_killed() -> Result<()> {
    survives_the_death_of(|lab| &lab.b)
}

#[test]
fn pages_go_on_following_when_the_sources_agent_was_killed() -> Result<()> {
    survives_the_death_of(|lab| &lab.a)
}

#[test]
fn copy_whose_fetcher_was_killed_is_ended_and_an_operator_decides() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = busy(GIGABIT, 512, 4)?;
    let (following, cut) = cut_off(&lab, &container)?;
    lab.b.node().run(&["pkill", "-KILL", "-f", "fetch-pages"])?;
    until("the end of the copy", LIMIT, || Ok(container.status(&lab.b)?.is_none()))?;
    cut.mend()?;
    ensure!(container.status(&lab.a)?.is_some(), "the original is gone");
    drop(following);
    let said = finish(lab.b.ctl()?.args(["--json", "list"]))?;
    let listed: Value = serde_json::from_str(String::from_utf8_lossy(&said.stdout).trim())?;
    let migration = &listed["migrations"][0];
    ensure!(migration["error"]["code"] == "pages-lost", "{migration}");
    let id = migration["migration_id"].as_str().context("no id")?;
    let refused = finish(lab.b.ctl()?.args(["resolve", id, "--discard-here"]))?;
    ensure!(!refused.status.success(), "decided without --override");
    let decided = finish(lab.b.ctl()?.args(["resolve", id, "--discard-here", "--override"]))?;
    ensure!(decided.status.success(), "{}", String::from_utf8_lossy(&decided.stderr));
    ended(&lab.a)?;
    until("the original", LIMIT, || Ok(container.status(&lab.a)?.as_deref() == Some("running")))?;
    drop(clients);
    Ok(())
}
