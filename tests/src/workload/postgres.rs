//! PostgreSQL: shared buffers, a process per connection, a System V segment that guards the data directory.
//!
//! Clients speak the simple query protocol (version 3), each on a connection of its own, and so with a backend of its
//! own.

use std::io::{BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::clients::{Clients, Failure, PATIENCE, Session, connect};
use crate::bundle::Bundle;
use crate::node::Node;
use crate::wait::until;

const PORT: u16 = 5432;
/// Version 3.0 of the protocol.
const VERSION: u32 = 3 << 16;
/// Tables that fill the buffers: a table larger than a quarter of them would be read past them.
const FILLERS: u64 = 4;
/// Most bytes of a message that is read.
const MOST_BYTES: usize = 1 << 20;
/// Where Debian has the servers, each version in a directory.
const SERVERS: &str = "/usr/lib/postgresql";

/// The directory of the installed server: `/usr/lib/postgresql/VERSION`.
pub fn installation() -> Option<PathBuf> {
    let versions = std::fs::read_dir(SERVERS).ok()?.flatten().map(|entry| entry.path());
    versions.filter(|path| path.join("bin/postgres").is_file()).max()
}

/// The container: a server as an unprivileged user, with a data directory that it makes at its start.
pub fn bundle(name: &str, shared_buffers: &str) -> Result<Bundle> {
    let server = installation().context("no PostgreSQL is installed")?;
    let version = server.file_name().context("a server without a version")?;
    let bin = server.join("bin");
    let start = format!(
        "set -e; bin={}; cd /data; $bin/initdb -D pg -A trust -U app --no-locale -E UTF8 --no-sync >/dev/null; \
         echo 'host all all all trust' >>pg/pg_hba.conf; \
         exec $bin/postgres -D pg -h '*' -k /tmp -c shared_buffers={shared_buffers} -c fsync=off -c autovacuum=on",
        bin.display()
    );
    let bundle = Bundle::new(name, &["/bin/sh", "-c", &start]).program("sh").user(1000);
    let bundle =
        ["postgres", "initdb"].iter().fold(bundle, |bundle, program| bundle.program_at(&bin.join(program)));
    Ok(bundle.directory(&server.join("lib")).directory(&Path::new("/usr/share/postgresql").join(version)))
}

/// A server as the lab's client sees it.
#[derive(Debug, Clone, Copy)]
pub struct Postgres<'a> {
    client: &'a Node,
    address: SocketAddr,
}

impl<'a> Postgres<'a> {
    /// The server at `ip`, asked from `client`, once it answers.
    pub fn new(client: &'a Node, ip: impl Into<IpAddr>) -> Result<Self> {
        let this = Self { client, address: (ip.into(), PORT).into() };
        until("the server's start", PATIENCE, || Ok(this.ask("SELECT 1").is_ok()))?;
        Ok(this)
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// One query on a connection of its own: the server forks for it.
    pub fn ask(&self, query: &str) -> Result<Vec<String>> {
        let (address, query) = (self.address, query.to_owned());
        let thread = self.client.in_network(move || Connection::open(address)?.ask(&query))?;
        thread.join().map_err(|_| anyhow::anyhow!("a PostgreSQL client panicked"))?
    }

    /// Makes the tables, some of which hold about this many MiB together; a digest of what is in these.
    pub fn populate(&self, mib: u64) -> Result<Vec<String>> {
        self.ask("CREATE TABLE sequence (client int, number bigint, PRIMARY KEY (client, number))")?;
        for table in 0..FILLERS {
            let rows = mib * 1000 / FILLERS;
            self.ask(&format!(
                "CREATE TABLE filler{table} AS \
                 SELECT n, repeat(md5(n::text), 32) AS text FROM generate_series(1, {rows}) n"
            ))?;
        }
        self.digest()
    }

    /// A digest of the tables that nobody writes; they are read into the buffers.
    pub fn digest(&self) -> Result<Vec<String>> {
        let of = |table: u64| {
            self.ask(&format!("SELECT count(*), sum(hashtext(text)::bigint) FROM filler{table}"))
        };
        Ok((0..FILLERS).map(of).collect::<Result<Vec<_>>>()?.concat())
    }

    /// Clients that insert increasing numbers and read them back, each on one connection.
    pub fn clients(&self, count: usize) -> Result<Clients> {
        let address = self.address;
        Clients::start(self.client, count, Duration::ZERO, move |index| {
            Ok(Sequence { address, connection: Connection::open(address)?, index, acknowledged: 0 })
        })
    }
}

/// Inserts 1, 2, 3 ...
#[derive(Debug)]
struct Sequence {
    address: SocketAddr,
    connection: Connection,
    index: usize,
    acknowledged: u64,
}

impl Session for Sequence {
    fn ask(&mut self) -> Result<(), Failure> {
        let (index, number) = (self.index, self.acknowledged + 1);
        let lost = |error: anyhow::Error| Failure::Lost(std::io::Error::other(format!("{error:#}")));
        self.connection.ask(&format!("INSERT INTO sequence VALUES ({index}, {number})")).map_err(lost)?;
        self.acknowledged = number;
        let query = format!("SELECT number FROM sequence WHERE client = {index} AND number = {number}");
        let found = self.connection.ask(&query).map_err(lost)?;
        if found != [number.to_string()] {
            return Err(Failure::Wrong(format!("{query} gives {found:?} after the insertion")));
        }
        Ok(())
    }

    fn audit(&mut self) -> Result<u64> {
        let query = format!("SELECT count(*) FROM sequence WHERE client = {}", self.index);
        let found = Connection::open(self.address)?.ask(&query)?;
        let count: u64 = found.first().context("no count")?.parse()?;
        // One that was sent and not acknowledged may be there.
        Ok(self.acknowledged.saturating_sub(count))
    }
}

/// A connection of the user `app`.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Opens one in the caller's network.
    pub fn open(address: SocketAddr) -> Result<Self> {
        let mut stream = BufReader::new(connect(address)?);
        let parameters = b"user\0app\0database\0postgres\0\0";
        let length = u32::try_from(8 + parameters.len())?;
        let start = [&length.to_be_bytes()[..], &VERSION.to_be_bytes(), parameters].concat();
        stream.get_mut().write_all(&start)?;
        let mut this = Self { stream };
        this.rows()?;
        Ok(this)
    }

    /// The columns of all rows of the answer, one after the other.
    ///
    /// # Errors
    /// When the server says so: with its message, in which the SQLSTATE is. The connection can be used again.
    pub fn ask(&mut self, query: &str) -> Result<Vec<String>> {
        let length = u32::try_from(5 + query.len())?;
        let message = [b"Q", &length.to_be_bytes()[..], query.as_bytes(), b"\0"].concat();
        self.stream.get_mut().write_all(&message)?;
        self.rows()
    }

    /// Reads until the server is ready for the next query.
    fn rows(&mut self) -> Result<Vec<String>> {
        let (mut rows, mut error) = (Vec::new(), None::<String>);
        loop {
            // After a fatal error the server says nothing more.
            let said = || error.clone().unwrap_or_default();
            let (kind, body) = self.message().with_context(said)?;
            match kind {
                b'D' => rows.extend(columns(&body)?),
                b'E' => error = Some(String::from_utf8_lossy(&body).replace('\0', " ")),
                b'Z' => match error {
                    Some(error) => bail!("the server says {error}"),
                    None => return Ok(rows),
                },
                _ => {}
            }
        }
    }

    fn message(&mut self) -> Result<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head)?;
        let [kind, length @ ..] = head;
        let length = usize::try_from(u32::from_be_bytes(length))?;
        ensure!((4..MOST_BYTES).contains(&length), "a message of {length} bytes");
        let mut body = vec![0; length - 4];
        self.stream.read_exact(&mut body)?;
        Ok((kind, body))
    }
}

/// The columns of a row: a count, then length and text of each.
fn columns(body: &[u8]) -> Result<Vec<String>> {
    let (count, mut rest) = body.split_first_chunk::<2>().context("a row without columns")?;
    let mut columns = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, data) = rest.split_first_chunk::<4>().context("a column without a length")?;
        let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
        let (text, left) = data.split_at_checked(length).context("a column that is cut off")?;
        columns.push(String::from_utf8_lossy(text).into_owned());
        rest = left;
    }
    Ok(columns)
}
