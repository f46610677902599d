//! A long way between two agents. The kernel's own delay (netem) is not everywhere, so a relay in front of one agent
//! holds back whatever travels, in both directions.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::host::PEER_PORT;
use crate::link::BRIDGE;
use crate::node::Node;

/// Where the relay listens.
const RELAY_PORT: u16 = PEER_PORT + 1;
/// Bytes that are read at once.
const CHUNK: usize = 256 << 10;
/// Chunks on their way in one direction of one connection: 64 MiB.
const ON_THE_WAY: usize = 256;
/// How long the relay looks for connections before it looks whether it is to end.
const LOOK: Duration = Duration::from_millis(20);

/// A chunk, and when it arrives.
type Travelling = (Instant, Vec<u8>);

/// Connections to the agent of one host that begin while this lives take the long way, until they end.
#[derive(Debug)]
pub struct Delay<'a> {
    node: &'a Node,
    ended: Arc<AtomicBool>,
    relay: Option<JoinHandle<()>>,
}

impl<'a> Delay<'a> {
    /// Holds back for `one_way` what comes over the bridge to the agent on `node`, and what it answers.
    pub fn new(node: &'a Node, one_way: Duration) -> Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let (listening, wait) = std::sync::mpsc::channel();
        let relay = node.in_network({
            let ended = ended.clone();
            move || {
                let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, RELAY_PORT))
                    .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
                match listener {
                    // The receiver waits for exactly this message.
                    Err(error) => drop(listening.send(Err(error))),
                    Ok(listener) => {
                        let _ = listening.send(Ok(()));
                        serve(&listener, one_way, &ended);
                    }
                }
            }
        })?;
        let delay = Self { node, ended, relay: Some(relay) };
        wait.recv()?.context("the relay cannot listen")?;
        let rules = format!(
            "add table inet delay\nadd chain inet delay way {{ type nat hook prerouting priority -100 ; }}\n\
             add rule inet delay way iifname {BRIDGE} tcp dport {PEER_PORT} redirect to :{RELAY_PORT}"
        );
        delay.node.run(&["nft", &rules])?;
        Ok(delay)
    }
}

impl Drop for Delay<'_> {
    fn drop(&mut self) {
        // The namespace goes with the lab.
        let _ = self.node.run(&["nft", "delete", "table", "inet", "delay"]);
        self.ended.store(true, Ordering::Relaxed);
        if let Some(relay) = self.relay.take() {
            let _ = relay.join();
        }
    }
}

/// Accepts until the end; every connection has threads of its own, which end with it.
fn serve(listener: &TcpListener, one_way: Duration, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((caller, _)) => drop(thread::spawn(move || relay(caller, one_way))),
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(LOOK),
            Err(error) => eprintln!("the relay cannot accept: {error}"),
        }
    }
}

/// Joins a connection with one to the agent. A failure ends both, which is what their ends see.
fn relay(caller: TcpStream, one_way: Duration) -> std::io::Result<()> {
    caller.set_nonblocking(false)?;
    let agent = TcpStream::connect((Ipv4Addr::LOCALHOST, PEER_PORT))?;
    for end in [&caller, &agent] {
        end.set_nodelay(true)?;
    }
    let back = (agent.try_clone()?, caller.try_clone()?);
    let answers = thread::spawn(move || carry(back.0, back.1, one_way));
    carry(caller, agent, one_way);
    let _ = answers.join();
    Ok(())
}

/// Carries one direction to its end.
fn carry(from: TcpStream, to: TcpStream, one_way: Duration) {
    let (sender, receiver) = sync_channel(ON_THE_WAY);
    let begin = from.try_clone();
    let read = thread::spawn(move || depart(from, one_way, &sender));
    arrive(&receiver, &to);
    // One end that is gone is gone for the other one as well.
    let _ = to.shutdown(Shutdown::Write);
    if let Ok(begin) = begin {
        let _ = begin.shutdown(Shutdown::Read);
    }
    drop(receiver);
    let _ = read.join();
}

fn depart(mut from: TcpStream, one_way: Duration, sender: &SyncSender<Travelling>) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let chunk = buffer[..length].to_vec();
        if sender.send((Instant::now() + one_way, chunk)).is_err() {
            return;
        }
    }
}

fn arrive(receiver: &Receiver<Travelling>, mut to: &TcpStream) {
    for (at, chunk) in receiver {
        thread::sleep(at.saturating_duration_since(Instant::now()));
        if to.write_all(&chunk).is_err() {
            return;
        }
    }
}
