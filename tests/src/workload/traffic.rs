//! TCP clients of the server in `src/bin/traffic.rs`: request and answer, upload, download; and what the kernel of
//! their host counts for them.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::clients::{Clients, Failure, Session, connect};
use crate::answers::PORT;
use crate::bundle::Bundle;
use crate::node::Node;

/// What is uploaded or downloaded at once; a multiple of 8.
pub const BLOCK_BYTES: usize = 16 << 10;
/// What the server answers instead of a count when an upload was not what it should be.
pub const WRONG: u64 = u64::MAX;

/// The container: the server.
pub fn bundle(name: &str) -> Bundle {
    Bundle::new(name, &["/usr/bin/traffic"]).own_program("traffic")
}

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request, its answer, the next request.
    Echo,
    /// Bulk to the server.
    Upload,
    /// Bulk from the server.
    Download,
}

impl Kind {
    fn letter(self) -> u8 {
        match self {
            Self::Echo => b'e',
            Self::Upload => b'u',
            Self::Download => b'd',
        }
    }
}

/// Clients of the server at `ip`, each on one connection, with a pause between their steps.
pub fn clients(
    client: &Node,
    ip: impl Into<IpAddr>,
    kind: Kind,
    count: usize,
    pause: Duration,
) -> Result<Clients> {
    let address: SocketAddr = (ip.into(), PORT).into();
    Clients::start(client, count, pause, move |_| {
        let mut stream = connect(address)?;
        stream.write_all(&[kind.letter()])?;
        Ok(Talk { stream, kind, numbers: Numbers::default() })
    })
}

/// The numbers 0, 1, 2 ... as eight bytes each, as far as they have gone.
#[derive(Debug, Default)]
pub struct Numbers {
    bytes: u64,
}

impl Numbers {
    /// How many bytes have gone.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next block.
    pub fn block(&mut self) -> Vec<u8> {
        let first = self.bytes / 8;
        self.bytes += BLOCK_BYTES as u64;
        (first..self.bytes / 8).flat_map(u64::to_le_bytes).collect()
    }

    /// Whether the bytes are the next ones.
    pub fn continue_with(&mut self, bytes: &[u8]) -> bool {
        bytes.iter().all(|byte| {
            let at = self.bytes;
            self.bytes += 1;
            (at / 8).to_le_bytes().get((at % 8) as usize) == Some(byte)
        })
    }
}

/// One client.
#[derive(Debug)]
struct Talk {
    stream: TcpStream,
    kind: Kind,
    numbers: Numbers,
}

impl Session for Talk {
    fn ask(&mut self) -> Result<(), Failure> {
        match self.kind {
            Kind::Echo => {
                let (request, mut answer) = (self.numbers.bytes.to_le_bytes(), [0; 8]);
                self.numbers.bytes += 1;
                self.stream.write_all(&request)?;
                self.stream.read_exact(&mut answer)?;
                same(request == answer)
            }
            Kind::Upload => Ok(self.stream.write_all(&self.numbers.block())?),
            Kind::Download => {
                let mut block = vec![0; BLOCK_BYTES];
                self.stream.read_exact(&mut block)?;
                same(self.numbers.continue_with(&block))
            }
        }
    }

    fn audit(&mut self) -> Result<u64> {
        if self.kind != Kind::Upload {
            return Ok(0);
        }
        self.stream.shutdown(Shutdown::Write)?;
        let mut count = [0; 8];
        self.stream.read_exact(&mut count).context("the server does not say what came")?;
        Ok(u64::from(u64::from_le_bytes(count) != self.numbers.bytes))
    }
}

fn same(same: bool) -> Result<(), Failure> {
    if same { Ok(()) } else { Err(Failure::Wrong("what came is not what was sent".into())) }
}

/// What a host has counted for its TCP connections since it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retransmissions {
    /// Segments that were sent again, for whatever reason.
    pub segments: u64,
    /// Times that an acknowledgement did not come in time.
    pub timeouts: u64,
}

impl Retransmissions {
    /// As the kernel of `node` counts now.
    pub fn of(node: &Node) -> Result<Self> {
        let read = || {
            let files = ["snmp", "netstat"].map(|name| format!("/proc/thread-self/net/{name}"));
            files.map(|file| std::fs::read_to_string(file).unwrap_or_default()).concat()
        };
        let text = node.in_network(read)?.join().map_err(|_| anyhow!("reading the counters panicked"))?;
        let segments = counter(&text, "Tcp:", "RetransSegs").context("no counter of retransmissions")?;
        let timeouts = counter(&text, "TcpExt:", "TCPTimeouts").context("no counter of timeouts")?;
        Ok(Self { segments, timeouts })
    }

    /// Since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self { segments: self.segments - earlier.segments, timeouts: self.timeouts - earlier.timeouts }
    }
}

/// A line of names, then a line of values.
fn counter(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.split_whitespace().next() == Some(group));
    let at = lines.next()?.split_whitespace().position(|word| word == name)?;
    lines.next()?.split_whitespace().nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_were_sent_are_those_that_are_expected() {
        let (mut sent, mut expected) = (Numbers::default(), Numbers::default());
        let stream = [sent.block(), sent.block()].concat();
        assert!(stream.chunks(1001).all(|part| expected.continue_with(part)));
        assert_eq!(expected.bytes(), sent.bytes());
        assert!(!expected.continue_with(&stream[..8]));
    }

    #[test]
    fn counters_are_found_by_name() {
        let text = "Tcp: InSegs RetransSegs\nTcp: 5 7\nTcpExt: A TCPTimeouts B\nTcpExt: 1 2 3\n";
        assert_eq!(counter(text, "Tcp:", "RetransSegs"), Some(7));
        assert_eq!(counter(text, "TcpExt:", "TCPTimeouts"), Some(2));
        assert_eq!(counter(text, "TcpExt:", "None"), None);
    }
}
