//! memcached with several threads: checked sets and gets on persistent connections.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

use super::clients::{Clients, Failure, Session, connect};
use crate::bundle::Bundle;
use crate::node::Node;

/// memcached's port.
const PORT: u16 = 11211;
/// Keys a client writes in turn, and reads back at the end.
const RING: u64 = 256;
/// Bytes of a value: the number, then padding.
const VALUE_BYTES: usize = 4000;

/// The container: `memcached` with `threads` worker threads.
pub fn bundle(name: &str, threads: u32) -> Bundle {
    let threads = threads.to_string();
    let arguments = ["/usr/bin/memcached", "-u", "root", "-U", "0", "-m", "256", "-c", "256", "-t", &threads];
    Bundle::new(name, &arguments).program("memcached").user(1000)
}

/// Clients of the server at `ip` that write increasing numbers and read them back.
pub fn clients(client: &Node, ip: impl Into<IpAddr>, count: usize) -> Result<Clients> {
    let address = (ip.into(), PORT).into();
    Clients::start(client, count, Duration::ZERO, move |index| {
        Ok(Ring { address, stream: BufReader::new(connect(address)?), index, stored: 0 })
    })
}

#[derive(Debug)]
struct Ring {
    address: SocketAddr,
    stream: BufReader<TcpStream>,
    index: usize,
    /// The last number that was stored.
    stored: u64,
}

impl Ring {
    fn key(&self, number: u64) -> String {
        format!("ring:{}:{}", self.index, number % RING)
    }
}

fn value(number: u64) -> String {
    format!("{number:0VALUE_BYTES$}")
}

fn line(stream: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().into())
}

fn get(stream: &mut BufReader<TcpStream>, key: &str) -> std::io::Result<Option<String>> {
    stream.get_mut().write_all(format!("get {key}\r\n").as_bytes())?;
    let header = line(stream)?;
    let Some(length) = header.strip_prefix("VALUE ").and_then(|rest| rest.rsplit(' ').next()) else {
        return Ok(None);
    };
    let length: u64 = length.parse().map_err(|_| ErrorKind::InvalidData)?;
    let mut bytes = String::new();
    (&mut *stream).take(length).read_to_string(&mut bytes)?;
    line(stream)?;
    line(stream)?;
    Ok(Some(bytes))
}

impl Session for Ring {
    fn ask(&mut self) -> Result<(), Failure> {
        let number = self.stored + 1;
        let (key, value) = (self.key(number), value(number));
        let request = format!("set {key} 0 0 {}\r\n{value}\r\n", value.len());
        self.stream.get_mut().write_all(request.as_bytes())?;
        let answer = line(&mut self.stream)?;
        if answer != "STORED" {
            return Err(Failure::Wrong(format!("set {key}: {answer}")));
        }
        self.stored = number;
        let found = get(&mut self.stream, &key)?;
        if found.as_ref() != Some(&value) {
            return Err(Failure::Wrong(format!(
                "{key} is not {number} although it was stored: {found:.40?}"
            )));
        }
        Ok(())
    }

    fn audit(&mut self) -> Result<u64> {
        let mut stream = BufReader::new(connect(self.address)?);
        let mut missing = 0;
        for number in self.stored.saturating_sub(RING - 1).max(1)..=self.stored {
            let found = get(&mut stream, &self.key(number)).context("cannot get")?;
            let overwritten = number + RING == self.stored + 1 && found == Some(value(self.stored + 1));
            missing += u64::from(found != Some(value(number)) && !overwritten);
        }
        Ok(missing)
    }
}
