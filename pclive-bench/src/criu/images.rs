//! Images of a container, in memory at both hosts.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use pclive_tests::{Host, Lab};

use super::migration::{LIMIT, PORT, Spent};

/// Errors in CRIU's log that are told with a failure.
const MOST_ERRORS: usize = 8;

/// Where they are: the same directory at both hosts, which ends with a host's mount namespace.
#[derive(Debug)]
pub(super) struct Images<'a> {
    lab: &'a Lab,
    directory: String,
}

impl<'a> Images<'a> {
    pub(super) fn new(lab: &'a Lab) -> Result<Self> {
        let directory = lab.directory().join("images");
        fs::create_dir_all(&directory).context("cannot make the directory of images")?;
        let directory = directory.display().to_string();
        for host in [&lab.a, &lab.b] {
            host.node().run(&["mount", "-t", "tmpfs", "images", &directory])?;
        }
        Ok(Self { lab, directory })
    }

    /// Makes a directory for a round, at both hosts; it, as the hosts see it.
    pub(super) fn make(&self, round: u32) -> Result<String> {
        let directory = self.of(round);
        for host in [&self.lab.a, &self.lab.b] {
            host.node().run(&["mkdir", &directory])?;
        }
        Ok(directory)
    }

    /// The directory of a round, as the hosts see it.
    pub(super) fn of(&self, round: u32) -> String {
        format!("{}/{round}", self.directory)
    }

    /// The same as this program sees it.
    pub(super) fn seen(&self, host: &Host, round: u32) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{}", host.node().pid(), self.of(round)))
    }

    /// What a log says of errors, the first of them.
    pub(super) fn errors(&self, host: &Host, round: u32, log: &str) -> String {
        let told = fs::read(self.seen(host, round).join(log)).unwrap_or_default();
        let told = String::from_utf8_lossy(&told);
        let errors = told.lines().filter(|line| line.contains("Error (")).take(MOST_ERRORS);
        errors.map(|line| format!("\n{log}: {line}")).collect()
    }

    /// What they take on a host.
    pub(super) fn bytes(&self, host: &Host) -> Result<u64> {
        let told = host.node().run(&["du", "--summarize", "--block-size=1", &self.directory])?;
        let bytes = told.split_whitespace().next().and_then(|bytes| bytes.parse().ok());
        bytes.with_context(|| format!("du says {told:?}"))
    }

    /// Copies all that are at the source to the destination, over the link.
    pub(super) fn copy(&self, spent: &mut Spent) -> Result<()> {
        let (source, destination) = (&self.lab.a, &self.lab.b);
        let address = SocketAddr::from((destination.v4(), PORT));
        let listener = in_network(destination, move || TcpListener::bind(address))?;
        let mut outgoing = in_network(source, move || TcpStream::connect(address))?;
        // The kernel has accepted it already.
        let (mut incoming, _) = listener.accept().context("nobody brings the images")?;
        let mut pack =
            self.tar(source, &["--create", "--exclude=*.log", "."], Stdio::null(), Stdio::piped())?;
        let mut unpack = self.tar(destination, &["--extract"], Stdio::piped(), Stdio::null())?;
        let mut from = pack.stdout.take().context("tar has no output")?;
        let mut into = unpack.stdin.take().context("tar has no input")?;
        let copied = thread::scope(|scope| {
            let sender = scope.spawn(move || io::copy(&mut from, &mut outgoing).map(drop));
            let receiver = scope.spawn(move || io::copy(&mut incoming, &mut into).map(drop));
            [sender.join(), receiver.join()]
        });
        let packed = pack.wait()?;
        spent.at_source();
        let unpacked = unpack.wait()?;
        spent.at_destination();
        ensure!(
            packed.success() && unpacked.success(),
            "tar: {packed} at the source, {unpacked} at the destination"
        );
        for side in copied {
            side.map_err(|_| anyhow!("copying the images panicked"))?.context("cannot copy the images")?;
        }
        Ok(())
    }

    fn tar(&self, host: &Host, words: &[&str], input: Stdio, output: Stdio) -> Result<Child> {
        let mut tar = host.node().command("timeout");
        tar.args([LIMIT, "tar", "--directory", &self.directory, "--file=-"]).args(words);
        tar.stdin(input).stdout(output).spawn().context("cannot start tar")
    }
}

/// Does this on a thread of the host's network, and waits for it.
fn in_network<T: Send + 'static>(
    host: &Host,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let done = host.node().in_network(work)?.join();
    done.map_err(|_| anyhow!("opening a socket panicked"))?
        .with_context(|| format!("no socket at {}", host.name()))
}
