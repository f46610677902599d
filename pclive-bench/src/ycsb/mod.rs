//! YCSB's core workload on Redis, written against its public description (Cooper et al., "Benchmarking Cloud Serving
//! Systems with YCSB", SoCC'10): records of 10 fields of 100 bytes in hashes, keys chosen by a scrambled zipfian
//! distribution; a read takes a whole record, an update writes one field.
//!
//! Every update carries who wrote it and its number, so that afterwards each field can be compared with what was
//! acknowledged last.

mod client;
mod keys;
mod record;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use pclive_tests::Node;
use pclive_tests::workload::clients::PATIENCE;
use redis::io::tcp::TcpSettings;
use redis::{Connection, ConnectionAddr, IntoConnectionInfo};

use crate::clients::{Crew, Record};
use crate::setting::Ycsb;
use client::{Client, Pace, Seen};
use keys::Keys;
use record::{PREFIX, Value};

/// Records of one pipeline while the server is filled, and fields of one while they are read back.
const CHUNK: usize = 500;

/// Records that are compared with what was written at first.
const CHECKED: u64 = 500;

/// A Redis server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Server<'a> {
    /// Where its clients are; `None`: on this machine.
    node: Option<&'a Node>,
    address: SocketAddr,
}

/// Clients at work. They end when stopped or dropped.
#[derive(Debug)]
pub(crate) struct Clients<'a> {
    server: Server<'a>,
    crew: Crew<Seen>,
}

impl<'a> Server<'a> {
    /// The server at `address`, asked from `node`, or from this machine.
    pub(crate) fn new(node: Option<&'a Node>, address: SocketAddr) -> Self {
        Self { node, address }
    }

    /// A thread where the clients are.
    fn thread<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
        match self.node {
            Some(node) => node.in_network(work),
            None => Ok(std::thread::spawn(work)),
        }
    }

    /// Runs `work` on such a thread.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(SocketAddr) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let address = self.address;
        let thread = self.thread(move || work(address))?;
        thread.join().map_err(|_| anyhow!("a client panicked"))?
    }

    /// Empties the server.
    ///
    /// # Errors
    /// When it has a key that is not this program's; then nothing is touched.
    pub(crate) fn empty(&self) -> Result<()> {
        self.run(move |address| {
            let mut connection = connect(address)?;
            let keys =
                redis::cmd("SCAN").cursor_arg(0).arg("COUNT").arg(CHUNK).clone().iter(&mut connection)?;
            for key in keys {
                let key: String = key?;
                if !key.starts_with(PREFIX) {
                    bail!(
                        "the Redis at {address} has keys of others ({key:?}); give the benchmark an empty one"
                    );
                }
            }
            redis::cmd("FLUSHDB").exec(&mut connection).context("cannot empty Redis")
        })
    }

    /// Writes every record.
    pub(crate) fn load(&self, records: u64, seed: u64) -> Result<()> {
        self.run(move |address| {
            let mut connection = connect(address)?;
            for first in (0..records).step_by(CHUNK) {
                let mut pipe = redis::pipe();
                for record in first..records.min(first + CHUNK as u64) {
                    let fields = (0..).map(record::field).zip(record::loaded(record, seed));
                    pipe.hset_multiple(record::key(record), &fields.collect::<Vec<_>>()).ignore();
                }
                pipe.query::<()>(&mut connection).context("cannot write records")?;
            }
            Ok(())
        })
    }

    /// Starts the clients.
    pub(crate) fn start(self, ycsb: &Ycsb, seed: u64) -> Result<Clients<'a>> {
        let client = |number: u16, start, stop: Arc<AtomicBool>| {
            let (address, ycsb) = (self.address, ycsb.clone());
            self.thread(move || {
                let keys = Keys::new(ycsb.records, seed, number)?;
                let mut client =
                    Client::new(connect(address)?, number, keys, ycsb.reads_percent, seed, start);
                client.run(&stop, pace(&ycsb, number));
                Ok(client.seen())
            })
        };
        Ok(Clients { server: self, crew: Crew::start(ycsb.clients, client)? })
    }

    /// Compares records that are spread over all of them with what was written at first; what clients have updated since
    /// is left out. Some of the bytes, not all.
    ///
    /// # Errors
    /// With the first that differs.
    pub(crate) fn check(&self, records: u64, seed: u64) -> Result<()> {
        self.run(move |address| {
            let mut connection = connect(address)?;
            let step = usize::try_from(records.div_ceil(CHECKED).max(1))?;
            for record in (0..records).step_by(step) {
                for (field, loaded) in (0..).zip(record::loaded(record, seed)) {
                    let mut ask = redis::cmd("HGET");
                    ask.arg(record::key(record)).arg(record::field(field));
                    let value: Option<Vec<u8>> = ask.query(&mut connection)?;
                    let is_updated =
                        value.as_deref().and_then(Value::read).is_some_and(|value| value != Value::LOADED);
                    ensure!(
                        is_updated || value == Some(loaded),
                        "record {record}, field {field} has changed"
                    );
                }
            }
            Ok(())
        })
    }

    /// How many fields do not have what a client was told last that they have.
    fn lost(&self, seen: &[Seen]) -> Result<u64> {
        let fields: Vec<_> = client::acknowledged(seen).into_iter().collect();
        self.run(move |address| {
            let mut connection = connect(address)?;
            let mut lost = 0;
            for chunk in fields.chunks(CHUNK) {
                let mut pipe = redis::pipe();
                for ((record, field), _) in chunk {
                    pipe.hget(record::key(*record), record::field(*field));
                }
                let values: Vec<Option<Vec<u8>>> =
                    pipe.query(&mut connection).context("cannot read updates back")?;
                let is_lost = |(value, (_, last)): (&Option<Vec<u8>>, &(_, Vec<Value>))| {
                    !value.as_deref().and_then(Value::read).is_some_and(|value| last.contains(&value))
                };
                lost += values.iter().zip(chunk).filter(|&pair| is_lost(pair)).count() as u64;
            }
            Ok(lost)
        })
    }
}

impl Clients<'_> {
    /// Ends the clients, and reads every update back.
    pub(crate) fn stop(mut self) -> Result<Record> {
        let seen = self.crew.join()?;
        let lost_updates = self.server.lost(&seen)?;
        let seen = seen.into_iter().map(|seen| (seen.answers, seen.failure));
        Ok(Record::new(self.crew.start, seen, lost_updates))
    }
}

fn connect(address: SocketAddr) -> Result<Connection> {
    // The server may still be starting.
    drop(pclive_tests::workload::clients::connect(address)?);
    let info = ConnectionAddr::Tcp(address.ip().to_string(), address.port()).into_connection_info()?;
    let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
    let connected = redis::Client::open(info)?.get_connection_with_timeout(PATIENCE);
    let connection = connected.with_context(|| format!("cannot connect to {address}"))?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    Ok(connection)
}

/// When the requests of a client are due: those of all clients take turns.
fn pace(ycsb: &Ycsb, client: u16) -> Option<Pace> {
    let turn = Duration::from_secs(1) / ycsb.rate?.max(1);
    Some(Pace { first: turn * u32::from(client), step: turn * u32::from(ycsb.clients) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_take_turns() {
        let ycsb = Ycsb { records: 1, reads_percent: 50, clients: 4, rate: Some(1000) };
        let Pace { first, step } = pace(&ycsb, 3).unwrap();
        assert_eq!((first, step), (Duration::from_millis(3), Duration::from_millis(4)));
        assert!(pace(&Ycsb { rate: None, ..ycsb }, 3).is_none());
    }
}
