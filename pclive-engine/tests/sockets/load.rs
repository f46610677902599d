//! Connections that move while their clients write and read, with the network locked as the agent locks it: what
//! arrives or leaves in between is dropped.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pclive_engine::capture::sockets::{Mode, capture_socket};
use pclive_engine::model::FileId;
use pclive_engine::model::socket::Socket;
use pclive_engine::sys::tcp;

use crate::namespace::{Network, SERVER4, SERVER6, silence};

const CONNECTIONS: usize = 6;
const MOVES: usize = 5;
const PATIENCE: Duration = Duration::from_secs(30);

/// Byte `index` of what a client sends.
fn byte(seed: u64, index: u64) -> u8 {
    let mixed = (index ^ (seed << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

/// Sends without end and checks what comes back, until told to stop; then sends nothing more and reads the rest.
fn client(stream: &TcpStream, seed: u64, stop: &AtomicBool) -> u64 {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                let piece: Vec<u8> = (sent..sent + 5_000).map(|index| byte(seed, index)).collect();
                (&*stream).write_all(&piece).unwrap();
                sent += 5_000;
            }
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            sent
        });
        let (mut received, mut buffer) = (0, vec![0; 64 << 10]);
        loop {
            let length = (&*stream).read(&mut buffer).expect("the echo goes on");
            if length == 0 {
                break;
            }
            for got in &buffer[..length] {
                assert_eq!(*got, byte(seed, received), "byte {received} of client {seed}");
                received += 1;
            }
        }
        assert_eq!(received, writer.join().unwrap());
        received
    })
}

/// The application: sends back what comes in. What it has read and not sent is part of its memory.
#[derive(Default)]
struct Echo {
    pending: Vec<u8>,
    ended: bool,
}

impl Echo {
    fn step(&mut self, mut stream: &TcpStream) {
        let mut buffer = [0; 16 << 10];
        if self.pending.len() < 100_000 && !self.ended {
            match stream.read(&mut buffer) {
                Ok(0) => self.ended = true,
                Ok(length) => self.pending.extend(&buffer[..length]),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        match stream.write(&self.pending) {
            Ok(length) => drop(self.pending.drain(..length)),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }

    fn finished(&self) -> bool {
        self.ended && self.pending.is_empty()
    }
}

/// Everything from the stop to the go.
fn relocate(network: &Network, servers: Vec<TcpStream>) -> Vec<TcpStream> {
    let open = network.lock_server();
    let diag = network.server.diag();
    let fds: Vec<OwnedFd> = servers.into_iter().map(OwnedFd::from).collect();
    let captured: Vec<_> =
        fds.iter().map(|fd| capture_socket(fd.try_clone().unwrap(), &diag, Mode::Dump).unwrap()).collect();
    drop(fds);
    let sockets: Vec<Socket> = captured
        .into_iter()
        .map(|captured| {
            captured.guard.into_iter().for_each(silence);
            captured.socket
        })
        .collect();
    let mut built = network.server.build(&sockets);
    let moved = (0..).map_while(|id| built.fds.remove(&FileId(id))).map(TcpStream::from).collect();
    open();
    built.go().unwrap();
    moved
}

fn echo_survives(address: &str) {
    let network = Network::new();
    let (first, second, listener) = network.connect(address);
    let mut servers = vec![first];
    let mut clients = vec![second];
    while servers.len() < CONNECTIONS {
        let (server, client) = network.connect_to(&listener);
        servers.push(server);
        clients.push(client);
    }
    let mss: Vec<u32> = servers.iter().map(|s| tcp::info(s.as_fd()).unwrap().send_mss).collect();
    let stop = AtomicBool::new(false);
    let total: u64 = std::thread::scope(|scope| {
        let start = |(stream, seed)| {
            let stop = &stop;
            scope.spawn(move || client(stream, seed, stop))
        };
        let running: Vec<_> = clients.iter().zip(0..).map(start).collect();
        let mut echoes: Vec<Echo> = servers.iter().map(|_| Echo::default()).collect();
        for round in 0..=MOVES {
            servers.iter().for_each(|server| server.set_nonblocking(true).unwrap());
            let mut steps = 0;
            // The last time, to the end.
            while steps < 2_000 || (round == MOVES && !echoes.iter().all(Echo::finished)) {
                stop.store(round == MOVES, Ordering::Relaxed);
                for (server, echo) in servers.iter().zip(&mut echoes) {
                    echo.step(server);
                }
                steps += 1;
            }
            if round < MOVES {
                servers = relocate(&network, servers);
            }
        }
        let after: Vec<u32> = servers.iter().map(|s| tcp::info(s.as_fd()).unwrap().send_mss).collect();
        assert_eq!(after, mss);
        drop(servers);
        running.into_iter().map(|client| client.join().unwrap()).sum()
    });
    assert!(total > 1_000_000, "only {total} bytes were sent");
    network.assert_no_reset();
}

#[test]
fn v4_echoes_go_on_through_five_moves() {
    echo_survives(SERVER4);
}

#[test]
fn v6_echoes_go_on_through_five_moves() {
    echo_survives(SERVER6);
}
