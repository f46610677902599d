//! Transactions on PostgreSQL, written against the public description of sysbench's `oltp_read_write`: ten rows by their
//! keys, four ranges of a hundred rows, an update of an indexed column and one of another, a row deleted and inserted
//! again.
//!
//! Each transaction also counts itself in a row of its client, so that afterwards what the server has can be compared with
//! what was acknowledged. One that the server refuses because of another (a deadlock, a row that came back just then) is
//! given up, as sysbench does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Result, ensure};
use pclive_tests::Node;
use pclive_tests::random::Random;
use pclive_tests::workload::postgres::{Connection, Postgres};

use crate::clients::{Answer, Crew, Failure, Record};
use crate::setting::Oltp;

/// Rows that are read by their keys in a transaction.
const POINTS: usize = 10;
/// Rows of a range.
const RANGE: u64 = 100;
/// SQLSTATE of a deadlock, of a row that another transaction has inserted, and of an update that came too late.
const GIVEN_UP: [&str; 3] = ["40P01", "23505", "40001"];

/// A server with the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Server<'a> {
    node: &'a Node,
    postgres: Postgres<'a>,
    oltp: Oltp,
}

impl<'a> Server<'a> {
    /// Makes the table on the server at `address`, and a row for each client.
    pub(crate) fn load(node: &'a Node, address: SocketAddr, oltp: Oltp) -> Result<Self> {
        let postgres = Postgres::new(node, address.ip())?;
        let Oltp { rows, clients } = oltp;
        let statements = [
            "CREATE TABLE sbtest (id bigint PRIMARY KEY, k bigint NOT NULL, c char(120) NOT NULL, pad char(60) NOT NULL)"
                .to_owned(),
            format!(
                "INSERT INTO sbtest SELECT n, hashint8(n)::bigint % {rows}, repeat(md5(n::text), 3), md5(n::text) \
                 FROM generate_series(1, {rows}) n"
            ),
            "CREATE INDEX sbtest_k ON sbtest (k)".to_owned(),
            "CREATE TABLE progress (client int PRIMARY KEY, done bigint NOT NULL)".to_owned(),
            format!("INSERT INTO progress SELECT n, 0 FROM generate_series(0, {} - 1) n", clients),
            "ANALYZE".to_owned(),
        ];
        for statement in statements {
            postgres.ask(&statement)?;
        }
        Ok(Self { node, postgres, oltp })
    }

    /// Starts the clients.
    pub(crate) fn start(self, seed: u64) -> Result<Clients<'a>> {
        let client = |number: u16, start, stop: Arc<AtomicBool>| {
            let (address, rows) = (self.postgres.address(), self.oltp.rows);
            self.node.in_network(move || {
                let connection = Connection::open(address)?;
                let random = Random::new(seed.wrapping_mul(0x1_0001).wrapping_add(u64::from(number)));
                let mut client = Client { connection, number, rows, random, start, seen: Seen::default() };
                client.run(&stop);
                Ok(client.seen)
            })
        };
        Ok(Clients { server: self, crew: Crew::start(self.oltp.clients, client)? })
    }

    /// Every row is there, and each client's count is that of what it was told; how many transactions are missing.
    fn audit(&self, seen: &[Seen]) -> Result<u64> {
        let count = self.postgres.ask("SELECT count(*) FROM sbtest")?;
        ensure!(count == [self.oltp.rows.to_string()], "the table has {count:?} rows of {}", self.oltp.rows);
        let done = self.postgres.ask("SELECT done FROM progress ORDER BY client")?;
        ensure!(done.len() == seen.len(), "{} of {} clients are known", done.len(), seen.len());
        let mut lost = 0;
        for (done, seen) in done.iter().zip(seen) {
            // The last one may be there without an answer.
            let (done, told): (u64, u64) = (done.parse()?, seen.transactions);
            ensure!(
                done <= told + u64::from(seen.failure.is_some()),
                "{done} transactions, {told} were told"
            );
            lost += told.saturating_sub(done);
        }
        Ok(lost)
    }
}

/// Clients at work. They end when stopped or dropped.
#[derive(Debug)]
pub(crate) struct Clients<'a> {
    server: Server<'a>,
    crew: Crew<Seen>,
}

impl Clients<'_> {
    /// Ends the clients after their transactions, and compares what is there with what they were told.
    pub(crate) fn stop(mut self) -> Result<Record> {
        let seen = self.crew.join()?;
        let lost_updates = self.server.audit(&seen)?;
        let seen = seen.into_iter().map(|seen| (seen.answers, seen.failure));
        Ok(Record::new(self.crew.start, seen, lost_updates))
    }
}

/// What one client saw.
#[derive(Debug, Default)]
struct Seen {
    answers: Vec<Answer>,
    failure: Option<Failure>,
    /// Transactions whose commit was acknowledged.
    transactions: u64,
}

struct Client {
    connection: Connection,
    number: u16,
    rows: u64,
    random: Random,
    start: Instant,
    seen: Seen,
}

impl Client {
    /// One transaction after the other, until it is told to stop or something fails.
    fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) && self.seen.failure.is_none() {
            let statements = statements(self.number, self.rows, &mut self.random);
            match statements.iter().try_for_each(|statement| self.ask(statement)) {
                Ok(()) => self.seen.transactions += 1,
                Err(told) if GIVEN_UP.iter().any(|state| told.contains(&format!(" C{state} "))) => {
                    if let Err(told) = self.ask("ROLLBACK") {
                        self.seen.failure = Some(Failure::Lost(told));
                    }
                }
                Err(told) => self.seen.failure = Some(Failure::Lost(told)),
            }
        }
    }

    fn ask(&mut self, statement: &str) -> Result<(), String> {
        let asked = Instant::now();
        let told = self.connection.ask(statement);
        let took = asked.elapsed();
        self.seen.answers.push(Answer { at: asked + took - self.start, took });
        told.map(drop).map_err(|error| format!("{statement}: {error:#}"))
    }
}

/// A transaction of a client on a table of so many rows.
fn statements(client: u16, rows: u64, random: &mut Random) -> Vec<String> {
    let mut id = || random.next() % rows + 1;
    let mut all = vec!["BEGIN".to_owned()];
    all.extend((0..POINTS).map(|_| format!("SELECT c FROM sbtest WHERE id = {}", id())));
    let ranges = ["c", "sum(k)", "c", "DISTINCT c"].into_iter().zip(["", "", " ORDER BY c", " ORDER BY c"]);
    all.extend(ranges.map(|(what, order)| {
        let first = id();
        format!("SELECT {what} FROM sbtest WHERE id BETWEEN {first} AND {}{order}", first + RANGE - 1)
    }));
    all.push(format!("UPDATE sbtest SET k = k + 1 WHERE id = {}", id()));
    let text = id();
    all.push(format!("UPDATE sbtest SET c = repeat(md5('{text}'), 3) WHERE id = {}", id()));
    let (moved, k) = (id(), id());
    all.push(format!("DELETE FROM sbtest WHERE id = {moved}"));
    all.push(format!("INSERT INTO sbtest VALUES ({moved}, {k}, repeat(md5('{k}'), 3), md5('{moved}'))"));
    all.push(format!("UPDATE progress SET done = done + 1 WHERE client = {client}"));
    all.push("COMMIT".to_owned());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transaction_has_the_statements_of_its_description() {
        let all = statements(3, 1000, &mut Random::new(1));
        let count = |word: &str| all.iter().filter(|statement| statement.starts_with(word)).count();
        assert_eq!((count("SELECT"), count("UPDATE"), count("DELETE"), count("INSERT")), (14, 3, 1, 1));
        assert_eq!((all[0].as_str(), all[all.len() - 1].as_str()), ("BEGIN", "COMMIT"));
        assert!(all.iter().any(|statement| statement.ends_with("WHERE client = 3")));
    }
}
