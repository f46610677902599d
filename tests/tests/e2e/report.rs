//! A page about a migration, as it is written at both ends.

use anyhow::{Context, Result, ensure};
use pclive_tests::command::{finish, output};
use pclive_tests::workload::redis::{Redis, bundle};
use pclive_tests::{Host, Lab};
use serde_json::Value;

use crate::{migrate, ready};

/// The page about the agent's newest migration.
fn page(host: &Host) -> Result<String> {
    let newest = host.migrations()?.into_iter().next().context("no migration")?;
    let id = newest["migration_id"].as_str().context("no id")?.to_owned();
    output(host.ctl()?.args(["report", &id, "--output", "-"]))
}

#[test]
fn page_tells_a_migration_at_both_ends() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&bundle("redis-1"))?;
    Redis::new(&lab.client, container.v4).populate(32 << 20)?;
    let report = migrate(&container, &lab.a, &lab.b, &["--verify"])?;
    let (here, there) = (page(&lab.a)?, page(&lab.b)?);
    for (page, title) in [(&here, "redis-1 to host-b"), (&there, "redis-1 from host-a")] {
        ensure!(page.contains(&format!("<title>Migration of {title}</title>")), "{page}");
        for told in ["<td>restore</td>", "<td>verify</td>", "<td>final</td>"] {
            ensure!(page.contains(told), "no {told} in {page}");
        }
    }
    for told in ["<td>freeze</td>", "</b>downtime", "<dt>compared</dt>"] {
        ensure!(here.contains(told), "no {told} in {here}");
    }
    ensure!(
        here.matches("<tr class=\"round\">").count() == report.rounds.len(),
        "rounds are missing: {here}"
    );
    Ok(())
}

#[test]
fn page_is_written_where_it_is_wanted_or_refused() -> Result<()> {
    if !ready(&["redis-server"]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&bundle("redis-1"))?;
    let refused = lab.a.migrate_in_vain(&container.name, "host-without-agent", &[])?;
    let id = lab.a.migrations()?[0]["migration_id"].as_str().context("no id")?.to_owned();
    let path = lab.directory().join("page.html");
    let path = path.to_str().context("not UTF-8")?;
    let written = lab.a.ask(&["report", &id, "--output", path])?;
    ensure!(written["file"] == path, "{written}");
    let page = std::fs::read_to_string(path)?;
    ensure!(page.contains("error: ") && page.contains("host-without-agent"), "{page} of {refused:?}");
    let full = finish(lab.a.ctl()?.args(["--json", "report", &id, "--output", "/dev/full"]))?;
    let said: Value = serde_json::from_slice(&full.stdout)?;
    ensure!(full.status.code() == Some(1), "{full:?}");
    ensure!(said["error"]["message"].as_str().is_some_and(|text| text.contains("/dev/full")), "{said}");
    let unknown = lab.a.ask(&["report", "no-such-migration"])?;
    ensure!(unknown["error"]["code"] == "migration-not-found", "{unknown}");
    Ok(())
}
