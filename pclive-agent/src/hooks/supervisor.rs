//! A process between the agent and a hook, of the agent's own program: it ends the hook when its agent does.
//!
//! The command runs in a process group of its own, which is killed as soon as standard input ends: the agent holds the
//! other end of it, gives the command up by closing it, and cannot help closing it when it dies. (A parent death signal
//! would reach one process only, and be sent when the *thread* ends that started it.) When the command has ended, so has
//! everything that it started: the supervisor adopts orphans (`PR_SET_CHILD_SUBREAPER`), and kills them.
//!
//! The report goes to standard output; what the command says, on either of its own, to standard error.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// The agent's subcommand.
pub(super) const SUBCOMMAND: &str = "run-hook";

/// Longest report, bytes.
pub(super) const MAX_REPORT: u64 = 4096;

/// The report.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Outcome {
    /// As `wait` gives it.
    Ended(i32),
    /// Why.
    NotStarted(String),
}

/// Runs a command, program and arguments, to its end or that of standard input.
pub fn run(command: &[OsString]) -> io::Result<()> {
    prctl::set_child_subreaper(true)?;
    let outcome = match start(command) {
        Ok(child) => Outcome::Ended(supervise(child)?),
        Err(error) => Outcome::NotStarted(error.to_string()),
    };
    let report = serde_json::to_vec(&outcome)?;
    io::stdout().write_all(&report)
}

fn start(command: &[OsString]) -> io::Result<Child> {
    let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let saying = io::stderr().as_fd().try_clone_to_owned()?;
    Command::new(program).args(arguments).stdin(Stdio::null()).stdout(saying).process_group(0).spawn()
}

/// Waits for the command, and ends all that it has left; how it ended, as `wait` gives it.
fn supervise(mut child: Child) -> io::Result<i32> {
    let group = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    // False once the group's id may be another's.
    let ours = Arc::new(Mutex::new(true));
    let held = Arc::clone(&ours);
    std::thread::Builder::new().name("lifeline".into()).spawn(move || {
        // Nothing is ever sent: it ends, or breaks.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        if *held.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = killpg(group, Signal::SIGKILL);
        }
    })?;
    waitid(Id::Pid(group), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
    let mut ours = ours.lock().unwrap_or_else(PoisonError::into_inner);
    // A group of which only the dead command is left need not be signalled.
    let _ = killpg(group, Signal::SIGKILL);
    let status = child.wait()?;
    *ours = false;
    sweep();
    Ok(status.into_raw())
}

/// Ends every process that is left. A child that dies leaves its own children to this process.
fn sweep() {
    loop {
        for child in children() {
            let _ = kill(child, Signal::SIGKILL);
        }
        match waitpid(None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

fn children() -> Vec<Pid> {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .map(Pid::from_raw)
        .collect()
}
