//! Running `pclivectl`.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// No run of the program takes this long.
const DEADLINE: Duration = Duration::from_secs(30);

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Exit code.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

/// A run under way.
pub(crate) struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
    read: String,
}

/// Starts `pclivectl --agent SOCKET ARGUMENTS`.
pub(crate) fn start(socket: &Path, arguments: &[&str]) -> Running {
    start_with(socket, arguments, Stdio::piped())
}

/// The same with this as standard error.
pub(crate) fn start_with(socket: &Path, arguments: &[&str], stderr: Stdio) -> Running {
    let mut child = command(arguments).arg("--agent").arg(socket).stderr(stderr).spawn().unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    Running { child, out, read: String::new() }
}

/// Runs `pclivectl --agent SOCKET ARGUMENTS` to its end.
pub(crate) fn run(socket: &Path, arguments: &[&str]) -> Ended {
    start(socket, arguments).end()
}

/// Runs `pclivectl ARGUMENTS` to its end.
pub(crate) fn run_alone(arguments: &[&str]) -> Ended {
    let mut child = command(arguments).spawn().unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    Running { child, out, read: String::new() }.end()
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pclivectl"));
    command.args(arguments).env_remove("PCLIVE_AGENT").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Running {
    /// Reads standard output up to a line that contains this text.
    pub(crate) fn wait_for(&mut self, text: &str) {
        loop {
            let mut line = String::new();
            assert_ne!(self.out.read_line(&mut line).unwrap(), 0, "no {text:?} in:\n{}", self.read);
            self.read.push_str(&line);
            if line.contains(text) {
                return;
            }
        }
    }

    /// Ctrl-C.
    pub(crate) fn interrupt(&self) {
        kill(self.pid(), Signal::SIGINT).unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// Waits for the end.
    pub(crate) fn end(mut self) -> Ended {
        let pid = self.pid();
        let (tell, told) = channel();
        std::thread::spawn(move || {
            let mut out = std::mem::take(&mut self.read);
            self.out.read_to_string(&mut out).unwrap();
            let output = self.child.wait_with_output().unwrap();
            let err = String::from_utf8(output.stderr).unwrap();
            tell.send(Ended { code: output.status.code().unwrap_or(-1), out, err })
        });
        told.recv_timeout(DEADLINE).unwrap_or_else(|_| {
            kill(pid, Signal::SIGKILL).unwrap();
            let ended = told.recv_timeout(DEADLINE).unwrap();
            panic!("still running after {DEADLINE:?}: {ended:?}");
        })
    }
}
