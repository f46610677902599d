//! Connections that come and go while the container moves: none is reset, and none loses a byte.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pclive_tests::answers::PORT;
use pclive_tests::ctl::Following;
use pclive_tests::workload::clients::{Clients, Failure, PATIENCE, Session};
use pclive_tests::workload::traffic::{self, Kind};
use pclive_tests::{Lab, Node};

use crate::{migrate, ready, runs_only_at};

/// Answers that show that the clients go on.
const MORE: u64 = 500;
const CLIENTS: usize = 4;

/// A client that connects anew for every request.
struct Caller {
    address: SocketAddr,
    number: u64,
}

impl Session for Caller {
    fn ask(&mut self) -> Result<(), Failure> {
        self.number += 1;
        let request = self.number.to_le_bytes();
        let mut stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"e")?;
        stream.write_all(&request)?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        if answer == request { Ok(()) } else { Err(Failure::Wrong(format!("{answer:?}, not {request:?}"))) }
    }

    fn audit(&mut self) -> Result<u64> {
        Ok(0)
    }
}

#[test]
fn clients_that_connect_for_every_request_lose_none() -> Result<()> {
    if !ready(&[]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&traffic::bundle("traffic"))?;
    // The server is up once a client that waits for that has had its answer.
    drop(traffic::clients(&lab.client, container.v4, Kind::Echo, 1, Duration::ZERO)?);
    let address = SocketAddr::from((container.v4, PORT));
    let pause = Duration::from_millis(1);
    let clients = Clients::start(&lab.client, CLIENTS, pause, move |_| Ok(Caller { address, number: 0 }))?;
    for turn in 0..4 {
        let (from, to) = if turn % 2 == 0 { (&lab.a, &lab.b) } else { (&lab.b, &lab.a) };
        clients.wait_for_answers(MORE)?;
        clients.take_gap();
        let report = migrate(&container, from, to, &[])?;
        clients.wait_for_answers(MORE)?;
        println!("downtime {} us, gap {:?}", report.downtime_ns / 1000, clients.take_gap());
    }
    clients.stop()?.nothing_lost()
}

/// What the client's host sends to the server is lost, until it is told otherwise.
fn mute(client: &Node) -> Result<()> {
    let rules = "add table netdev mute
        add chain netdev mute leaving { type filter hook egress device eth0 priority 0; }
        add rule netdev mute leaving tcp dport 7000 tcp flags & syn == 0 drop";
    rules.lines().try_for_each(|rule| client.run(&["nft", rule.trim()]).map(drop))
}

#[test]
fn client_whose_handshake_is_under_way_at_the_stop_is_waited_for() -> Result<()> {
    if !ready(&["nft"]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&traffic::bundle("traffic"))?;
    drop(traffic::clients(&lab.client, container.v4, Kind::Echo, 1, Duration::ZERO)?);
    mute(&lab.client)?;
    let address = SocketAddr::from((container.v4, PORT));
    // For the client the connection is there; the server waits for the last packet of the handshake.
    let connected = lab.client.in_network(move || TcpStream::connect_timeout(&address, PATIENCE))?;
    let mut stream = connected.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"eabcdefgh")?;
    let mut following = Following::start(&lab.a, &container.name, lab.b.name(), &[])?;
    following.wait_for("a stop that is put off", |line| line.to_string().contains("TCP handshake of"))?;
    lab.client.run(&["nft", "delete", "table", "netdev", "mute"])?;
    let report = following.finish()?;
    ensure!(report.is_ok(), "{report:?}");
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).context("the connection is lost")?;
    ensure!(&answer == b"abcdefgh", "{answer:?}");
    runs_only_at(&container, &lab.b, &lab.a)
}
