//! No process of the program leaves a core dump: it would hold memory of containers.
//!
//! The kernel shows it in the owner of `/proc/PID/stat`: the process's user, or root if the process is not dumpable
//! (proc(5)). So the program runs as somebody else here.

use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const AGENT: &str = env!("CARGO_BIN_EXE_pclive-agent");
/// Somebody who is not root.
const SOMEBODY: u32 = 12_345;
const LIMIT: Duration = Duration::from_secs(10);

/// A process that is ended with the test.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        let quiet = command.uid(SOMEBODY).gid(SOMEBODY).stdin(Stdio::piped()).stderr(Stdio::null());
        Self(quiet.spawn().unwrap())
    }

    fn owner(&self) -> u32 {
        std::fs::metadata(format!("/proc/{}/stat", self.0.id())).unwrap().uid()
    }

    fn await_owner(&mut self, uid: u32) {
        let begun = Instant::now();
        while self.owner() != uid {
            assert!(self.0.try_wait().unwrap().is_none(), "it has ended");
            assert!(begun.elapsed() < LIMIT, "it belongs to {}, not to {uid}", self.owner());
            std::thread::yield_now();
        }
    }

    fn await_file(&mut self, path: &Path) {
        let begun = Instant::now();
        while !path.exists() {
            let lives = self.0.try_wait().unwrap().is_none();
            assert!(lives && begun.elapsed() < LIMIT, "{} does not come", path.display());
            std::thread::yield_now();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    assert!(root || std::env::var("CI").is_err(), "this test needs root, and CI=true forbids skipping it");
    if !root {
        eprintln!("NOT TESTED: running as somebody else needs root");
    }
    root
}

/// The program where somebody can start it, whatever the directories above it allow.
fn program(directory: &Path) -> std::path::PathBuf {
    let path = directory.join("pclive-agent");
    std::fs::copy(AGENT, &path).unwrap();
    std::fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    chown(directory, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    path
}

#[test]
fn an_agent_leaves_no_core_dump() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let program = program(directory.path());
    let place = directory.path().display();
    let config = directory.path().join("agent.toml");
    let text = format!(
        "[agent]\nstate_dir = \"{place}/state\"\n[control]\nsocket = \"{place}/run/agent.sock\"\n[peer]\n\
         listen = \"127.0.0.1:0\"\ninsecure = true\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut agent = Running::start(Command::new(program).arg("--config").arg(config));
    agent.await_file(&directory.path().join("run/agent.sock"));
    assert_eq!(agent.owner(), 0, "it is dumpable");
}

#[test]
fn what_fetches_the_last_pages_leaves_no_core_dump() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let program = program(directory.path());
    Running::start(Command::new(program).arg("fetch-pages")).await_owner(0);
}

#[test]
fn what_a_hook_runs_is_as_it_would_be() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let program = program(directory.path());
    let pid = directory.path().join("pid");
    let script = format!("echo $$ > {}.new && mv {0}.new {0} && exec sleep 60", pid.display());
    let mut supervisor =
        Running::start(Command::new(program).args(["run-hook", "--", "/bin/sh", "-c", &script]));
    supervisor.await_owner(0);
    supervisor.await_file(&pid);
    let hook = std::fs::read_to_string(pid).unwrap();
    assert_eq!(std::fs::metadata(format!("/proc/{}/stat", hook.trim())).unwrap().uid(), SOMEBODY);
}
