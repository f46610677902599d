//! Redis: a data set that nobody touches, clients that write sequence numbers, and what must work after a move.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::clients::{Clients, Failure, PATIENCE, Session, connect};
use super::resp::{Connection, Reply};
use crate::bundle::Bundle;
use crate::node::Node;
use crate::wait::until;

/// Redis's port.
pub const PORT: u16 = 6379;
/// Bytes of a value of the untouched data set.
const VALUE_BYTES: u64 = 1000;
/// What Redis needs in memory for such a key: value, name, dictionary entry.
const KEY_COST_BYTES: u64 = 1080;
/// Keys in a client's ring: all of them are read back at the end.
const RING: u64 = 64;
/// Keys a digest command is asked for at once.
const DIGEST_CHUNK: u64 = 1000;

/// The container: one `redis-server`, saved only when asked.
pub fn bundle(name: &str) -> Bundle {
    let config = "bind * -::*\nport 6379\nprotected-mode no\nsave \"\"\nappendonly no\nenable-debug-command yes\n\
                  dir /data\ndaemonize no\nmaxclients 1000\n";
    Bundle::new(name, &["/usr/bin/redis-server", "/etc/redis.conf"])
        .program("redis-server")
        .file("/etc/redis.conf", config)
}

/// A Redis server as the lab's client sees it.
#[derive(Debug, Clone, Copy)]
pub struct Redis<'a> {
    client: &'a Node,
    address: SocketAddr,
}

impl<'a> Redis<'a> {
    /// The server at `ip`, asked from `client`.
    pub fn new(client: &'a Node, ip: impl Into<IpAddr>) -> Self {
        Self { client, address: (ip.into(), PORT).into() }
    }

    /// Runs `work` with a connection made on the client node.
    fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let address = self.address;
        let thread = self.client.in_network(move || work(&mut Connection::new(connect(address)?)))?;
        thread.join().map_err(|_| anyhow::anyhow!("a Redis client panicked"))?
    }

    /// One command on a connection of its own.
    pub fn ask(&self, words: &[&str]) -> Result<Reply> {
        let words: Vec<String> = words.iter().map(|&word| word.into()).collect();
        self.with(move |redis| Ok(redis.ask(&words.iter().map(String::as_str).collect::<Vec<_>>())?))
    }

    /// Fills the server with keys worth about `bytes` of its memory; how many keys.
    pub fn populate(&self, bytes: u64) -> Result<u64> {
        let keys = bytes / KEY_COST_BYTES;
        let reply = self.ask(&["DEBUG", "POPULATE", &keys.to_string(), "key", &VALUE_BYTES.to_string()])?;
        ensure!(reply == Reply::Simple("OK".into()), "cannot populate: {reply:?}");
        Ok(keys)
    }

    /// A digest of names and contents of the `keys` keys that [`Redis::populate`] made.
    pub fn digest(&self, keys: u64) -> Result<u64> {
        self.with(move |redis| {
            let mut hasher = DefaultHasher::new();
            for start in (0..keys).step_by(usize::try_from(DIGEST_CHUNK)?) {
                let names: Vec<String> =
                    (start..keys.min(start + DIGEST_CHUNK)).map(|number| format!("key:{number}")).collect();
                let words: Vec<&str> =
                    ["DEBUG", "DIGEST-VALUE"].into_iter().chain(names.iter().map(String::as_str)).collect();
                let Reply::Array(digests) = redis.ask(&words)? else { bail!("no digests") };
                digests.iter().map(Reply::text).collect::<Vec<_>>().hash(&mut hasher);
            }
            Ok(hasher.finish())
        })
    }

    /// Bytes that the server says it uses.
    pub fn used_memory(&self) -> Result<u64> {
        let info = self.ask(&["INFO", "memory"])?.text().context("no INFO")?;
        field(&info, "used_memory")
            .context("INFO without used_memory")?
            .parse()
            .context("used_memory is no number")
    }

    /// Saves by a forked child and waits for it: fork of a restored process, its pipes, its exit status.
    pub fn save_in_background(&self) -> Result<()> {
        self.with(|redis| {
            let reply = redis.ask(&["BGSAVE"])?;
            ensure!(matches!(reply, Reply::Simple(_)), "cannot BGSAVE: {reply:?}");
            until("the end of BGSAVE", PATIENCE, || {
                let info = redis.ask(&["INFO", "persistence"])?.text().context("no INFO")?;
                let running = field(&info, "rdb_bgsave_in_progress") != Some("0");
                if !running && field(&info, "rdb_last_bgsave_status") != Some("ok") {
                    bail!("BGSAVE failed: {info}");
                }
                Ok(!running)
            })
        })
    }

    /// Lets a key expire without asking for it: the server's own timer must find it.
    pub fn expire_a_key(&self) -> Result<()> {
        self.with(|redis| {
            let expired = |redis: &mut Connection| -> Result<u64> {
                let info = redis.ask(&["INFO", "stats"])?.text().context("no INFO")?;
                Ok(field(&info, "expired_keys").context("INFO without expired_keys")?.parse()?)
            };
            let before = expired(redis)?;
            redis.ask(&["SET", "short-lived", "value", "PX", "50"])?;
            until("the expiry of a key", PATIENCE, || Ok(expired(redis)? > before))?;
            ensure!(
                redis.ask(&["GET", "short-lived"])? == Reply::Bulk(None),
                "an expired key is still there"
            );
            Ok(())
        })
    }

    /// Clients that overwrite keys of the data set of `keys` keys, as fast as they can, each those of its own.
    pub fn overwriting(&self, count: usize, keys: u64) -> Result<Clients> {
        let address = self.address;
        let clients = count as u64;
        ensure!(keys >= clients, "{keys} keys for {count} clients");
        Clients::start(self.client, count, Duration::ZERO, move |index| {
            Overwriting::start(address, index as u64, clients, keys / clients)
        })
    }

    /// Clients that write increasing numbers and read them back, each on one connection.
    pub fn clients(&self, count: usize, pause: Duration) -> Result<Clients> {
        let address = self.address;
        Clients::start(self.client, count, pause, move |index| Sequence::start(address, index))
    }
}

/// Overwrites keys of the data set, all over it, with values of the same size, each with the number of its request.
#[derive(Debug)]
struct Overwriting {
    address: SocketAddr,
    connection: Connection,
    /// Of so many clients it is this one, and has so many keys.
    clients: u64,
    index: u64,
    own: u64,
    state: u64,
    /// The request under way, its keys, and what was acknowledged last of each.
    number: u64,
    asked: Vec<u64>,
    acknowledged: BTreeMap<u64, u64>,
}

/// Keys of one request: enough to keep the server busy.
const KEYS: usize = 50;
/// Keys that are read back at once.
const READ_BACK: usize = 500;

impl Overwriting {
    fn start(address: SocketAddr, index: u64, clients: u64, own: u64) -> Result<Self> {
        let connection = Connection::new(connect(address)?);
        let (asked, acknowledged) = (Vec::new(), BTreeMap::new());
        Ok(Self { address, connection, clients, index, own, state: index, number: 0, asked, acknowledged })
    }

    fn key(&self, number: u64) -> String {
        format!("key:{}", number * self.clients + self.index)
    }

    fn value(number: u64) -> String {
        format!("{number:0>width$}", width = VALUE_BYTES as usize)
    }

    /// Whether the value is one that the key may have: a request without an answer may have been carried out.
    fn is_right(&self, key: u64, value: &str) -> bool {
        let known = self.acknowledged.get(&key).is_some_and(|&number| value == Self::value(number));
        known || (self.asked.contains(&key) && value == Self::value(self.number))
    }

    fn random(&mut self, below: u64) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.state >> 33) % below
    }
}

impl Session for Overwriting {
    fn ask(&mut self) -> Result<(), Failure> {
        self.number += 1;
        let value = Self::value(self.number);
        self.asked = (0..KEYS).map(|_| self.random(self.own)).collect();
        let names: Vec<String> = self.asked.iter().map(|&key| self.key(key)).collect();
        let pairs = names.iter().flat_map(|name| [name.as_str(), value.as_str()]);
        let words: Vec<&str> = ["MSET"].into_iter().chain(pairs).collect();
        match self.connection.ask(&words)? {
            Reply::Simple(text) if text == "OK" => {
                self.acknowledged.extend(self.asked.drain(..).map(|key| (key, self.number)));
                Ok(())
            }
            other => Err(Failure::Wrong(format!("MSET: {other:?}"))),
        }
    }

    fn audit(&mut self) -> Result<u64> {
        let mut connection = Connection::new(connect(self.address)?);
        let keys: Vec<u64> = self.acknowledged.keys().copied().collect();
        let mut missing = 0;
        for part in keys.chunks(READ_BACK) {
            let names: Vec<String> = part.iter().map(|&key| self.key(key)).collect();
            let words: Vec<&str> = ["MGET"].into_iter().chain(names.iter().map(String::as_str)).collect();
            let Reply::Array(values) = connection.ask(&words)? else { bail!("no values") };
            ensure!(values.len() == part.len(), "{} values of {} keys", values.len(), part.len());
            let is_right =
                |(&key, value): (&u64, &Reply)| value.text().is_some_and(|value| self.is_right(key, &value));
            missing += part.iter().zip(&values).filter(|&pair| !is_right(pair)).count() as u64;
        }
        Ok(missing)
    }
}

/// The value of `name:` in the text of INFO.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// Writes 1, 2, 3 ... into a ring of keys.
#[derive(Debug)]
struct Sequence {
    address: SocketAddr,
    connection: Connection,
    index: usize,
    /// The last number whose write was acknowledged.
    acknowledged: u64,
}

impl Sequence {
    fn start(address: SocketAddr, index: usize) -> Result<Self> {
        Ok(Self { address, connection: Connection::new(connect(address)?), index, acknowledged: 0 })
    }

    fn key(&self, number: u64) -> String {
        format!("sequence:{}:{}", self.index, number % RING)
    }
}

impl Session for Sequence {
    fn ask(&mut self) -> Result<(), Failure> {
        let number = self.acknowledged + 1;
        let (key, value) = (self.key(number), number.to_string());
        let reply = self.connection.ask(&["SET", &key, &value])?;
        if reply != Reply::Simple("OK".into()) {
            return Err(Failure::Wrong(format!("SET {key} {value}: {reply:?}")));
        }
        self.acknowledged = number;
        let reply = self.connection.ask(&["GET", &key])?;
        if reply.text().as_deref() != Some(&value) {
            return Err(Failure::Wrong(format!("{key} is {reply:?} after {value} was acknowledged")));
        }
        Ok(())
    }

    fn audit(&mut self) -> Result<u64> {
        let mut connection = Connection::new(connect(self.address)?);
        let mut missing = 0;
        for number in self.acknowledged.saturating_sub(RING - 1).max(1)..=self.acknowledged {
            let found =
                connection.ask(&["GET", &self.key(number)])?.text().and_then(|text| text.parse().ok());
            // A write that was sent and not acknowledged may have overwritten the oldest of the ring.
            let unacknowledged = self.acknowledged + 1;
            let overwritten = number + RING == unacknowledged && found == Some(unacknowledged);
            missing += u64::from(found != Some(number) && !overwritten);
        }
        Ok(missing)
    }
}
