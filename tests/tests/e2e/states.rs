//! Kernel state of every kind is the same after a migration.

use anyhow::{Context, Result, ensure};
use pclive_tests::Lab;
use pclive_tests::workload::states::bundle;
use pclive_tests::workload::verifier::Verifier;

use crate::{migrate, ready};

/// Migrations in a row.
const TURNS: usize = 4;

#[test]
fn kernel_state_of_every_kind_survives_four_migrations() -> Result<()> {
    // `LAB_STATES=pipe,fifo` looks at some of them.
    let chosen = std::env::var("LAB_STATES").unwrap_or_default();
    let names: Vec<&str> = chosen.split(',').filter(|name| !name.is_empty()).collect();
    survive(&names)
}

#[test]
fn queues_of_more_than_a_message_survive_four_migrations() -> Result<()> {
    survive(&["full-queues"])
}

/// States of these names (none: all but the large ones) survive four migrations.
fn survive(names: &[&str]) -> Result<()> {
    if !ready(&["busybox"]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&bundle("states", names))?;
    let verifier = Verifier::new(&lab.client, container.v4);
    verifier.check().context("before the first migration")?;
    for turn in 0..TURNS {
        let (from, to) = if turn % 2 == 0 { (&lab.a, &lab.b) } else { (&lab.b, &lab.a) };
        // The memory of both is compared there and back as well.
        let options: &[&str] = if turn < 2 { &[] } else { &["--verify"] };
        let report = migrate(&container, from, to, options)?;
        let compared = report.verification.map(|compared| (compared.mappings, compared.objects));
        let any =
            compared.is_some_and(|(mappings, objects)| mappings > 0 && (!names.is_empty() || objects > 0));
        ensure!(any == (turn >= 2), "{compared:?} mappings and objects were compared in migration {turn}");
        verifier.check().with_context(|| format!("after migration {turn}"))?;
    }
    Ok(())
}
