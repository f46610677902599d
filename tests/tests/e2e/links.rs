//! Links that break, are slow or long while a migration is on its way: short breaks are survived, long ones leave the
//! source as it was.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pclive_tests::ctl::Following;
use pclive_tests::delay::Delay;
use pclive_tests::link::{Cut, MEGABIT, TEN_GIGABIT, Verdict};
use pclive_tests::workload::clients::Clients;
use pclive_tests::workload::redis::{Redis, bundle};
use pclive_tests::{Container, Lab};

use crate::{migrate, ready, runs_only_at};

/// Answers that show that the clients go on.
const MORE: u64 = 1000;
/// Slow enough that there is time to cut the link in the middle of a round.
const SLOWLY: [&str; 2] = ["--bandwidth", "400Mbit"];

/// A Redis with clients, and agents with these lines in their configuration.
fn served(lines: &str) -> Result<(Lab, Container, Clients)> {
    let lab = Lab::without_agents(TEN_GIGABIT)?;
    lab.certify()?;
    lab.a.start_agent_with(lines)?;
    lab.b.start_agent_with(lines)?;
    let container = lab.start(&bundle("redis-1"))?;
    let redis = Redis::new(&lab.client, container.v4);
    redis.populate(192 << 20)?;
    let clients = redis.clients(2, Duration::from_millis(1))?;
    clients.wait_for_answers(MORE)?;
    Ok((lab, container, clients))
}

/// A migration whose round 0 is on its way.
fn on_its_way(lab: &Lab, container: &Container, options: &[&str]) -> Result<Following> {
    let options = [&SLOWLY[..], options].concat();
    let mut following = Following::start(&lab.a, &container.name, lab.b.name(), &options)?;
    following.wait_for("pages on their way", |line| {
        line["event"] == "progress" && line["bytes"].as_u64().is_some_and(|bytes| bytes > 0)
    })?;
    Ok(following)
}

fn ended_well(following: Following) -> Result<()> {
    let said = following.everything()?;
    ensure!(said.last().is_some_and(|line| line["event"] == "done"), "{said:?}");
    Ok(())
}

/// A migration survives breaks of these lengths, in its rounds.
fn survives(verdict: Verdict, breaks: &[Duration], options: &[&str]) -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = served("reconnect_timeout_ms = 15000\n")?;
    let following = on_its_way(&lab, &container, options)?;
    for length in breaks {
        let cut = Cut::new(lab.b.node(), verdict)?;
        thread::sleep(*length);
        cut.mend()?;
        thread::sleep(Duration::from_millis(300));
    }
    let ended = ended_well(following);
    ended.with_context(|| format!("{}{}", lab.a.last_words(), lab.b.last_words()))?;
    ensure!(lab.a.agent_log().contains("a connection of the migration broke"), "the link never broke");
    runs_only_at(&container, &lab.b, &lab.a)?;
    clients.wait_for_answers(MORE)?;
    clients.stop()?.nothing_lost()
}

#[test]
fn a_migration_survives_connections_that_are_reset_again_and_again() -> Result<()> {
    survives(Verdict::Reset, &[Duration::from_millis(200); 5], &[])
}

#[test]
fn a_migration_survives_ten_seconds_without_a_link() -> Result<()> {
    survives(Verdict::Drop, &[Duration::from_secs(10)], &[])
}

#[test]
fn pages_that_spread_over_connections_survive_their_end() -> Result<()> {
    survives(Verdict::Reset, &[Duration::from_millis(500); 3], &["--streams", "3", "--strategy", "pipelined"])
}

#[test]
fn a_link_that_stays_away_leaves_the_source_as_it_was() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = served("reconnect_timeout_ms = 1000\n")?;
    let following = on_its_way(&lab, &container, &[])?;
    let cut = Cut::new(lab.b.node(), Verdict::Reset)?;
    let said = following.everything()?;
    let failed = said.last().filter(|line| line["event"] == "failed").with_context(|| format!("{said:?}"))?;
    ensure!(failed["error"]["code"] == "peer-lost" && failed["error"]["retryable"] == true, "{failed}");
    ensure!(container.status(&lab.a)?.as_deref() == Some("running"), "the container does not run");
    clients.wait_for_answers(MORE)?;
    cut.mend()?;
    // At once: the destination may not have heard of the first one's end.
    migrate(&container, &lab.a, &lab.b, &[])?;
    clients.wait_for_answers(MORE)?;
    clients.stop()?.nothing_lost()
}

/// A Redis with hardly any data, and two clients that write now and then.
fn served_little() -> Result<(Lab, Container, Clients)> {
    let lab = Lab::new()?;
    let container = lab.start(&bundle("redis-1"))?;
    let clients = Redis::new(&lab.client, container.v4).clients(2, Duration::from_millis(100))?;
    clients.wait_for_answers(20)?;
    Ok((lab, container, clients))
}

#[test]
fn a_link_of_a_megabit_carries_a_migration_to_its_end() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = served_little()?;
    lab.set_speed(MEGABIT)?;
    let report = migrate(&container, &lab.a, &lab.b, &["--max-rounds", "3"])?;
    let (bits, seconds) = (report.bytes as f64 * 8.0, report.total_ns as f64 / 1e9);
    ensure!(bits / seconds < 2e6, "{bits} bits in {seconds} s over a link of a megabit");
    clients.wait_for_answers(20)?;
    clients.stop()?.nothing_lost()
}

#[test]
fn a_link_that_is_slow_for_ten_seconds_delays_a_migration() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let (lab, container, clients) = served("")?;
    let following = on_its_way(&lab, &container, &[])?;
    lab.set_speed(MEGABIT)?;
    thread::sleep(Duration::from_secs(10));
    lab.set_speed(TEN_GIGABIT)?;
    ended_well(following).with_context(|| format!("{}{}", lab.a.last_words(), lab.b.last_words()))?;
    runs_only_at(&container, &lab.b, &lab.a)?;
    clients.wait_for_answers(MORE)?;
    clients.stop()?.nothing_lost()
}

#[test]
fn a_way_of_two_hundred_milliseconds_carries_a_migration_to_its_end() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let one_way = Duration::from_millis(200);
    let (lab, container, clients) = served_little()?;
    let _long_way = Delay::new(lab.b.node(), one_way)?;
    let report = migrate(&container, &lab.a, &lab.b, &[])?;
    let downtime = Duration::from_nanos(report.downtime_ns);
    ensure!(downtime > 2 * one_way, "the way was not long: {downtime:?}");
    // The last state and whether the copy is ready, the commit and whether it runs. The rest of a stop is much shorter.
    let trips = downtime.as_secs_f64() / (2 * one_way).as_secs_f64();
    ensure!(trips < 3.0, "{trips:.2} round trips in the stop: {report:?}");
    clients.wait_for_answers(20)?;
    clients.stop()?.nothing_lost()
}
