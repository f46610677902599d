//! One machine of the lab: a set of namespaces that one process holds open.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::{output, workspace_binary};
use crate::wait::until;

/// How long a node may take to come up or to end.
const LIMIT: Duration = Duration::from_secs(20);

/// A set of PID, mount, UTS and network namespaces. Dropping it kills every process inside.
#[derive(Debug)]
pub struct Node {
    name: String,
    /// `unshare`; its standard input is the line on which the node's life hangs.
    holder: Child,
    /// The node's process 1, as this process sees it.
    init: Pid,
}

impl Node {
    /// Makes the namespaces. The loopback interface is up; there is no other.
    pub fn start(name: &str) -> Result<Self> {
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL"])
            .arg(workspace_binary("host-init")?)
            .arg(name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run unshare")?;
        let mut line = String::new();
        let out = holder.stdout.take().context("unshare has no standard output")?;
        BufReader::new(out).read_line(&mut line).context("cannot read from host-init")?;
        if line.trim() != "ready" {
            bail!("cannot make the namespaces of {name}: {:?}", holder.wait());
        }
        let init = only_child(&holder)?;
        let node = Self { name: name.into(), holder, init };
        node.run(&["ip", "link", "set", "lo", "up"])?;
        Ok(node)
    }

    /// Its host name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node's process 1 as this process sees it: `nsenter -t PID -n -m -u -p` is a shell on the node.
    pub fn pid(&self) -> i32 {
        self.init.as_raw()
    }

    /// A command that will run on the node, as root, in directory `/`.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--net", "--mount", "--uts", "--pid", "--target"])
            .arg(self.init.to_string())
            .args(["--", program]);
        command
    }

    /// Runs a program on the node to its end; its standard output.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let (program, arguments) = words.split_first().context("no program to run")?;
        output(self.command(program).args(arguments)).with_context(|| format!("on {}", self.name))
    }

    /// Runs `work` on a thread of its own inside the node's network namespace: sockets it opens are the node's.
    pub fn in_network<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<std::thread::JoinHandle<T>> {
        let path = PathBuf::from(format!("/proc/{}/ns/net", self.init));
        let namespace = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let (entered, wait) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name(self.name.clone()).spawn(move || {
            let result = nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET);
            let failed = result.is_err();
            // The receiver waits for exactly this message.
            let _ = entered.send(result);
            if failed { None } else { Some(work()) }
        })?;
        wait.recv()?.with_context(|| format!("cannot enter the network of {}", self.name))?;
        Ok(std::thread::spawn(move || match thread.join() {
            Ok(Some(value)) => value,
            Ok(None) => unreachable!("entering the namespace succeeded"),
            Err(panic) => std::panic::resume_unwind(panic),
        }))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The end of a PID namespace's process 1 is the end of all of them; `unshare` returns after the last.
        drop(self.holder.stdin.take());
        if until("the node's end", LIMIT, || Ok(self.holder.try_wait()?.is_some())).is_err() {
            let _ = kill(self.init, Signal::SIGKILL);
            let _ = self.holder.wait();
        }
    }
}

/// The one child of a process of ours, once it is there.
pub(crate) fn only_child(parent: &Child) -> Result<Pid> {
    let path = format!("/proc/{0}/task/{0}/children", parent.id());
    let mut child = None;
    until("a child process", LIMIT, || {
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        child = text.split_whitespace().next().and_then(|word| word.parse().ok());
        Ok(child.is_some())
    })?;
    child.map(Pid::from_raw).context("no child process")
}
