//! The same workload moved by runc with CRIU, as users do it: memory goes over the link to CRIU's page server, every other
//! image by tar, and runc restores from them. Images are in memory (tmpfs), the best case; nothing is encrypted.
//!
//! Where the kernel tracks writes for CRIU (soft-dirty), memory goes in rounds while the container runs; elsewhere all of
//! it goes while the container stands still.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use pclive_tests::command::{finish, words};
use pclive_tests::ctl::{Ledger, Report, Round, Usage};
use pclive_tests::measure::Moved;
use pclive_tests::wait::until;
use pclive_tests::{Bundle, Container, Host, Lab};
use prost::Message;

/// The oldest version that is of interest.
const OLDEST_MAJOR: u32 = 4;
/// Rounds before the last, where writes are tracked.
const PRE_DUMPS: u32 = 2;
/// Where a page server listens, and after it the destination's tar.
const PORT: u16 = 7420;
/// How long a server may take to listen.
const LIMIT: Duration = Duration::from_secs(10);
/// The container's network on both hosts, and what its host calls the other end of its interface.
const NETWORK: &str = "criu";
const LINK: &str = "net-criu";
/// The container's hardware address: the same at both hosts, so that no client has to learn it.
const HARDWARE_ADDRESS: &str = "02:77:00:00:02:01";
/// Errors in CRIU's log that are told with a failure.
const MOST_ERRORS: usize = 8;

/// CRIU on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Criu {
    path: PathBuf,
    /// What it says of its version.
    pub(crate) version: String,
    /// Whether the kernel tells it which pages were written.
    tracks_writes: bool,
}

impl Criu {
    /// Looks at the program.
    ///
    /// # Errors
    /// When it does not start, is too old, or cannot work on this kernel.
    pub(crate) fn at(path: &Path) -> Result<Self> {
        let path = fs::canonicalize(path).with_context(|| format!("no CRIU at {}", path.display()))?;
        let ask = |words: &[&str]| finish(Command::new(&path).args(words));
        let said = ask(&["--version"])?;
        let said = String::from_utf8_lossy(&said.stdout);
        let version = version(&said).with_context(|| format!("{} is no CRIU: {said}", path.display()))?;
        let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        ensure!(
            major >= Some(OLDEST_MAJOR),
            "{} is CRIU {version}, but {OLDEST_MAJOR} or later is compared with; `tests/install-criu DIR` fetches one",
            path.display()
        );
        let check = ask(&["check"])?;
        let why = String::from_utf8_lossy(&check.stderr);
        ensure!(check.status.success(), "CRIU {version} does not work on this kernel: {}", why.trim());
        let tracks_writes = ask(&["check", "--feature", "mem_dirty_track"])?.status.success();
        Ok(Self { version: format!("CRIU {version}"), path, tracks_writes })
    }

    /// Starts a container that CRIU can move: in a network that its host has made, on both hosts, and with an output that
    /// is no file of its host.
    pub(crate) fn start(&self, lab: &Lab, bundle: &Bundle) -> Result<Container> {
        let options = lab.directory().join("criu.conf");
        fs::write(&options, "network-lock nftables\n").context("cannot write CRIU's options")?;
        let bundle =
            bundle.clone().network(NETWORK).annotation("org.criu.config", &options.display().to_string());
        let container = lab.install(&bundle, &[&lab.a, &lab.b])?;
        for host in [&lab.b, &lab.a] {
            host.network(NETWORK, &format!("{}/16", container.v4))?;
            let address = ["ip", "-n", NETWORK, "link", "set", "eth0", "address", HARDWARE_ADDRESS];
            host.node().run(&address)?;
            connect(host, host.name() == lab.a.name())?;
        }
        container.start_without_output(&lab.a)?;
        Ok(container)
    }

    /// Moves it from host a to host b.
    ///
    /// # Errors
    /// When a step fails, with the end of its log; the container is then where that step left it.
    pub(crate) fn migrate(&self, lab: &Lab, container: &Container) -> Result<Moved> {
        let asked = Instant::now();
        let images = Images::new(lab)?;
        let mut spent = Spent::default();
        let last = if self.tracks_writes { PRE_DUMPS } else { 0 };
        let mut rounds = Vec::new();
        for number in 0..last {
            let (_, round) = self.dump(lab, container, &images, number, false, &mut spent)?;
            rounds.push(round);
        }
        let (stats, round) = self.dump(lab, container, &images, last, true, &mut spent)?;
        rounds.push(round);
        let dumped = Instant::now();
        let frozen = Duration::from_micros(u64::from(stats.freezing_us) + u64::from(stats.frozen_us));
        copy(lab, &images, &mut spent)?;
        let copied = Instant::now();
        connect(&lab.a, false)?;
        connect(&lab.b, true)?;
        let connected = Instant::now();
        self.restore(lab, container, &images, last)?;
        let ended = Instant::now();
        spent.at_destination();
        let bytes = images.bytes(&lab.b)?;
        let written = Duration::from_micros(u64::from(stats.memory_write_us));
        let ledger = Ledger {
            freeze_ns: u64::from(stats.freezing_us) * 1000,
            final_scan_ns: 0,
            capture_ns: nanoseconds(
                Duration::from_micros(u64::from(stats.frozen_us)).saturating_sub(written),
            ),
            transfer_ns: nanoseconds(written + (copied - dumped)),
            fill_ns: 0,
            restore_ns: nanoseconds(ended - connected),
            commit_ns: nanoseconds(connected - copied),
            resume_ns: 0,
            verify_ns: 0,
        };
        let report = Report {
            downtime_ns: nanoseconds(frozen + (ended - dumped)),
            ledger: Some(ledger),
            restore_ns: nanoseconds(ended - connected),
            rounds,
            total_ns: nanoseconds(ended - asked),
            bytes,
            source: Some(Usage { cpu_ns: spent.source_ns, peak_memory_bytes: images.bytes(&lab.a)? }),
            destination: Some(Usage { cpu_ns: spent.destination_ns, peak_memory_bytes: bytes }),
            staging_peak_bytes: bytes,
            verdict: self.version.clone(),
            verification: None,
        };
        Ok(Moved { report, asked, rounds_began: asked, stopped: dumped - frozen, ended })
    }

    /// One dump, whose pages go to a page server; a container that is dumped for the last time does not run any more.
    fn dump(
        &self,
        lab: &Lab,
        container: &Container,
        images: &Images,
        number: u32,
        is_last: bool,
        spent: &mut Spent,
    ) -> Result<(DumpStats, Round)> {
        let directory = images.round(number);
        for host in [&lab.a, &lab.b] {
            host.node().run(&["mkdir", &directory])?;
        }
        let parent = number.checked_sub(1).map(|number| format!("../{number}"));
        let server = self.page_server(lab, &directory, parent.as_deref())?;
        let began = Instant::now();
        let mut checkpoint = self.runc(&lab.a, "checkpoint", &directory);
        checkpoint.args(["--page-server", &format!("{}:{PORT}", lab.b.v4())]);
        if let Some(parent) = &parent {
            checkpoint.args(["--parent-path", parent]);
        }
        if !is_last {
            checkpoint.arg("--pre-dump");
        }
        let end = done(checkpoint.arg(&container.name));
        let took = began.elapsed();
        spent.at_source();
        end.map_err(|error| anyhow!("{error:#}\n{}", images.log(&lab.a, number, "dump.log")))?;
        finished(server).context("the page server")?;
        spent.at_destination();
        let stats = DumpStats::read(&images.seen(&lab.a, number).join("stats-dump"))?;
        let pages = stats.pages_written;
        let bytes = pages * 4096;
        let round = Round {
            number,
            r#final: is_last,
            data_pages: pages,
            bytes,
            duration_ns: nanoseconds(took),
            bytes_per_second: (bytes as f64 / took.as_secs_f64()) as u64,
        };
        Ok((stats, round))
    }

    /// Takes pages into `directory`, at the destination; listens when this returns.
    fn page_server(&self, lab: &Lab, directory: &str, parent: Option<&str>) -> Result<Child> {
        let mut server = lab.b.node().command(&self.path.display().to_string());
        server.args(["page-server", "--images-dir", directory, "--log-file", "page-server.log"]);
        server.args(["--address", &lab.b.v4().to_string(), "--port", &PORT.to_string()]);
        if let Some(parent) = parent {
            server.args(["--prev-images-dir", parent]);
        }
        let mut server = server.stdin(Stdio::null()).spawn().context("cannot start the page server")?;
        let tables = format!("/proc/{}/net/tcp", lab.b.node().pid());
        until("the page server", LIMIT, || {
            if let Some(status) = server.try_wait()? {
                bail!("the page server ended with {status}");
            }
            Ok(is_listened(&fs::read_to_string(&tables)?, PORT))
        })?;
        Ok(server)
    }

    fn restore(&self, lab: &Lab, container: &Container, images: &Images, number: u32) -> Result<()> {
        let mut restore = self.runc(&lab.b, "restore", &images.round(number));
        restore.arg("--detach").arg("--bundle").arg(lab.b.bundle(&container.name)).arg(&container.name);
        done(&mut restore)
            .map_err(|error| anyhow!("{error:#}\n{}", images.log(&lab.b, number, "restore.log")))
    }

    fn runc(&self, host: &Host, command: &str, directory: &str) -> Command {
        let mut runc = host.runc();
        runc.arg("--criu").arg(&self.path).args([command, "--tcp-established"]);
        runc.args(["--image-path", directory, "--work-path", directory]);
        runc
    }
}

/// Of what `criu --version` says.
fn version(said: &str) -> Option<String> {
    Some(said.lines().find_map(|line| line.strip_prefix("Version:"))?.trim().to_owned())
}

/// Plugs the container's interface in, or out.
fn connect(host: &Host, is_in: bool) -> Result<()> {
    host.node().run(&["ip", "link", "set", LINK, if is_in { "up" } else { "down" }]).map(drop)
}

/// Runs to its end.
fn done(command: &mut Command) -> Result<()> {
    let end = finish(command)?;
    ensure!(end.status.success(), "{}: {}", words(command), String::from_utf8_lossy(&end.stderr).trim());
    Ok(())
}

fn finished(mut child: Child) -> Result<()> {
    let end = child.wait()?;
    ensure!(end.success(), "ended with {end}");
    Ok(())
}

/// Whether somebody listens at the port, by `/proc/net/tcp`.
fn is_listened(table: &str, port: u16) -> bool {
    let local = format!(":{port:04X}");
    table.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next().is_some_and(|address| address.ends_with(&local)) && words.nth(1) == Some("0A")
    })
}

/// Copies every image that is at the source to the destination, over the link.
fn copy(lab: &Lab, images: &Images, spent: &mut Spent) -> Result<()> {
    let tar = |host: &Host, mode: &str| {
        let mut tar = host.node().command("tar");
        tar.args(["--directory", &images.directory, mode, "--file=-"]);
        tar
    };
    let address = SocketAddr::from((lab.b.v4(), PORT));
    let mut unpack = tar(&lab.b, "--extract").stdin(Stdio::piped()).spawn()?;
    let mut pack = tar(&lab.a, "--create").args(["--exclude=*.log", "."]).stdout(Stdio::piped()).spawn()?;
    let mut into = unpack.stdin.take().context("tar has no input")?;
    let mut from = pack.stdout.take().context("tar has no output")?;
    let (bound, listens) = std::sync::mpsc::channel();
    let receiver = lab.b.node().in_network(move || -> io::Result<u64> {
        let listener = TcpListener::bind(address)?;
        // Nobody who waits for it is gone.
        let _ = bound.send(());
        io::copy(&mut listener.accept()?.0, &mut into)
    })?;
    listens.recv().context("nobody takes the images")?;
    let sender = lab
        .a
        .node()
        .in_network(move || -> io::Result<u64> { io::copy(&mut from, &mut TcpStream::connect(address)?) })?;
    for side in [sender, receiver] {
        side.join().map_err(|_| anyhow!("copying the images panicked"))?.context("cannot copy the images")?;
    }
    finished(pack).context("tar at the source")?;
    spent.at_source();
    finished(unpack).context("tar at the destination")?;
    spent.at_destination();
    Ok(())
}

/// Where images are, on both hosts: in memory.
#[derive(Debug)]
struct Images {
    directory: String,
}

impl Images {
    fn new(lab: &Lab) -> Result<Self> {
        let directory = lab.directory().join("images");
        fs::create_dir_all(&directory).context("cannot make the directory of images")?;
        let directory = directory.display().to_string();
        for host in [&lab.a, &lab.b] {
            // It ends with the host's mount namespace.
            host.node().run(&["mount", "-t", "tmpfs", "images", &directory])?;
        }
        Ok(Self { directory })
    }

    /// As the hosts see it.
    fn round(&self, number: u32) -> String {
        format!("{}/{number}", self.directory)
    }

    /// As this program sees it.
    fn seen(&self, host: &Host, number: u32) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{}", host.node().pid(), self.round(number)))
    }

    /// What a log says of errors, the first of them.
    fn log(&self, host: &Host, number: u32, name: &str) -> String {
        let log = fs::read(self.seen(host, number).join(name)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let errors: Vec<&str> =
            log.lines().filter(|line| line.contains("Error (")).take(MOST_ERRORS).collect();
        errors.join("\n")
    }

    /// What they take on a host.
    fn bytes(&self, host: &Host) -> Result<u64> {
        let told = host.node().run(&["du", "--summarize", "--block-size=1", &self.directory])?;
        let bytes = told.split_whitespace().next().and_then(|bytes| bytes.parse().ok());
        bytes.with_context(|| format!("du says {told:?}"))
    }
}

/// CPU time of processes that have ended, as this process has waited for them, by the host on which they ran.
#[derive(Debug)]
struct Spent {
    source_ns: u64,
    destination_ns: u64,
    counted: u64,
}

impl Default for Spent {
    fn default() -> Self {
        Self { source_ns: 0, destination_ns: 0, counted: Self::of_children() }
    }
}

impl Spent {
    fn at_source(&mut self) {
        self.source_ns += self.since();
    }

    fn at_destination(&mut self) {
        self.destination_ns += self.since();
    }

    fn since(&mut self) -> u64 {
        let now = Self::of_children();
        now - std::mem::replace(&mut self.counted, now)
    }

    fn of_children() -> u64 {
        let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else { return 0 };
        let spent = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        u64::try_from(spent).unwrap_or(0) * 1000
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What CRIU tells of a dump in its file `stats-dump`: two words that name the kind of file, a length, and this.
#[derive(Clone, PartialEq, Message)]
struct Stats {
    #[prost(message, optional, tag = "1")]
    dump: Option<DumpStats>,
}

/// Times in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct DumpStats {
    #[prost(uint32, tag = "1")]
    freezing_us: u32,
    #[prost(uint32, tag = "2")]
    frozen_us: u32,
    #[prost(uint32, tag = "4")]
    memory_write_us: u32,
    #[prost(uint64, tag = "7")]
    pages_written: u64,
}

impl DumpStats {
    fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&bytes).with_context(|| format!("{} is not what CRIU 4 writes", path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        /// The two words.
        const HEAD: usize = 8;
        let rest = bytes.get(HEAD..).context("no head")?;
        let (length, rest) = rest.split_at_checked(4).context("no length")?;
        let length = u32::from_le_bytes(length.try_into()?);
        let told = rest.get(..usize::try_from(length)?).context("shorter than it says")?;
        Stats::decode(told)?.dump.context("no dump")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_that_of_the_program() {
        assert_eq!(version("Version: 4.1.1\nGitID: v4.1.1\n").as_deref(), Some("4.1.1"));
        assert_eq!(version("GNU tar 1.34\n"), None);
    }

    #[test]
    fn listener_is_found_by_its_port_and_state() {
        let table = "  sl  local_address rem_address   st\n   0: 0200004D:1CFC 00000000:0000 0A 00000000\n";
        assert!(is_listened(table, 0x1CFC));
        assert!(!is_listened(table, 0x1CFD));
        assert!(!is_listened(&table.replace(" 0A ", " 01 "), 0x1CFC));
    }

    #[test]
    fn stats_are_read_from_what_criu_writes() {
        let told =
            DumpStats { freezing_us: 900, frozen_us: 350_000, memory_write_us: 300_000, pages_written: 77 };
        let file = |length: u32| {
            let body = Stats { dump: Some(told) }.encode_to_vec();
            [&[0; 8][..], &(u32::try_from(body.len()).unwrap() + length).to_le_bytes(), &body].concat()
        };
        assert_eq!(DumpStats::parse(&file(0)).unwrap(), told);
        assert!(DumpStats::parse(&file(1)).is_err());
        for length in 0..file(0).len() {
            assert!(DumpStats::parse(&file(0)[..length]).is_err(), "{length}");
        }
    }
}
