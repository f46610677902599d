//! Kernel state of every kind is the same after a migration.

use anyhow::{Context, Result, ensure};
use pclive_tests::huge_pages::HugePages;
use pclive_tests::workload::states::bundle;
use pclive_tests::workload::verifier::Verifier;
use pclive_tests::{Bundle, Lab, needs};

use crate::{migrate, ready};

/// Migrations in a row.
const TURNS: usize = 4;

#[test]
fn kernel_state_of_every_kind_survives_four_migrations() -> Result<()> {
    // `LAB_STATES=pipe,fifo` looks at some of them.
    let chosen = std::env::var("LAB_STATES").unwrap_or_default();
    let names: Vec<&str> = chosen.split(',').filter(|name| !name.is_empty()).collect();
    survive(&bundle("states", &names), !names.is_empty())
}

#[test]
fn queues_of_more_than_a_message_survive_four_migrations() -> Result<()> {
    survive(&bundle("states", &["full-queues"]), true)
}

#[test]
fn huge_pages_of_every_kind_survive_four_migrations() -> Result<()> {
    if !ready(&["busybox"]) {
        return Ok(());
    }
    let _allowed = HugePages::allow(100)?;
    let kinds = ["huge-private", "huge-shared", "huge-memfd", "huge-segment", "huge-files"];
    survive(&bundle("huge", &kinds).huge_pages(), false)
}

#[test]
fn transparent_huge_pages_stay_huge() -> Result<()> {
    let transparent = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    let makes = transparent.is_ok_and(|chosen| !chosen.contains("[never]"));
    if !ready(&[])
        || !needs::allows(makes.then_some(()).context("this kernel makes no transparent huge pages"))
    {
        return Ok(());
    }
    survive(&bundle("transparent", &["huge-transparent"]), true)
}

#[test]
fn huge_pages_that_the_destination_lacks_are_refused_before_the_freeze() -> Result<()> {
    if !ready(&["busybox"]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    // The hosts have one kernel, so that there are pages for one of them only.
    let allowed = HugePages::allow(2)?;
    let container = lab.start(&bundle("huge", &["huge-shared"]).huge_pages())?;
    let here = allowed.withdraw()?;
    if !needs::allows((here < 2).then_some(()).context("this host keeps free huge pages")) {
        return Ok(());
    }
    let verifier = Verifier::new(&lab.client, container.v4);
    verifier.check()?;
    let refusal = lab.a.migrate_in_vain(&container.name, "host-b", &[])?;
    let told = format!("{:?}", refusal.problem);
    let expected = format!("cannot map 2 huge pages of 2 MiB: this host can give {here} more");
    ensure!(told.contains(&expected), "{told}");
    verifier.check().map(drop)
}

/// A container of `states` survives four migrations. `few`: it may be without shared memory.
fn survive(bundle: &Bundle, few: bool) -> Result<()> {
    if !ready(&["busybox"]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(bundle)?;
    let verifier = Verifier::new(&lab.client, container.v4);
    verifier.check().context("before the first migration")?;
    for turn in 0..TURNS {
        let (from, to) = if turn % 2 == 0 { (&lab.a, &lab.b) } else { (&lab.b, &lab.a) };
        // The memory of both is compared there and back as well.
        let options: &[&str] = if turn < 2 { &[] } else { &["--verify"] };
        let report = migrate(&container, from, to, options)?;
        let compared = report.verification.map(|compared| (compared.mappings, compared.objects));
        let any = compared.is_some_and(|(mappings, objects)| mappings > 0 && (few || objects > 0));
        ensure!(any == (turn >= 2), "{compared:?} mappings and objects were compared in migration {turn}");
        verifier.check().with_context(|| format!("after migration {turn}"))?;
    }
    Ok(())
}
