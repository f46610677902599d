//! Process 1 of a lab node: sets the host name, says "ready", reaps orphans, and ends with its standard input.
//!
//! Its end is the end of every process in the node's PID namespace; the harness holds the other end of the pipe,
//! so the node cannot outlive the harness.
#![forbid(unsafe_code)]

use std::io::{Read, Write};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

fn main() -> Result<()> {
    let name = std::env::args().nth(1).context("usage: host-init NAME")?;
    nix::unistd::sethostname(&name).context("cannot set the host name")?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block().context("cannot block SIGCHLD")?;
    std::thread::spawn(end_with_input);
    let mut out = std::io::stdout();
    out.write_all(b"ready\n").and_then(|()| out.flush()).context("cannot say that the node is ready")?;
    loop {
        reap();
        children.wait().context("cannot wait for SIGCHLD")?;
    }
}

/// Ends this process, and with it the node, when nobody holds the other end of standard input any more.
fn end_with_input() {
    let mut sink = [0; 64];
    while matches!(std::io::stdin().read(&mut sink), Ok(1..)) {}
    std::process::exit(0);
}

fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            return;
        }
    }
}
