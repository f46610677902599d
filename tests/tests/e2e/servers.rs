//! Several threads, several processes, children born while the rounds run.

use anyhow::Result;
use pclive_tests::workload::clients::Clients;
use pclive_tests::workload::verifier::Verifier;
use pclive_tests::workload::{graph, http, memcached, pipeline};
use pclive_tests::{Container, Lab};

use crate::{migrate, ready};

/// Answers that show that the clients go on.
const MORE: u64 = 1000;
/// Migrations in a row, there and back.
const TURNS: usize = 4;

/// Moves a container with clients there and back a few times.
fn there_and_back(lab: &Lab, container: &Container, clients: Clients) -> Result<()> {
    for turn in 0..TURNS {
        let (from, to) = if turn % 2 == 0 { (&lab.a, &lab.b) } else { (&lab.b, &lab.a) };
        migrate(container, from, to, &[])?;
        clients.wait_for_answers(MORE)?;
    }
    clients.stop()?.nothing_lost()
}

#[test]
fn memcached_with_four_threads_keeps_clients_and_values() -> Result<()> {
    if !ready(&["memcached"]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&memcached::bundle("cache", 4))?;
    let clients = memcached::clients(&lab.client, container.v4, 8)?;
    there_and_back(&lab, &container, clients)
}

#[test]
fn nginx_with_two_workers_keeps_its_connections() -> Result<()> {
    if !ready(&["nginx"]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&http::bundle("web"))?;
    let clients = http::clients(&lab.client, container.v4, 6)?;
    there_and_back(&lab, &container, clients)
}

#[test]
fn search_over_a_graph_goes_on_and_its_results_are_right() -> Result<()> {
    if !ready(&[]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&graph::bundle("graph", 16, 3))?;
    let verifier = Verifier::new(&lab.client, container.v4);
    verifier.check()?;
    for turn in 0..TURNS {
        let (from, to) = if turn % 2 == 0 { (&lab.a, &lab.b) } else { (&lab.b, &lab.a) };
        migrate(&container, from, to, &[])?;
        verifier.check()?;
    }
    Ok(())
}

#[test]
fn pipeline_of_forking_shells_loses_no_line() -> Result<()> {
    if !ready(&["dash", "busybox"]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&pipeline::bundle("pipeline"))?;
    let mut number = pipeline::wait_beyond(&container, &lab.a, 0)?;
    for turn in 0..TURNS {
        let (from, to) = if turn % 2 == 0 { (&lab.a, &lab.b) } else { (&lab.b, &lab.a) };
        migrate(&container, from, to, &[])?;
        number = pipeline::wait_beyond(&container, to, number)?;
    }
    Ok(())
}
