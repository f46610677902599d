//! PostgreSQL with clients that write: shared buffers and a process per connection.

use std::time::Duration;

use anyhow::{Result, ensure};
use pclive_tests::Lab;
use pclive_tests::workload::postgres::{Postgres, bundle, installation};

use crate::{migrate, ready};

/// What the buffers hold.
const MIB: u64 = 192;
const CLIENTS: usize = 4;
/// Answers that show that the clients go on.
const MORE: u64 = 500;

#[test]
fn postgres_with_clients_moves_there_and_back_and_forks_for_new_ones() -> Result<()> {
    if !ready(&["sh"]) {
        return Ok(());
    }
    if installation().is_none() {
        let ci = std::env::var("CI").is_ok_and(|value| value == "true");
        ensure!(!ci, "PostgreSQL is not installed, and CI=true forbids skipping");
        eprintln!("NOT TESTED: PostgreSQL is not installed (`make deps`)");
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&bundle("postgres", "256MB")?)?;
    let server = Postgres::new(&lab.client, container.v4)?;
    let digest = server.populate(MIB)?;
    let clients = server.clients(CLIENTS)?;
    clients.wait_for_answers(MORE)?;
    for (from, to) in [(&lab.a, &lab.b), (&lab.b, &lab.a)] {
        clients.take_gap();
        let report = migrate(&container, from, to, &["--strategy", "global"])?;
        clients.wait_for_answers(MORE)?;
        eprintln!(
            "downtime {:?}, restore {:?}, client gap {:?}, {} rounds, {} bytes",
            Duration::from_nanos(report.downtime_ns),
            Duration::from_nanos(report.restore_ns),
            clients.take_gap(),
            report.rounds.len(),
            report.bytes
        );
        ensure!(server.digest()? == digest, "the table has changed");
        server.ask("VACUUM ANALYZE sequence")?;
    }
    clients.stop()?.nothing_lost()
}
