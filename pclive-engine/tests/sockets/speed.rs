//! What a dump and a build of many connections cost; printed, not judged.

use std::os::fd::OwnedFd;
use std::time::Instant;

use pclive_engine::capture::sockets::{Mode, SockDiag, capture_socket};

use crate::namespace::{Network, SERVER4, silence};

#[test]
fn sixty_four_connections_are_dumped_and_built() {
    let network = Network::new();
    let (first, client, listener) = network.connect(SERVER4);
    let (mut servers, mut clients) = (vec![OwnedFd::from(first)], vec![client]);
    while servers.len() < 64 {
        let (server, client) = network.connect_to(&listener);
        servers.push(server.into());
        clients.push(client);
    }
    let duplicates: Vec<OwnedFd> = servers.iter().map(|fd| fd.try_clone().unwrap()).collect();
    let opening = Instant::now();
    let diag = SockDiag::open(network.server.pid()).unwrap();
    let listing = Instant::now();
    let diag = diag.take().unwrap();
    let dumping = Instant::now();
    let captured: Vec<_> =
        duplicates.into_iter().map(|fd| capture_socket(fd, &diag, Mode::Dump).unwrap()).collect();
    let dumped = dumping.elapsed();
    drop(servers);
    let sockets: Vec<_> = captured
        .into_iter()
        .map(|captured| {
            silence(captured.guard.unwrap());
            captured.socket
        })
        .collect();
    let building = Instant::now();
    let built = network.server.build(&sockets);
    let (took, going) = (building.elapsed(), Instant::now());
    assert_eq!((built.connections(), built.fds.len()), (64, 64));
    built.go().unwrap();
    println!(
        "64 connections: open sock_diag {:?}, list {:?}, dump {dumped:?}, build {took:?}, go {:?}",
        listing - opening,
        dumping - listing,
        going.elapsed()
    );
}
