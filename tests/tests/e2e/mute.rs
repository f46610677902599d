//! A source's agent that dies while it reads the connections of its stopped container breaks none of them, however long
//! it stays away: a connection in repair mode refuses what its task does with it.

use std::time::Duration;

use anyhow::{Context, Result};
use pclive_tests::ctl::Following;

use crate::ready;
use crate::sweep::{Sweep, points};

/// How long there is no agent: longer than clients take to repeat what was dropped during the stop.
const AWAY: Duration = Duration::from_secs(2);

/// What the container does while there is no agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    /// Its freezer holds it: nothing can use a connection.
    StandsStill,
    /// It runs on.
    Answers,
}

fn breaks_no_connection(point: &str, meanwhile: Meanwhile) -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let sweep = Sweep::new()?;
    let (source, destination) = sweep.hosts()?;
    let options = points()?.into_iter().find(|known| known.name == point).context("no such point")?;
    source.arm(&format!("{point}:kill"))?;
    let following = Following::start(source, &sweep.container.name, destination.name(), &options.options())?;
    source.await_agent_end().context("the point was not reached")?;
    std::thread::sleep(AWAY);
    if meanwhile == Meanwhile::Answers {
        sweep.clients.wait_for_answers(20)?;
    }
    source.start_faulty_agent("")?;
    drop(following);
    source.await_ends()?;
    destination.await_ends()?;
    sweep.clients.wait_for_answers(20)?;
    source.audit_agrees()?;
    destination.audit_agrees()?;
    source.await_clean(&[&sweep.container])?;
    sweep.clients.stop()?.nothing_lost()
}

#[test]
fn source_that_dies_while_it_reads_a_connection_breaks_none() -> Result<()> {
    breaks_no_connection("source-connection-mute", Meanwhile::StandsStill)
}

#[test]
fn source_that_dies_with_every_connection_read_lets_the_container_answer() -> Result<()> {
    breaks_no_connection("source-connections-read", Meanwhile::Answers)
}
