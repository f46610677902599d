//! One migration by runc and CRIU, step by step.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use pclive_tests::command::finish;
use pclive_tests::ctl::{Ledger, Report, Round, Usage};
use pclive_tests::footprint::tasks_cpu_time;
use pclive_tests::measure::Moved;
use pclive_tests::wait::until;
use pclive_tests::{Container, Host, Lab};

use super::images::Images;
use super::stats::Dump;
use super::{Criu, NETWORK, PRE_DUMPS, plug, succeeded, unplug};

/// Where a page server listens, and after it the receiver of the other images.
pub(super) const PORT: u16 = 7420;
/// How long a command may take, in the words of timeout(1).
pub(super) const LIMIT: &str = "300s";
/// How long a page server may take to listen.
const START: Duration = Duration::from_secs(10);
/// What keeps a copy that is not there yet from answering, at the destination: packets that come too early are dropped, as
/// CRIU does at the source, and not refused.
const HOLD: &str =
    "add table inet hold; add chain inet hold input { type filter hook input priority 0; policy drop; }";
const LET_GO: &str = "delete table inet hold";

/// A container on its way.
#[derive(Debug)]
pub(super) struct Migration<'a> {
    criu: &'a Criu,
    lab: &'a Lab,
    container: &'a Container,
    images: Images<'a>,
    spent: Spent,
}

impl<'a> Migration<'a> {
    pub(super) fn new(criu: &'a Criu, lab: &'a Lab, container: &'a Container) -> Result<Self> {
        Ok(Self { criu, lab, container, images: Images::new(lab)?, spent: Spent::begin() })
    }

    pub(super) fn run(mut self) -> Result<Moved> {
        let asked = Instant::now();
        let last = if self.criu.tracks_writes { PRE_DUMPS } else { 0 };
        let mut rounds = Vec::new();
        for number in 0..last {
            rounds.push(self.dump(number, false)?.1);
        }
        let (dump, round) = self.dump(last, true)?;
        rounds.push(round);
        let dumped = instant(dump.ended)?;
        let stopped = dumped.checked_sub(dump.frozen + dump.freezing).context("a dump before the boot")?;
        self.images.copy(&mut self.spent)?;
        let copied = Instant::now();
        unplug(&self.lab.a)?;
        self.nft(HOLD)?;
        plug(&self.lab.b)?;
        let connected = Instant::now();
        self.restore(last)?;
        let restored = Instant::now();
        self.nft(LET_GO)?;
        let ended = Instant::now();
        self.spent.at_destination();
        self.spent.by_tasks(tasks_cpu_time(self.container, &self.lab.b)?);
        let bytes = self.images.bytes(&self.lab.b)?;
        let ledger = Ledger {
            freeze_ns: nanoseconds(dump.freezing),
            final_scan_ns: 0,
            capture_ns: nanoseconds(dump.frozen.saturating_sub(dump.writing)),
            transfer_ns: nanoseconds(dump.writing + copied.saturating_duration_since(dumped)),
            // CRIU does not tell what memory takes of it.
            fill_ns: 0,
            restore_ns: nanoseconds(restored - connected),
            commit_ns: nanoseconds(connected - copied),
            resume_ns: nanoseconds(ended - restored),
            verify_ns: 0,
            // Not known.
            round_trips: 0,
        };
        let usage = |cpu_ns, peak_memory_bytes| Some(Usage { cpu_ns, peak_memory_bytes });
        let report = Report {
            downtime_ns: nanoseconds(ended - stopped),
            ledger: Some(ledger),
            restore_ns: nanoseconds(restored - connected),
            rounds,
            total_ns: nanoseconds(ended - asked),
            bytes,
            source: usage(self.spent.source_ns, self.images.bytes(&self.lab.a)?),
            destination: usage(self.spent.destination_ns, bytes),
            staging_peak_bytes: bytes,
            verdict: self.criu.described(),
            predicted_downtime_ns: None,
            verification: None,
            tail: None,
        };
        Ok(Moved { report, asked, rounds_began: asked, stopped, ended })
    }

    /// One dump, whose pages go to a page server; a container that is dumped for the last time does not run any more.
    fn dump(&mut self, number: u32, is_last: bool) -> Result<(Dump, Round)> {
        let (source, directory) = (&self.lab.a, self.images.make(number)?);
        let parent = number.checked_sub(1).map(|number| format!("../{number}"));
        let mut server = self.page_server(&directory, parent.as_deref())?;
        let began = Instant::now();
        let mut checkpoint = self.runc(source, "checkpoint", &directory);
        checkpoint.args(["--page-server", &format!("{}:{PORT}", self.lab.b.v4())]);
        if let Some(parent) = &parent {
            checkpoint.args(["--parent-path", parent]);
        }
        if !is_last {
            checkpoint.arg("--pre-dump");
        }
        let end = finish(checkpoint.arg(&self.container.name)).and_then(|output| succeeded(&output));
        let took = began.elapsed();
        self.spent.at_source();
        if end.is_err() {
            // It would wait for pages until its time is over.
            let _ = server.kill();
        }
        let server = server.wait()?;
        self.spent.at_destination();
        let errors = || {
            let of_server = self.images.errors(&self.lab.b, number, "page-server.log");
            self.images.errors(source, number, "dump.log") + &of_server
        };
        end.map_err(|error| anyhow!("runc checkpoint: {error:#}{}", errors()))?;
        if !server.success() {
            bail!("the page server: {server}{}", errors());
        }
        let dump = Dump::read(&self.images.seen(source, number).join("stats-dump"))?;
        let bytes = dump.pages * 4096;
        let round = Round {
            number,
            r#final: is_last,
            data_pages: dump.pages,
            bytes,
            duration_ns: nanoseconds(took),
            bytes_per_second: (bytes as f64 / took.as_secs_f64()) as u64,
        };
        Ok((dump, round))
    }

    /// Takes pages into `directory`, at the destination; listens when this returns.
    fn page_server(&self, directory: &str, parent: Option<&str>) -> Result<Child> {
        let node = self.lab.b.node();
        let mut server = node.command("timeout");
        server.arg(LIMIT).arg(&self.criu.path);
        server.args(["page-server", "--images-dir", directory, "--log-file", "page-server.log"]);
        server.args(["--address", &self.lab.b.v4().to_string(), "--port", &PORT.to_string()]);
        if let Some(parent) = parent {
            server.args(["--prev-images-dir", parent]);
        }
        let mut server = server.stdin(Stdio::null()).spawn().context("cannot start the page server")?;
        let table = format!("/proc/{}/net/tcp", node.pid());
        until("the page server", START, || {
            if let Some(status) = server.try_wait()? {
                bail!("the page server ended with {status}");
            }
            Ok(is_listened(&fs::read_to_string(&table)?, PORT))
        })?;
        Ok(server)
    }

    fn restore(&self, number: u32) -> Result<()> {
        let (host, name) = (&self.lab.b, &self.container.name);
        let mut restore = self.runc(host, "restore", &self.images.of(number));
        restore.arg("--detach").arg("--bundle").arg(host.bundle(name)).arg(name);
        let end = finish(&mut restore).and_then(|output| succeeded(&output));
        end.map_err(|error| {
            anyhow!("runc restore: {error:#}{}", self.images.errors(host, number, "restore.log"))
        })
    }

    fn runc(&self, host: &Host, command: &str, directory: &str) -> Command {
        let mut runc = host.node().command("timeout");
        runc.args([LIMIT, "runc", "--criu"]).arg(&self.criu.path).args([command, "--tcp-established"]);
        runc.args(["--image-path", directory, "--work-path", directory]);
        runc
    }

    /// Changes the filter of the container's network at the destination.
    fn nft(&self, rules: &str) -> Result<()> {
        self.lab.b.node().run(&["ip", "netns", "exec", NETWORK, "nft", rules]).map(drop)
    }
}

/// Whether somebody listens at the port, by `/proc/net/tcp`.
fn is_listened(table: &str, port: u16) -> bool {
    let local = format!(":{port:04X}");
    table.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next().is_some_and(|address| address.ends_with(&local)) && words.nth(1) == Some("0A")
    })
}

/// What this clock showed at that time.
fn instant(time: SystemTime) -> Result<Instant> {
    let ago = time.elapsed().unwrap_or_default();
    Instant::now().checked_sub(ago).context("a time before the boot")
}

/// CPU time of processes that have ended, as this process has waited for them, by the host on which they ran.
#[derive(Debug)]
pub(super) struct Spent {
    source_ns: u64,
    destination_ns: u64,
    counted_ns: u64,
}

impl Spent {
    fn begin() -> Self {
        Self { source_ns: 0, destination_ns: 0, counted_ns: of_children() }
    }

    /// What has ended since was at the source.
    pub(super) fn at_source(&mut self) {
        self.source_ns += self.since();
    }

    /// It was at the destination.
    pub(super) fn at_destination(&mut self) {
        self.destination_ns += self.since();
    }

    /// Tasks put their memory back themselves before they are let go, and live.
    fn by_tasks(&mut self, time: Duration) {
        self.destination_ns += nanoseconds(time);
    }

    fn since(&mut self) -> u64 {
        let now = of_children();
        now.saturating_sub(std::mem::replace(&mut self.counted_ns, now))
    }
}

fn of_children() -> u64 {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else { return 0 };
    let spent = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    u64::try_from(spent).unwrap_or(0) * 1000
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listener_is_found_by_its_port_and_state() {
        let table = "  sl  local_address rem_address   st\n   0: 0200004D:1CFC 00000000:0000 0A 00000000\n";
        assert!(is_listened(table, 0x1CFC));
        assert!(!is_listened(table, 0x1CFD));
        assert!(!is_listened(&table.replace(" 0A ", " 01 "), 0x1CFC));
    }
}
