//! Rounds that are to converge to a downtime: reached, or told before the stop why not and what is done about it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::Signal;
use pclive_tests::command::output;
use pclive_tests::ctl::{FAILED, Following};
use pclive_tests::host::Links;
use pclive_tests::link::{GIGABIT, TEN_GIGABIT};
use pclive_tests::workload::clients::Clients;
use pclive_tests::workload::redis::{Redis, bundle};
use pclive_tests::workload::writer;
use pclive_tests::{Container, Host, Lab};
use serde_json::Value;

use crate::{ready, runs_only_at};

/// A Redis with 512 MiB whose clients overwrite keys all over them; the lab, and the clients.
fn busy() -> Result<(Lab, Container, Clients)> {
    let lab = Lab::new()?;
    let container = lab.start(&bundle("redis-1"))?;
    let redis = Redis::new(&lab.client, container.v4);
    let keys = redis.populate(512 << 20)?;
    let clients = redis.overwriting(4, keys)?;
    clients.wait_for_answers(1000)?;
    Ok((lab, container, clients))
}

/// Migrates with these options; the report's line, and what was said of policies before the stop.
fn follow(from: &Host, to: &Host, container: &Container, options: &[&str]) -> Result<(Value, Vec<Value>)> {
    let following = Following::start(from, &container.name, to.name(), options)?;
    let said = following.everything()?;
    let stop = said.iter().position(|line| line["phase"] == "frozen").context("never stopped")?;
    let policies = said[..stop].iter().filter(|line| line["event"] == "policy").cloned().collect();
    let done = said.last().filter(|line| line["event"] == "done").with_context(|| format!("{said:?}"))?;
    runs_only_at(container, to, from)?;
    Ok((done["report"].clone(), policies))
}

/// The measured downtime is within the target, or a policy was told before the stop, with its reason.
fn target_is_met_or_told(target: Duration) -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = busy()?;
    let text = format!("{}ms", target.as_millis());
    let (report, policies) = follow(&lab.a, &lab.b, &container, &["--max-downtime", &text])?;
    clients.wait_for_answers(1000)?;
    clients.stop()?.nothing_lost()?;
    let figure =
        |name: &str| report[name].as_u64().map(Duration::from_nanos).context("a report without figures");
    let (measured, predicted) = (figure("downtime_ns")?, figure("predicted_downtime_ns")?);
    let rounds = report["rounds"].as_array().map_or(0, Vec::len);
    eprintln!(
        "target {target:?}: measured {measured:?}, predicted {predicted:?}, {rounds} rounds, {policies:?}"
    );
    if measured <= target {
        return Ok(());
    }
    let told = policies.iter().any(|policy| {
        policy["policy"] == "stop_anyway"
            && policy["message"].as_str().is_some_and(|text| text.contains("MiB/s"))
    });
    ensure!(told, "{measured:?} is more than {target:?}, and nothing was told: {report}");
    Ok(())
}

#[test]
fn downtime_of_50_ms_is_met_or_told() -> Result<()> {
    target_is_met_or_told(Duration::from_millis(50))
}

#[test]
fn downtime_of_300_ms_is_met_or_told() -> Result<()> {
    target_is_met_or_told(Duration::from_millis(300))
}

#[test]
fn downtime_of_2_s_is_met_or_told() -> Result<()> {
    target_is_met_or_told(Duration::from_secs(2))
}

#[test]
fn migration_that_does_not_converge_is_given_up_with_its_figures() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = busy()?;
    let options = ["--max-downtime", "1ms", "--policy", "cancel", "--max-rounds", "4"];
    let refusal = lab.a.migrate_in_vain(&container.name, lab.b.name(), &options)?;
    let problem = &refusal.problem;
    ensure!(refusal.exit == Some(FAILED) && problem.code == "not-converging", "{refusal:?}");
    ensure!(problem.message.contains("MiB/s") && problem.message.contains("limit 1 ms"), "{problem:?}");
    ensure!(container.status(&lab.a)?.as_deref() == Some("running") && container.status(&lab.b)?.is_none());
    clients.wait_for_answers(1000)?;
    clients.stop()?.nothing_lost()
}

#[test]
fn time_limit_gives_up_in_the_middle_of_a_round() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = busy()?;
    // Round 0 alone would take a minute.
    let options = ["--bandwidth", "80Mbit", "--policy", "cancel", "--max-time", "2s"];
    let refusal = lab.a.migrate_in_vain(&container.name, lab.b.name(), &options)?;
    ensure!(refusal.problem.code == "not-converging", "{refusal:?}");
    ensure!(refusal.problem.message.contains("limit of time"), "{refusal:?}");
    clients.wait_for_answers(1000)?;
    clients.stop()?.nothing_lost()
}

/// The file with the container's CPU quota.
fn quota(host: &Host, container: &Container) -> PathBuf {
    let cgroup = host.cgroup().trim_start_matches('/');
    Path::new("/sys/fs/cgroup/cpu").join(cgroup).join(&container.name).join("cpu.cfs_quota_us")
}

/// Gives the container a CPU quota of 180000; its file. `None`, said aloud and never in CI: no v1 CPU controller.
fn limited(host: &Host, container: &Container) -> Result<Option<PathBuf>> {
    let file = quota(host, container);
    if !file.exists() {
        ensure!(std::env::var_os("CI").is_none(), "no v1 CPU controller here");
        eprintln!("not tested: no v1 CPU controller here");
        return Ok(None);
    }
    std::fs::write(&file, "180000")?;
    Ok(Some(file))
}

#[test]
fn throttle_slows_the_container_down_and_leaves_its_quota_as_it_was() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = busy()?;
    let Some(file) = limited(&lab.a, &container)? else { return Ok(()) };
    let options = ["--max-downtime", "1ms", "--policy", "throttle"];
    let mut following = Following::start(&lab.a, &container.name, lab.b.name(), &options)?;
    let slowed = following.wait_for("a throttle", |line| line["event"] == "policy")?;
    ensure!(slowed["cpu_percent"] == 50, "{slowed}");
    let id = slowed["migration_id"].as_str().context("no id")?.to_owned();
    following.wait_for("a round under the throttle", |line| line["event"] == "round")?;
    let under = std::fs::read_to_string(&file)?;
    output(lab.a.ctl()?.args(["cancel", &id]))?;
    let refusal = following.finish()?.err().context("it was migrated all the same")?;
    ensure!(refusal.problem.code == "cancelled", "{refusal:?}");
    ensure!(std::fs::read_to_string(&file)?.trim() == "180000", "the old quota is not back");
    ensure!(under.trim().parse::<i64>()? < 180_000, "not slowed down: {under}");
    let (report, policies) =
        follow(&lab.a, &lab.b, &container, &["--max-downtime", "30ms", "--policy", "throttle"])?;
    eprintln!("throttled: {} of {}, {policies:?}", report["downtime_ns"], report["predicted_downtime_ns"]);
    clients.wait_for_answers(100)?;
    clients.stop()?.nothing_lost()
}

#[test]
fn throttle_of_an_agent_that_is_killed_ends_when_it_starts_again() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = busy()?;
    let Some(file) = limited(&lab.a, &container)? else { return Ok(()) };
    let options = ["--max-downtime", "1ms", "--policy", "throttle", "--patience", "1s"];
    let mut following = Following::start(&lab.a, &container.name, lab.b.name(), &options)?;
    following.wait_for("a throttle", |line| line["event"] == "policy")?;
    following.wait_for("a round under the throttle", |line| line["event"] == "round")?;
    lab.a.stop_agent(Signal::SIGKILL)?;
    drop(following);
    let left = std::fs::read_to_string(&file)?;
    ensure!(left.trim() != "180000", "the agent was killed before it slowed the container down");
    lab.a.start_agent()?;
    // It answers when it has ended what its predecessor had begun.
    output(lab.a.ctl()?.arg("list"))?;
    ensure!(std::fs::read_to_string(&file)?.trim() == "180000", "the old quota is not back");
    clients.wait_for_answers(1000)?;
    clients.stop()?.nothing_lost()
}

#[test]
fn bandwidth_limit_is_kept_while_the_container_runs() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&bundle("redis-1"))?;
    Redis::new(&lab.client, container.v4).populate(128 << 20)?;
    let (report, _) = follow(&lab.a, &lab.b, &container, &["--bandwidth", "400Mbit"])?;
    let rate = report["rounds"][0]["bytes_per_second"].as_u64().context("no rate")?;
    ensure!((35_000_000..=53_000_000).contains(&rate), "{rate} bytes a second are not about 50,000,000");
    Ok(())
}

#[test]
fn bandwidth_limit_is_lifted_before_a_container_is_stopped_for_long() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = busy()?;
    let options = ["--bandwidth", "400Mbit", "--max-downtime", "20ms"];
    let (report, policies) = follow(&lab.a, &lab.b, &container, &options)?;
    clients.wait_for_answers(1000)?;
    clients.stop()?.nothing_lost()?;
    let lifted =
        policies.iter().any(|policy| policy["message"].as_str().is_some_and(|told| told.contains("lifted")));
    ensure!(lifted, "{policies:?}");
    let rates: Vec<u64> = report["rounds"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|round| round["final"] == false)
        .filter_map(|round| round["bytes_per_second"].as_u64())
        .collect();
    let fastest = rates.iter().max().copied().unwrap_or_default();
    ensure!(rates[0] < 53_000_000 && fastest > 100_000_000, "rounds of {rates:?} bytes a second");
    Ok(())
}

/// Whether the connection to the other agent is limited to so many bits a second by the kernel.
fn paced(host: &Host, other: &Host, bits: u64) -> Result<bool> {
    let sockets = host.node().run(&[
        "ss",
        "-tinH",
        "state",
        "established",
        "dport",
        &format!(":{}", other.peer_address().port()),
    ])?;
    let told: Vec<&str> = sockets.lines().filter(|line| line.contains("pacing_rate")).collect();
    let [told] = told[..] else { bail!("not one connection to {}: {sockets}", other.name()) };
    let is_limited = told.contains(&format!("bps/{bits}bps"));
    // Neither by this limit nor by another.
    ensure!(is_limited || !told.contains("bps/"), "limited otherwise: {told}");
    Ok(is_limited)
}

#[test]
fn limited_rounds_are_spread_over_time_and_the_stop_is_not() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let lab = Lab::without_agents(TEN_GIGABIT)?;
    lab.certify()?;
    lab.a.start_agent()?;
    lab.b.start_faulty_agent("")?;
    let container = lab.start(&bundle("redis-1"))?;
    Redis::new(&lab.client, container.v4).populate(32 << 20)?;
    lab.b.arm("destination-restored:hold")?;
    let options = ["--bandwidth", "100Mbit", "--streams", "1"];
    let mut following = Following::start(&lab.a, &container.name, lab.b.name(), &options)?;
    following.wait_for("a round", |line| line["event"] == "progress")?;
    // Round 0 takes about 3 s.
    let in_a_round = paced(&lab.a, &lab.b, 120_000_000);
    lab.b.await_hold()?;
    let in_the_stop = paced(&lab.a, &lab.b, 120_000_000);
    lab.b.end_hold()?;
    following.finish()?.map_err(|refusal| anyhow!("{refusal:?}"))?;
    ensure!((in_a_round?, in_the_stop?) == (true, false), "limited otherwise");
    runs_only_at(&container, &lab.b, &lab.a)
}

/// The mappings of a container's init, as the host sees them.
fn mappings(host: &Host, container: &Container) -> Result<usize> {
    let maps = host.node().run(&["cat", &format!("/proc/{}/maps", container.pid(host)?)])?;
    Ok(maps.lines().count())
}

fn plan(lab: &Lab, container: &Container, options: &[&str]) -> Result<Value> {
    let mut ctl = lab.a.ctl()?;
    ctl.args(["--json", "plan", &container.name, "--to", lab.b.name()]).args(options);
    let text = output(&mut ctl)?;
    serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
}

#[test]
fn plan_foretells_every_strategy_and_leaves_the_container_as_it_was() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&bundle("redis-1"))?;
    Redis::new(&lab.client, container.v4).populate(256 << 20)?;
    let (before, pid) = (mappings(&lab.a, &container)?, container.pid(&lab.a)?);
    let planned = plan(&lab, &container, &["--watch", "1s"])?;
    ensure!(mappings(&lab.a, &container)? == before, "something is left in the container");
    ensure!(container.pid(&lab.a)? == pid && container.status(&lab.a)?.as_deref() == Some("running"));
    ensure!(container.status(&lab.b)?.is_none(), "something is at the destination");
    ensure!(planned["recommended"] == "global", "{planned}");
    ensure!(planned["bandwidth_bytes_per_second"].as_u64() > Some(50_000_000), "{planned}");
    let plans = planned["plans"].as_array().context("no plans")?;
    let foretold = plans.iter().find(|plan| plan["strategy"] == "global").context("no plan")?;
    let (report, _) = follow(&lab.a, &lab.b, &container, &[])?;
    let [bytes, planned_bytes] =
        [&report["bytes"], &foretold["bytes"]].map(|bytes| bytes.as_u64().unwrap_or(0));
    ensure!(bytes.abs_diff(planned_bytes) < bytes / 10, "{bytes} bytes were sent, {planned_bytes} foretold");
    eprintln!("planned {foretold}, measured {} ns", report["downtime_ns"]);
    Ok(())
}

/// By one strategy.
fn planned(lab: &Lab, container: &Container, options: &[&str]) -> Result<Value> {
    let planned = plan(lab, container, &[&["--watch", "1s"], options].concat())?;
    let plans = planned["plans"].as_array().context("no plans")?;
    plans.iter().find(|plan| plan["strategy"] == "global").cloned().context("no plan")
}

#[test]
fn plan_knows_limits_of_the_bandwidth_delays_and_what_comes_later() -> Result<()> {
    if !ready(&[]) {
        return Ok(());
    }
    let lab = Lab::with_speed(Some(GIGABIT), Links::Tls)?;
    // Writes half of what the link carries, and more than the limit lets through.
    let container = lab.start(&writer::bundle("writer-1", 128, 15_000))?;
    let limits = ["--max-downtime", "100ms"];
    let whole = planned(&lab, &container, &limits)?;
    let lifted = planned(&lab, &container, &[&limits[..], &["--bandwidth", "200Mbit"]].concat())?;
    let kept = ["--bandwidth", "200Mbit", "--policy", "cancel"];
    let given_up = planned(&lab, &container, &[&limits[..], &kept].concat())?;
    let told = || format!("{whole}\n{lifted}\n{given_up}");
    ensure!(lifted["total_ns"].as_u64() > whole["total_ns"].as_u64().map(|time| 2 * time), "{}", told());
    ensure!(whole["converges"] == true && lifted["converges"] == true, "{}", told());
    ensure!(given_up["verdict"] == "given up (policy cancel)", "{}", told());
    let delayed = planned(&lab, &container, &[&limits[..], &["--restore-after", "2"]].concat())?;
    ensure!(delayed["rounds"].as_u64() >= Some(3), "{delayed}");
    ensure!(
        delayed["destination_memory_bytes"].as_u64() > whole["destination_memory_bytes"].as_u64(),
        "{delayed}"
    );
    let later =
        planned(&lab, &container, &["--max-downtime", "15ms", "--max-rounds", "2", "--policy", "post-copy"])?;
    let [tail, downtime] =
        [&later["tail_bytes"], &later["downtime_ns"]].map(|count| count.as_u64().unwrap_or(0));
    ensure!(tail > 1 << 20 && downtime < 100_000_000 && whole["tail_bytes"] == 0, "{later}");
    Ok(())
}
