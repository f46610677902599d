//! Unix sockets.

use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, send, sendmsg, socketpair,
};
use pclive_engine::capture::sockets::{Mode, capture_socket, strangers};
use pclive_engine::model::FileId;
use pclive_engine::model::socket::{Socket, SocketKind};
use pclive_engine::restore::sockets::BuiltSockets;

use crate::namespace::Namespace;

fn pair(host: &Namespace, socket_type: SockType) -> (OwnedFd, OwnedFd) {
    host.run(|| socketpair(AddressFamily::Unix, socket_type, None, SockFlag::SOCK_CLOEXEC).unwrap())
}

fn dump(host: &Namespace, fds: &[OwnedFd]) -> Vec<Socket> {
    let diag = host.diag();
    let take = |fd: &OwnedFd| capture_socket(fd.try_clone().unwrap(), &diag, Mode::Dump).unwrap().socket;
    fds.iter().map(take).collect()
}

fn take(built: &mut BuiltSockets, id: u32) -> OwnedFd {
    built.fds.remove(&FileId(id)).unwrap()
}

fn receive(fd: &OwnedFd) -> Result<Vec<u8>, nix::Error> {
    let mut buffer = vec![0; 300_000];
    let length = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT)?;
    buffer.truncate(length);
    Ok(buffer)
}

#[test]
fn queues_of_pairs_of_every_type_survive() {
    let host = Namespace::new();
    for socket_type in [SockType::Stream, SockType::Datagram, SockType::SeqPacket] {
        let (a, b) = pair(&host, socket_type);
        let messages = [vec![1; 10], vec![2; 100_000], vec![3; 1]];
        for message in &messages {
            assert_eq!(send(a.as_raw_fd(), message, MsgFlags::MSG_DONTWAIT).unwrap(), message.len());
        }
        send(b.as_raw_fd(), b"back", MsgFlags::MSG_DONTWAIT).unwrap();
        let fds = [a, b];
        let sockets = dump(&host, &fds);
        assert_eq!(dump(&host, &fds), sockets, "a dump changes nothing");
        drop(fds);
        let mut built = host.build(&sockets);
        let (a, b) = (take(&mut built, 0), take(&mut built, 1));
        built.go().unwrap();
        assert_eq!(receive(&a).unwrap(), b"back");
        let received: Vec<Vec<u8>> = std::iter::from_fn(|| receive(&b).ok()).collect();
        match socket_type {
            SockType::Stream => assert_eq!(received.concat(), messages.concat()),
            _ => assert_eq!(received, messages),
        }
        send(a.as_raw_fd(), b"again", MsgFlags::MSG_DONTWAIT).unwrap();
        assert_eq!(receive(&b).unwrap(), b"again");
    }
}

#[test]
fn shut_and_closed_ends_survive() {
    let host = Namespace::new();
    let (mut a, b) = host.run(|| UnixStream::pair().unwrap());
    a.write_all(b"tail").unwrap();
    a.shutdown(std::net::Shutdown::Write).unwrap();
    let (mut lone, gone) = host.run(|| UnixStream::pair().unwrap());
    (&gone).write_all(b"rest").unwrap();
    drop(gone);
    let (reset, unread) = host.run(|| UnixStream::pair().unwrap());
    (&reset).write_all(b"never read").unwrap();
    drop(unread);
    let fds: Vec<OwnedFd> =
        vec![a.try_clone().unwrap().into(), b.into(), lone.try_clone().unwrap().into(), reset.into()];
    let sockets = dump(&host, &fds);
    drop((a, lone, fds));
    let mut built = host.build(&sockets);
    a = take(&mut built, 0).into();
    let mut b = UnixStream::from(take(&mut built, 1));
    lone = take(&mut built, 2).into();
    let mut reset = UnixStream::from(take(&mut built, 3));
    let mut text = String::new();
    b.read_to_string(&mut text).unwrap();
    lone.read_to_string(&mut text).unwrap();
    assert_eq!(text, "tailrest");
    b.write_all(b"other way").unwrap();
    drop(b);
    a.read_to_string(&mut text).unwrap();
    assert_eq!(text, "tailrestother way");
    assert_eq!(lone.write(&[0]).unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    assert_eq!(reset.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn descriptors_in_flight_are_refused_and_stay() {
    let host = Namespace::new();
    let (a, b) = pair(&host, SockType::Stream);
    let fds = [a.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(a.as_raw_fd(), &[IoSlice::new(b"x")], &control, MsgFlags::empty(), None).unwrap();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    let refusal = host.capture(&b, Mode::Dump).unwrap_err();
    assert!(refusal.transient && refusal.what.contains("SCM_RIGHTS"), "{refusal}");
    assert_eq!(open(), before, "no descriptor was received");
    host.capture(&b, Mode::Check).unwrap();
    assert_eq!(receive(&b).unwrap(), b"x");
}

#[test]
fn peer_outside_the_container_is_found() {
    let host = Namespace::new();
    let (a, b) = pair(&host, SockType::Stream);
    let both = dump(&host, &[a.try_clone().unwrap(), b]);
    assert_eq!(strangers(both.iter()), []);
    let found = strangers(both[..1].iter());
    let SocketKind::UnixPair { inode, .. } = both[0].kind else { panic!() };
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].0, inode);
    assert!(host.try_build(&both[..1]).unwrap_err().to_string().contains("peer is not among the sockets"));
}

#[test]
fn abstract_and_nameless_datagram_sockets_survive() {
    use std::os::linux::net::SocketAddrExt;
    let host = Namespace::new();
    let name = std::os::unix::net::SocketAddr::from_abstract_name(b"sockets\0test").unwrap();
    let (server, nameless) =
        host.run(|| (UnixDatagram::bind_addr(&name).unwrap(), UnixDatagram::unbound().unwrap()));
    nameless.send_to_addr(b"queued", &name).unwrap();
    let fds: Vec<OwnedFd> = vec![server.into(), nameless.into()];
    let sockets = dump(&host, &fds);
    drop(fds);
    let mut built = host.build(&sockets);
    let server = UnixDatagram::from(take(&mut built, 0));
    let nameless = UnixDatagram::from(take(&mut built, 1));
    server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    nameless.send_to_addr(b"new", &name).unwrap();
    let mut buffer = [0; 16];
    let mut next = || {
        let length = server.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    };
    assert_eq!((next(), next()), (b"queued".to_vec(), b"new".to_vec()));
}

/// A listener at a path that both hosts share.
fn path_listener(host: &Namespace, path: &str) -> OwnedFd {
    let listener = host.run(|| UnixListener::bind(path).unwrap());
    let status = std::process::Command::new("chmod").args(["640", path]).status().unwrap();
    assert!(status.success());
    listener.into()
}

#[test]
fn listener_at_a_path_survives_and_its_file_comes_back_after_a_rollback() {
    let host = Namespace::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sockets-listener").to_str().unwrap().to_owned();
    let original = path_listener(&host, &path);
    let sockets = dump(&host, std::slice::from_ref(&original));
    let entries = || std::fs::read_dir(directory.path()).unwrap().count();

    drop(host.build(&sockets));
    assert_eq!(entries(), 1);
    let client = UnixStream::connect(&path).expect("the source's listener is back");
    assert_eq!(
        host.capture(&original, Mode::Dump).unwrap_err().what,
        "unix listener with 1 connections not yet accepted"
    );
    drop((client, original));

    let mut built = host.build(&sockets);
    let listener = UnixListener::from(take(&mut built, 0));
    built.go().unwrap();
    let _client = UnixStream::connect(&path).unwrap();
    let (_server, _) = listener.accept().unwrap();
    assert_eq!(entries(), 1);
    let mut after = host.capture(listener.as_fd(), Mode::Dump).unwrap().socket;
    crate::options::same_inode(&sockets[0], &mut after);
    assert_eq!(after, sockets[0]);
}

#[test]
fn datagram_socket_connected_to_a_bound_one_survives() {
    use std::os::linux::net::SocketAddrExt;
    let host = Namespace::new();
    let name = std::os::unix::net::SocketAddr::from_abstract_name(b"sockets-log").unwrap();
    let (log, first, second) = host.run(|| {
        let connected = || {
            let client = UnixDatagram::unbound().unwrap();
            client.connect_addr(&name).unwrap();
            client
        };
        (UnixDatagram::bind_addr(&name).unwrap(), connected(), connected())
    });
    first.send(b"queued").unwrap();
    let fds: Vec<OwnedFd> = vec![first.into(), log.into(), second.into()];
    let sockets = dump(&host, &fds);
    assert_eq!(strangers(sockets.iter()).len() + strangers(sockets[..1].iter()).len(), 1);
    drop(fds);
    let mut built = host.build(&sockets);
    let first = UnixDatagram::from(take(&mut built, 0));
    let log = take(&mut built, 1);
    let second = UnixDatagram::from(take(&mut built, 2));
    first.send(b"one").unwrap();
    second.send(b"two").unwrap();
    let received: Vec<_> = std::iter::from_fn(|| receive(&log).ok()).collect();
    assert_eq!(received, [b"queued".to_vec(), b"one".to_vec(), b"two".to_vec()]);
}
