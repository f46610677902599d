//! Sockets inside the container: pairs, datagrams, connections over loopback, with what waits in their queues.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::socket::sockopt::SndBuf;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair};

use crate::{Check, State, same};

pub(crate) const STATES: &[State] = &[
    ("unix-stream", unix_stream),
    ("unix-datagrams", unix_datagrams),
    ("unix-packets", unix_packets),
    ("half-closed-pair", half_closed_pair),
    ("udp", udp),
    ("listener", listener),
    ("loopback-connection", loopback_connection),
    ("loopback-connection-v6", loopback_connection_v6),
];

/// States so large that they move for a second and more; timers stand still meanwhile.
pub(crate) const LARGE: [State; 1] = [("full-queues", full_queues)];

/// Longer than one write buffer of a test would be.
const LENGTH: usize = 50_000;

fn pattern(seed: u8) -> Vec<u8> {
    (0..LENGTH).map(|index| seed.wrapping_add((index % 253) as u8)).collect()
}

/// Both directions of a stream have the pattern in their queues; what is read is written again.
fn both_ways<S: Read + Write + 'static>(mut one: S, mut other: S) -> Result<Check> {
    one.write_all(&pattern(1))?;
    other.write_all(&pattern(2))?;
    Ok(Box::new(move || {
        let mut found = vec![0; LENGTH];
        other.read_exact(&mut found)?;
        ensure!(found == pattern(1), "the queue of one direction differs");
        one.read_exact(&mut found)?;
        ensure!(found == pattern(2), "the queue of the other direction differs");
        one.write_all(&pattern(1))?;
        Ok(other.write_all(&pattern(2))?)
    }))
}

fn unix_stream() -> Result<Check> {
    let (one, other) = UnixStream::pair()?;
    one.set_read_timeout(Some(Duration::from_secs(5)))?;
    other.set_read_timeout(Some(Duration::from_secs(5)))?;
    both_ways(one, other)
}

fn unix_datagrams() -> Result<Check> {
    let (one, other) = UnixDatagram::pair()?;
    other.set_nonblocking(true)?;
    let fill = move || -> Result<()> {
        for message in ["first", "", "third"] {
            one.send(message.as_bytes())?;
        }
        Ok(())
    };
    fill()?;
    Ok(Box::new(move || {
        let mut buffer = [0; 64];
        for message in ["first", "", "third"] {
            let length = other.recv(&mut buffer)?;
            same("message", &message.as_bytes(), &&buffer[..length])?;
        }
        same("end", &Some(ErrorKind::WouldBlock), &other.recv(&mut buffer).err().map(|error| error.kind()))?;
        fill()
    }))
}

fn unix_packets() -> Result<Check> {
    let (one, other): (OwnedFd, OwnedFd) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_NONBLOCK)?;
    use std::os::fd::AsRawFd;
    let fill = move || -> Result<()> {
        for message in ["one", "three"] {
            send(one.as_raw_fd(), message.as_bytes(), MsgFlags::empty())?;
        }
        Ok(())
    };
    fill()?;
    Ok(Box::new(move || {
        let mut buffer = [0; 64];
        for message in ["one", "three"] {
            let length = recv(other.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            same("packet", &message.as_bytes(), &&buffer[..length])?;
        }
        fill()
    }))
}

/// More waits in queues than one message between agents may hold.
fn full_queues() -> Result<Check> {
    const PAIRS: usize = 240;
    /// Everybody may have that much (net.core.wmem_max); the kernel doubles it.
    const BUFFER: usize = 212_992;
    const MESSAGE: usize = 64 << 20;
    let mut pairs = Vec::new();
    for index in 0..PAIRS {
        let (mut one, other) = UnixStream::pair()?;
        setsockopt(&one, SndBuf, &BUFFER)?;
        one.set_nonblocking(true)?;
        other.set_nonblocking(true)?;
        pairs.push((fill(&mut one, index as u8)?, one, other));
    }
    let waiting: usize = pairs.iter().map(|(length, ..)| length).sum();
    ensure!(waiting > MESSAGE, "only {waiting} bytes fit into the queues");
    Ok(Box::new(move || {
        for (index, (length, one, other)) in pairs.iter_mut().enumerate() {
            let mut found = Vec::new();
            let end = other.read_to_end(&mut found).err().map(|error| error.kind());
            same("end", &Some(ErrorKind::WouldBlock), &end)?;
            same("bytes in a queue", length, &found.len())?;
            let sent = pattern(index as u8).into_iter().cycle();
            ensure!(sent.take(*length).eq(found), "queue {index} differs");
            *length = fill(one, index as u8)?;
        }
        Ok(())
    }))
}

/// Writes a pattern again and again until the queue is full; how much went in.
fn fill(socket: &mut UnixStream, seed: u8) -> Result<usize> {
    let pattern = pattern(seed);
    let mut length = 0;
    loop {
        match socket.write(&pattern[length % LENGTH..]) {
            Ok(written) => length += written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(length),
            Err(error) => return Err(error.into()),
        }
    }
}

/// One end has said that it will write no more; the other still can.
fn half_closed_pair() -> Result<Check> {
    let make = || -> Result<(UnixStream, UnixStream)> {
        let (mut one, other) = UnixStream::pair()?;
        one.write_all(b"the end")?;
        one.shutdown(Shutdown::Write)?;
        Ok((one, other))
    };
    let (mut one, mut other) = make()?;
    Ok(Box::new(move || {
        let mut found = String::new();
        other.set_read_timeout(Some(Duration::from_secs(5)))?;
        other.read_to_string(&mut found)?;
        same("contents", &"the end".to_owned(), &found)?;
        other.write_all(b"!")?;
        let mut byte = [0];
        one.read_exact(&mut byte)?;
        same("answer", b"!", &byte)?;
        (one, other) = make()?;
        Ok(())
    }))
}

fn udp() -> Result<Check> {
    let server = UdpSocket::bind("127.0.0.1:0")?;
    server.set_read_timeout(Some(Duration::from_secs(5)))?;
    let client = UdpSocket::bind("127.0.0.1:0")?;
    client.connect(server.local_addr()?)?;
    let addresses = (server.local_addr()?, client.local_addr()?);
    Ok(Box::new(move || {
        same("addresses", &addresses, &(server.local_addr()?, client.local_addr()?))?;
        same("peer", &addresses.0, &client.peer_addr()?)?;
        client.send(b"datagram")?;
        let mut buffer = [0; 64];
        let (length, from) = server.recv_from(&mut buffer)?;
        same("datagram", &(&b"datagram"[..], addresses.1), &(&buffer[..length], from))
    }))
}

fn listener() -> Result<Check> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    Ok(Box::new(move || {
        same("address", &address, &listener.local_addr()?)?;
        let client = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        let (server, from) = listener.accept()?;
        same("client", &client.local_addr()?, &from)?;
        both_ways(client, server)?()
    }))
}

fn loopback_connection() -> Result<Check> {
    connection("127.0.0.1:0")
}

fn loopback_connection_v6() -> Result<Check> {
    connection("[::1]:0")
}

fn connection(address: &str) -> Result<Check> {
    let listener = TcpListener::bind(address)?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    client.set_nodelay(true)?;
    client.set_ttl(77)?;
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    }
    let options = client.try_clone()?;
    let ends = (client.local_addr()?, client.peer_addr()?);
    let mut queues = both_ways(client, server)?;
    Ok(Box::new(move || {
        same("ends", &ends, &(options.local_addr()?, options.peer_addr()?))?;
        same("options", &(true, 77), &(options.nodelay()?, options.ttl()?))?;
        same("read timeout", &Some(Duration::from_secs(5)), &options.read_timeout()?)?;
        queues()
    }))
}
