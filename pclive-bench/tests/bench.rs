//! The benchmark as a user runs it: small, but with real containers and real migrations.
#![forbid(unsafe_code)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use pclive_tests::command::finish;
use pclive_tests::workload::postgres::installation;
use pclive_tests::workload::redis::{self, Redis};
use pclive_tests::workload::resp::Reply;
use pclive_tests::{Host, Lab, needs};
use serde_json::Value;

fn bench(words: &[&str]) -> Result<Output> {
    Command::new(env!("CARGO_BIN_EXE_pclive-bench")).args(words).output().context("cannot run pclive-bench")
}

/// Measures the smallest Redis by two strategies.
fn measure(out: &str) -> Result<Output> {
    let words =
        ["--strategies", "one-shot,global", "--records", "2000", "--reads", "50", "--repetitions", "1"];
    bench(&[&["run", "--out", out], &words[..]].concat())
}

fn runs(out: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(out.join("runs.jsonl")).context("no runs")?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn session_measures_reports_and_goes_on_where_it_was() -> Result<()> {
    if !needs::met(&["redis-server"]) {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let out = directory.path().display().to_string();
    let first = measure(&out)?;
    ensure!(first.status.success(), "{}", told(&first));
    let measured = runs(directory.path())?;
    ensure!(measured.len() == 2, "{measured:?}");
    for run in &measured {
        let measures = &run["outcome"]["measured"];
        let positive = |value: &Value| value.as_u64().is_some_and(|value| value > 0);
        let (report, clients) = (&measures["report"], &measures["clients"]);
        ensure!(positive(&report["downtime_ns"]) && positive(&report["bytes"]), "{run}");
        ensure!(positive(&clients["before"]["answers"]) && positive(&clients["after"]["answers"]), "{run}");
        ensure!(
            positive(&measures["container"]["at_rest"]["resident"]) && positive(&run["machine"]["cpus"]),
            "{run}"
        );
    }
    let page = std::fs::read_to_string(directory.path().join("report.html"))?;
    ensure!(
        page.contains("2 migrations of 2 settings") && page.contains("Where the downtime went"),
        "{page}"
    );
    ensure!(
        std::fs::read_to_string(directory.path().join("report.md"))?.contains("| one-shot |"),
        "no table"
    );

    // One of them is lost with the end of the file, as if the session had been interrupted there.
    let lines = std::fs::read_to_string(directory.path().join("runs.jsonl"))?;
    std::fs::write(directory.path().join("runs.jsonl"), &lines[..lines.len() - 10])?;
    let second = measure(&out)?;
    ensure!(second.status.success(), "{}", told(&second));
    let again = runs(directory.path())?;
    ensure!(again.len() == 2 && again[0] == measured[0], "the first is not measured again: {again:?}");
    ensure!(again[1]["setting"] == measured[1]["setting"], "{again:?}");
    ensure!(again[1]["began_unix_ms"] != measured[1]["began_unix_ms"], "the second was not measured again");

    let report = bench(&["report", "--out", &out])?;
    ensure!(report.status.success() && told(&report).contains("clients' longest wait"), "{}", told(&report));
    Ok(())
}

#[test]
fn search_and_transactions_are_measured_and_checked() -> Result<()> {
    let server = installation().context("PostgreSQL is not installed (`make deps`)");
    if !needs::met(&["sh", "redis-server"]) || !needs::allows(server.map(drop)) {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let out = directory.path().display().to_string();
    for only in ["graph of scale 18", "PostgreSQL"] {
        let output = bench(&["run", "--out", &out, "--only", only, "--repetitions", "1"])?;
        ensure!(output.status.success(), "{}", told(&output));
    }
    let measured = runs(directory.path())?;
    ensure!(measured.len() == 2, "{measured:?}");
    for run in &measured {
        let measures = &run["outcome"]["measured"];
        ensure!(measures["report"]["downtime_ns"].as_u64().is_some_and(|downtime| downtime > 0), "{run}");
        let has_clients = run["setting"]["workload"]["oltp"].is_object();
        ensure!(measures["clients"].is_null() != has_clients, "{run}");
        let answers = measures["clients"]["after"]["answers"].as_u64();
        ensure!(!has_clients || answers.is_some_and(|answers| answers > 0), "{run}");
    }
    Ok(())
}

#[test]
fn criu_is_measured_beside_it() -> Result<()> {
    let criu = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("criu").join("criu");
    let is_there = criu.exists().then_some(()).context("no CRIU in target/criu (`make criu`)");
    if !needs::met(&["redis-server"]) || !needs::allows(is_there) {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let out = directory.path().display().to_string();
    let words =
        ["--strategies", "global", "--records", "20000", "--reads", "50", "--repetitions", "1", "--criu"];
    let output = bench(&[&["run", "--out", &out], &words[..], &[&criu.display().to_string()]].concat())?;
    ensure!(output.status.success(), "{}", told(&output));
    let measured = runs(directory.path())?;
    let run = measured.iter().find(|run| run["setting"]["strategy"] == "CRIU").context("not by CRIU")?;
    let (report, clients) = (&run["outcome"]["measured"]["report"], &run["outcome"]["measured"]["clients"]);
    let is_positive = |value: &Value| value.as_u64().is_some_and(|value| value > 0);
    for name in ["downtime_ns", "restore_ns", "bytes"] {
        ensure!(is_positive(&report[name]), "{name}: {run}");
    }
    let pages = &report["rounds"][0]["data_pages"];
    ensure!(pages.as_u64().is_some_and(|pages| pages * 4096 > 20_000 * 1000), "not all pages: {run}");
    ensure!(
        is_positive(&report["source"]["cpu_ns"]) && is_positive(&report["destination"]["cpu_ns"]),
        "{run}"
    );
    ensure!(is_positive(&clients["after"]["answers"]) && clients["lost_updates"] == 0, "{run}");
    let tables = std::fs::read_to_string(directory.path().join("report.md"))?;
    ensure!(tables.contains("What CRIU takes") && tables.contains("; CRIU "), "{tables}");
    Ok(())
}

#[test]
fn criu_that_is_missing_or_old_is_refused() -> Result<()> {
    if !needs::met(&["redis-server"]) {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let old = directory.path().join("criu");
    std::fs::write(&old, "#!/bin/sh\necho Version: 3.17.1\n")?;
    std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o755))?;
    let out = directory.path().join("new").display().to_string();
    for (path, why) in [
        (directory.path().join("missing"), "no CRIU at"),
        (old, "is CRIU 3.17.1, but 4 or later"),
        ("/bin/true".into(), "is no CRIU"),
    ] {
        let output = bench(&["run", "--out", &out, "--criu", &path.display().to_string()])?;
        ensure!(output.status.code() == Some(1) && told(&output).contains(why), "{}", told(&output));
    }
    let unnamed = bench(&["run", "--out", &out, "--strategies", "CRIU"])?;
    ensure!(!unnamed.status.success() && told(&unnamed).contains("--criu PATH"), "{}", told(&unnamed));
    ensure!(!directory.path().join("new").exists(), "something was written");
    Ok(())
}

#[test]
fn wrong_words_are_named_and_nothing_is_measured() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let out = directory.path().join("new").display().to_string();
    for (words, told_of) in [
        (&["--strategies", "globl"][..], "globl is no strategy"),
        (&["--reads", "101"], "101"),
        (&["--links", "2g"], "2g"),
        (&["--rate", "0"], "0 is not in 1.."),
        (&["--records", "0"], "0 is not in 1.."),
        (&["--selection", "full", "--records", "5"], "cannot be used with"),
        (&["--source", "/run/a.sock", "--dest", "/run/b.sock"], "--redis <IP:PORT>"),
        (&["--redis", "127.0.0.1:6379"], "--source <AGENT>"),
    ] {
        let output = bench(&[&["run", "--out", &out], words].concat())?;
        ensure!(output.status.code() == Some(2) && told(&output).contains(told_of), "{}", told(&output));
    }
    let nothing = bench(&["run", "--out", &out, "--only", "MySQL"])?;
    ensure!(
        !nothing.status.success() && told(&nothing).contains("no setting has \"MySQL\""),
        "{}",
        told(&nothing)
    );
    let none = bench(&["run", "--out", &out, "--clients", "0", "--rate", "5"])?;
    ensure!(!none.status.success() && told(&none).contains("no clients"), "{}", told(&none));
    let large = bench(&["run", "--out", &out, "--records", "1000000000"])?;
    ensure!(!large.status.success() && told(&large).contains("free are"), "{}", told(&large));
    ensure!(!directory.path().join("new").exists(), "something was written");
    Ok(())
}

#[test]
fn report_of_nothing_says_what_to_do() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let output = bench(&["report", "--out", &directory.path().display().to_string()])?;
    ensure!(
        output.status.code() == Some(1) && told(&output).contains("nothing was measured"),
        "{}",
        told(&output)
    );
    Ok(())
}

#[test]
fn dry_run_tells_every_run() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let out = directory.path().display().to_string();
    let output = bench(&["run", "--dry-run", "--out", &out, "--reads", "10,90", "--repetitions", "3"])?;
    let told = told(&output);
    ensure!(output.status.success() && told.lines().count() == 2 * 2 * 3, "{told}");
    ensure!(told.contains("Redis of 250000 records, 10 % reads by one-shot over 10 Gbit/s, run 3"), "{told}");
    Ok(())
}

/// The hosts of a lab are to the program what two machines are: it knows their agents and where Redis answers.
#[test]
fn container_of_the_users_moves_to_and_fro() -> Result<()> {
    if !needs::met(&["redis-server"]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let container = lab.start(&redis::bundle("redis-1"))?;
    let directory = tempfile::tempdir()?;
    let agent =
        |host: &Host| lab.directory().join(host.name()).join("run/pclive/agent.sock").display().to_string();
    let (source, dest) = (agent(&lab.a), agent(&lab.b));
    let (address, out) =
        (format!("{}:{}", container.v4, redis::PORT), directory.path().display().to_string());
    let bench = || {
        let mut bench = lab.client.command(env!("CARGO_BIN_EXE_pclive-bench"));
        bench.args([
            "run",
            "--out",
            &out,
            "--source",
            &source,
            "--dest",
            &dest,
            "--container",
            &container.name,
        ]);
        bench.args(["--to", lab.b.name(), "--back", lab.a.name(), "--redis", &address]);
        bench.args(["--strategies", "global", "--records", "2000", "--repetitions", "2"]);
        finish(&mut bench)
    };
    let server = Redis::new(&lab.client, container.v4);
    server.ask(&["SET", "of-others", "1"])?;
    let refused = bench()?;
    ensure!(!refused.status.success() && told(&refused).contains("has keys of others"), "{}", told(&refused));
    ensure!(server.ask(&["GET", "of-others"])?.text().as_deref() == Some("1"), "data of others are gone");

    server.ask(&["DEL", "of-others"])?;
    let output = bench()?;
    ensure!(output.status.success(), "{}", told(&output));
    let measured: Vec<Value> =
        runs(directory.path())?.into_iter().filter(|run| !run["outcome"]["measured"].is_null()).collect();
    ensure!(
        measured.len() == 2 && measured.iter().all(|run| run["setting"]["link"] == "own"),
        "{measured:?}"
    );
    ensure!(server.ask(&["DBSIZE"])? == Reply::Integer(0), "something is left in Redis");
    ensure!(container.status(&lab.a)?.as_deref() == Some("running"), "it is not back where it was");
    let page = std::fs::read_to_string(directory.path().join("report.html"))?;
    ensure!(!page.contains("on one machine"), "{page}");
    ensure!(
        page.contains("of others") && page.contains("measured another time"),
        "the refusal is forgotten: {page}"
    );
    Ok(())
}
