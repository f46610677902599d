//! Clients do not notice: what reaches the container during the stop reaches its copy, so that nobody waits for a
//! retransmission timeout (200 ms at least) on top of the downtime.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use pclive_tests::workload::traffic::{Kind, Retransmissions, bundle, clients};
use pclive_tests::{Container, Lab};

use crate::{migrate, ready};

/// Migrations of one setting; the median counts, because the machine may be busy with something else.
const TURNS: usize = 5;
/// Steps of all clients that show that they go on.
const MORE: u64 = 500;
/// Less than the shortest retransmission timeout, more than anything else costs.
const EXCESS: Duration = Duration::from_millis(150);

/// The shortest retransmission timeout: a stop that is longer costs one in any case.
const TIMEOUT: Duration = Duration::from_millis(200);

/// What one migration was for the clients.
#[derive(Debug)]
struct Turn {
    downtime: Duration,
    gap: Duration,
    again: Retransmissions,
}

/// Migrates there and back while `count` clients are at it; nothing may be lost.
fn turns(lab: &Lab, container: &Container, ip: IpAddr, kind: Kind, count: usize) -> Result<Vec<Turn>> {
    let pause = if count == 1 { Duration::ZERO } else { Duration::from_millis(10) };
    let clients = clients(&lab.client, ip, kind, count, pause)?;
    let mut turns = Vec::new();
    for turn in 0..TURNS {
        clients.wait_for_answers(MORE)?;
        let (from, to) =
            if container.status(&lab.a)?.is_some() { (&lab.a, &lab.b) } else { (&lab.b, &lab.a) };
        let before = Retransmissions::of(&lab.client)?;
        clients.take_gap();
        let report = migrate(container, from, to, &[])?;
        clients.wait_for_answers(MORE)?;
        let again = Retransmissions::of(&lab.client)?.since(before);
        let downtime = Duration::from_nanos(report.downtime_ns);
        let seen = Turn { downtime, gap: clients.take_gap(), again };
        eprintln!("{kind:?}, {count} connections to {ip}, migration {turn}: {seen:?}");
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
    let lab = Lab::new()?;
    let container = lab.start(&bundle("traffic"))?;
    for ip in [container.v4.into(), container.v6.into()] {
        for count in [1, 64] {
            let mut turns = turns(&lab, &container, ip, kind, count)?;
            turns.sort_by_key(|turn| turn.gap.saturating_sub(turn.downtime));
            let excess = turns[TURNS / 2].gap.saturating_sub(turns[TURNS / 2].downtime);
            ensure!(excess < EXCESS, "{kind:?}: clients waited {excess:?} longer than the stop: {turns:?}");
            let in_time = |turn: &Turn| turn.again.timeouts == 0 || turn.downtime >= TIMEOUT;
            ensure!(turns.iter().any(in_time), "{kind:?}: every migration cost a timeout: {turns:?}");
            // Bulk is sent ahead of its acknowledgements, and some of it again.
            let once = |turn: &Turn| turn.again.segments == 0 || turn.downtime >= TIMEOUT;
            ensure!(
                kind != Kind::Echo || turns.iter().any(once),
                "every migration cost a retransmission: {turns:?}"
            );
        }
    }
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
