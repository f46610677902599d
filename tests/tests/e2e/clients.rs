//! Clients do not notice: what reaches the container during the stop reaches its copy, so that nobody waits for a
//! retransmission timeout (200 ms at least) on top of the downtime.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use pclive_tests::link::TEN_GIGABIT;
use pclive_tests::workload::traffic::{Kind, Retransmissions, bundle, clients};
use pclive_tests::{Container, Lab};

use crate::{migrate, ready};

/// What stops are drawn out to, milliseconds; 0: they are as long as they are.
const STOPS: [u64; 5] = [0, 5, 20, 50, 150];
/// Steps of all clients that show that they go on.
const MORE: u64 = 500;
/// Less than the shortest retransmission timeout, more than anything else costs.
const EXCESS: Duration = Duration::from_millis(50);

/// The shortest retransmission timeout: a stop that is longer costs one in any case.
const TIMEOUT: Duration = Duration::from_millis(200);

/// What one migration was for the clients.
#[derive(Debug)]
struct Turn {
    /// What the stop was drawn out to, milliseconds.
    stop: u64,
    downtime: Duration,
    gap: Duration,
    again: Retransmissions,
}

impl Turn {
    fn excess(&self) -> Duration {
        self.gap.saturating_sub(self.downtime)
    }
}

/// Migrations with a stop of each length: one, or `LAB_TURNS`.
fn turns_of_each() -> Result<usize> {
    Ok(std::env::var("LAB_TURNS").map_or(Ok(1), |text| text.parse())?)
}

/// Hosts whose stops can be drawn out.
fn lab() -> Result<Lab> {
    let lab = Lab::without_agents(TEN_GIGABIT)?;
    lab.certify()?;
    lab.a.start_faulty_agent("")?;
    lab.b.start_faulty_agent("")?;
    Ok(lab)
}

/// Migrates there and back while `count` clients are at it; nothing may be lost.
fn turns(lab: &Lab, container: &Container, ip: IpAddr, kind: Kind, count: usize) -> Result<Vec<Turn>> {
    let each = turns_of_each()?;
    let pause = if count == 1 { Duration::ZERO } else { Duration::from_millis(10) };
    let clients = clients(&lab.client, ip, kind, count, pause)?;
    let mut turns = Vec::new();
    for stop in STOPS.into_iter().flat_map(|stop| std::iter::repeat_n(stop, each)) {
        clients.wait_for_answers(MORE)?;
        let (from, to) =
            if container.status(&lab.a)?.is_some() { (&lab.a, &lab.b) } else { (&lab.b, &lab.a) };
        if stop > 0 {
            to.arm(&format!("destination-restored:wait-{stop}"))?;
        }
        let before = Retransmissions::of(&lab.client)?;
        clients.take_gap();
        let report = migrate(container, from, to, &[])?;
        clients.wait_for_answers(MORE)?;
        let again = Retransmissions::of(&lab.client)?.since(before);
        let downtime = Duration::from_nanos(report.downtime_ns);
        let seen = Turn { stop, downtime, gap: clients.take_gap(), again };
        eprintln!("{kind:?}, {count} connections to {ip}, stop of {stop} ms: {seen:?}");
        ensure!(downtime >= Duration::from_millis(stop), "the stop was not drawn out: {seen:?}");
        turns.push(seen);
    }
    clients.stop()?.nothing_lost()?;
    Ok(turns)
}

/// All settings of one kind of clients.
fn do_not_notice(kind: Kind) -> Result<()> {
    if !ready(&[]) {
        return Ok(());
    }
    let lab = lab()?;
    let container = lab.start(&bundle("traffic"))?;
    let mut all = Vec::new();
    for ip in [container.v4.into(), container.v6.into()] {
        for count in [1, 64] {
            let turns = turns(&lab, &container, ip, kind, count)?;
            judge(kind, turns.iter().collect())?;
            all.extend(turns);
        }
    }
    STOPS.into_iter().try_for_each(|stop| judge(kind, all.iter().filter(|turn| turn.stop == stop).collect()))
}

/// Stops of one length, or of one setting. The median counts, because the machine may be busy with something else.
fn judge(kind: Kind, mut turns: Vec<&Turn>) -> Result<()> {
    turns.sort_by_key(|turn| turn.excess());
    let excess = turns[turns.len() / 2].excess();
    ensure!(excess < EXCESS, "{kind:?}: clients waited {excess:?} longer than the stop: {turns:?}");
    let most =
        |is_so: &dyn Fn(&Turn) -> bool| turns.iter().filter(|turn| is_so(turn)).count() * 2 > turns.len();
    let in_time = |turn: &Turn| turn.again.timeouts == 0 || turn.downtime >= TIMEOUT;
    ensure!(most(&in_time), "{kind:?}: migrations cost timeouts: {turns:?}");
    // Bulk is sent ahead of its acknowledgements, and some of it again.
    let once = |turn: &Turn| turn.again.segments == 0 || turn.downtime >= TIMEOUT;
    ensure!(kind != Kind::Echo || most(&once), "migrations cost retransmissions: {turns:?}");
    Ok(())
}

#[test]
fn clients_with_requests_wait_no_longer_than_the_stop() -> Result<()> {
    do_not_notice(Kind::Echo)
}

#[test]
fn clients_that_upload_wait_no_longer_than_the_stop() -> Result<()> {
    do_not_notice(Kind::Upload)
}

#[test]
fn clients_that_download_wait_no_longer_than_the_stop() -> Result<()> {
    do_not_notice(Kind::Download)
}
