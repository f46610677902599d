//! Containers whose address is another one at the destination.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pclive_tests::answers::PORT;
use pclive_tests::wait::until;
use pclive_tests::workload::traffic;
use pclive_tests::{Bundle, Container, Host, Lab, Node};

use crate::ready;

/// Longer than anything that a client waits for here.
const PATIENCE: Duration = Duration::from_secs(10);
/// The network that the container lives in, on each host.
const NETWORK: &str = "own";
const AT_A: &str = "10.77.2.1";
const AT_B: &str = "10.77.2.2";

/// A client's connection to an echo server, which answers.
fn echoed(client: &Node, address: &str) -> Result<TcpStream> {
    let address = SocketAddr::new(address.parse()?, PORT);
    let connect = move || -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"e12345678")?;
        let mut answer = [0; 8];
        stream.read_exact(&mut answer)?;
        assert_eq!(&answer, b"12345678");
        Ok(stream)
    };
    let connected = client.in_network(connect)?.join();
    connected.map_err(|_| anyhow::anyhow!("a wrong answer"))?.with_context(|| format!("at {address}"))
}

/// A server on host a, whose platforms give it one address here and another there.
fn server_with_an_address_on_each_host() -> Result<(Lab, Container)> {
    let lab = Lab::new()?;
    lab.a.network(NETWORK, &format!("{AT_A}/16"))?;
    lab.b.network(NETWORK, &format!("{AT_B}/16"))?;
    let container = lab.install(&traffic::bundle("traffic").network(NETWORK), &[&lab.a, &lab.b])?;
    container.start_in_its_network(&lab.a)?;
    until("the server", PATIENCE, || Ok(echoed(&lab.client, AT_A).is_ok()))?;
    Ok((lab, container))
}

/// How a connection ended that its client only listens to.
fn ended(mut stream: TcpStream) -> Result<()> {
    match stream.read(&mut [0]) {
        Ok(0) => Ok(()),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error).context("the client has not heard of the end"),
        Ok(_) => anyhow::bail!("the server has said something"),
    }
}

/// Runs on `here` only; the networks of both hosts are as their platforms made them.
fn runs_only_at(container: &Container, here: &Host, gone: &Host, addresses: [&str; 2]) -> Result<()> {
    ensure!(container.status(here)?.as_deref() == Some("running"), "not running on {}", here.name());
    ensure!(container.status(gone)?.is_none(), "{} still knows the container", gone.name());
    ensure!(!container.has_cgroup(gone), "a cgroup is left on {}", gone.name());
    for (host, address) in [here, gone].into_iter().zip(addresses) {
        let words = ["ip", "-n", NETWORK, "-4", "-o", "address", "show", "up", "dev", "eth0"];
        let shown = host.node().run(&words)?;
        ensure!(shown.lines().count() == 1 && shown.contains(address), "on {}: {shown}", host.name());
        let rules = host.node().run(&["ip", "netns", "exec", NETWORK, "nft", "list", "ruleset"])?;
        ensure!(rules.trim().is_empty(), "rules are left on {}: {rules}", host.name());
    }
    Ok(())
}

#[test]
fn connections_end_and_the_service_goes_on_at_another_address() -> Result<()> {
    if !ready(&["nft"]) {
        return Ok(());
    }
    let (lab, container) = server_with_an_address_on_each_host()?;
    for (from, to, addresses) in [(&lab.a, &lab.b, [AT_B, AT_A]), (&lab.b, &lab.a, [AT_A, AT_B])] {
        let stream = echoed(&lab.client, addresses[1])?;
        let report = from.migrate(&container.name, to, &["--tcp", "close"])?;
        ensure!(report.downtime_ns > 0, "an empty report: {report:?}");
        ended(stream)?;
        drop(echoed(&lab.client, addresses[0])?);
        runs_only_at(&container, to, from, addresses)?;
    }
    container.delete(&lab.a)
}

#[test]
fn peers_hear_of_the_end_when_the_original_that_was_kept_is_removed() -> Result<()> {
    if !ready(&["nft"]) {
        return Ok(());
    }
    let (lab, container) = server_with_an_address_on_each_host()?;
    let mut stream = echoed(&lab.client, AT_A)?;
    lab.a.migrate(&container.name, &lab.b, &["--tcp", "close", "--keep-source-for", "6s"])?;
    drop(echoed(&lab.client, AT_B)?);
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    let early = stream.read(&mut [0]).map_err(|error| error.kind());
    ensure!(early == Err(ErrorKind::WouldBlock), "the original has spoken: {early:?}");
    stream.set_read_timeout(Some(PATIENCE))?;
    ended(stream)?;
    until("the end of the original", PATIENCE, || Ok(container.status(&lab.a)?.is_none()))?;
    runs_only_at(&container, &lab.b, &lab.a, [AT_B, AT_A])?;
    container.delete(&lab.b)
}

#[test]
fn an_original_that_is_wanted_back_answers_at_its_own_address() -> Result<()> {
    if !ready(&["nft"]) {
        return Ok(());
    }
    let (lab, container) = server_with_an_address_on_each_host()?;
    let mut stream = echoed(&lab.client, AT_A)?;
    lab.a.migrate(&container.name, &lab.b, &["--tcp", "close", "--keep-source-for", "10min"])?;
    let at_the_copy = echoed(&lab.client, AT_B)?;
    let newest = lab.a.migrations()?.into_iter().next().context("no migration")?;
    let id = newest["migration_id"].as_str().context("no id")?;
    let undone = lab.a.ask(&["undo", id, "--yes"])?;
    ensure!(undone["undone"] == true, "{undone}");
    ended(at_the_copy)?;
    until("an answer of the original", PATIENCE, || Ok(echoed(&lab.client, AT_A).is_ok()))?;
    // Its program was told that its connections are over.
    stream.write_all(b"87654321")?;
    ended(stream)?;
    runs_only_at(&container, &lab.a, &lab.b, [AT_A, AT_B])?;
    container.delete(&lab.a)
}

#[test]
fn connections_may_end_where_the_address_moves() -> Result<()> {
    if !ready(&[]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&traffic::bundle("traffic"))?;
    let address = container.v4.to_string();
    until("the server", PATIENCE, || Ok(echoed(&lab.client, &address).is_ok()))?;
    let mut stream = echoed(&lab.client, &address)?;
    crate::migrate(&container, &lab.a, &lab.b, &["--tcp", "close"])?;
    // Its copy does not know the connection.
    stream.write_all(b"87654321")?;
    ended(stream)?;
    drop(echoed(&lab.client, &address)?);
    container.delete(&lab.b)
}

#[test]
fn another_network_is_refused_with_what_to_do_about_it() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    lab.a.network(NETWORK, &format!("{AT_A}/16"))?;
    lab.b.network(NETWORK, "192.168.9.2/24")?;
    let arguments = ["/usr/bin/redis-server", "--save", "", "--protected-mode", "no", "--bind", AT_A];
    let bundle = Bundle::new("redis-1", &arguments).program("redis-server").network(NETWORK);
    let container = lab.install(&bundle, &[&lab.a, &lab.b])?;
    container.start_in_its_network(&lab.a)?;
    let wanted: SocketAddr = (AT_A.parse::<std::net::Ipv4Addr>()?, 6379).into();
    let connect = move || TcpStream::connect_timeout(&wanted, PATIENCE).is_ok();
    until("the server", PATIENCE, || Ok(lab.client.in_network(connect)?.join().is_ok_and(|up| up)))?;

    let refusal = lab.a.migrate_in_vain(&container.name, lab.b.name(), &[])?;
    let message = format!("{refusal:?}");
    ensure!(message.contains("the runtime has given it 192.168.9.2, of another network"), "{message}");
    ensure!(message.contains("--tcp close"), "{message}");
    let refusal = lab.a.migrate_in_vain(&container.name, lab.b.name(), &["--tcp", "close"])?;
    let message = format!("{refusal:?}");
    ensure!(message.contains(&format!("socket bound to {AT_A}:6379")), "{message}");

    runs_only_at(&container, &lab.a, &lab.b, [AT_A, "192.168.9.2"])?;
    ensure!(lab.client.in_network(connect)?.join().is_ok_and(|up| up), "the server does not answer");
    container.delete(&lab.a)
}
