//! Hooks with real commands: what they are told, how they fail, and that nothing of them outlives its time or its agent.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pclive_agent::hooks::runner::{HookError, run};

const AGENT: &str = env!("CARGO_BIN_EXE_pclive-agent");
const PATIENCE: Duration = Duration::from_secs(20);

fn shell(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(String::from).to_vec()
}

async fn ran(script: &str, timeout: Duration) -> Result<String, HookError> {
    let variables = [("PCLIVE_CONTAINER", "web".to_owned())];
    run(Path::new(AGENT), &shell(script), &variables, timeout).await
}

/// A script that writes the pid of a child of its own, and waits for it.
fn with_a_child(file: &Path) -> String {
    format!("sleep 86399 & echo $! > {0}.new; mv {0}.new {0}; wait", file.display())
}

async fn pid_in(file: &Path) -> Pid {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(text) = std::fs::read_to_string(file) {
            return Pid::from_raw(text.trim().parse().unwrap());
        }
        assert!(Instant::now() < deadline, "the hook does not begin");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A process that has ended may stay a zombie where nobody reaps orphans.
fn lives(pid: Pid) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !state.is_empty() && !state.contains(") Z ")
}

async fn gone(pid: Pid) {
    let deadline = Instant::now() + PATIENCE;
    while lives(pid) {
        assert!(Instant::now() < deadline, "{pid} lives on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_command_gets_its_variables_and_no_input() {
    let said = ran("cat; echo \"for $PCLIVE_CONTAINER\"; echo too >&2", PATIENCE).await.unwrap();
    assert_eq!(said, "it said: for web; too");
}

#[tokio::test]
async fn a_failure_names_the_command_its_status_and_its_last_lines() {
    let error = ran("seq 1 100000 >&2; exit 3", PATIENCE).await.unwrap_err().to_string();
    assert!(error.contains("/bin/sh -c") && error.contains("exit status: 3"), "{error}");
    assert!(error.ends_with("it said: 99996; 99997; 99998; 99999; 100000"), "{error}");
    let error = ran("kill -TERM $$", PATIENCE).await.unwrap_err().to_string();
    assert!(error.contains("signal: 15"), "{error}");
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let command = ["/nonexistent/hook".to_owned()];
    let error = run(Path::new(AGENT), &command, &[], PATIENCE).await.unwrap_err().to_string();
    assert!(error.contains("cannot run \"/nonexistent/hook\": No such file"), "{error}");
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_killed_with_its_children() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let began = Instant::now();
    let script = format!("echo on my way; {}", with_a_child(&file));
    let error = ran(&script, Duration::from_millis(500)).await.unwrap_err();
    assert!(matches!(error, HookError::Timeout { .. }), "{error}");
    assert!(error.to_string().ends_with("was killed, it said: on my way"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    gone(pid_in(&file).await).await;
}

#[tokio::test]
async fn a_command_that_nobody_waits_for_any_more_is_killed_with_its_children() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let script = with_a_child(&file);
    let child = tokio::select! {
        ended = ran(&script, PATIENCE * 10) => panic!("ended: {ended:?}"),
        child = pid_in(&file) => child,
    };
    gone(child).await;
}

#[tokio::test]
async fn what_a_command_leaves_behind_is_killed_daemons_too() {
    let directory = tempfile::tempdir().unwrap();
    for background in ["sleep 86399", "setsid sleep 86399", "setsid sh -c 'sleep 86399 & wait'"] {
        let file = directory.path().join("pid");
        ran(&format!("{background} & echo $! > {}", file.display()), PATIENCE).await.unwrap();
        assert!(!lives(pid_in(&file).await), "{background} lives on");
    }
}

#[tokio::test]
async fn nothing_of_a_command_outlives_its_agent() {
    // The agent's part: holds the lifeline, and is killed.
    let script = format!("sleep 86399 | {AGENT} run-hook -- /bin/sh -c 'sleep 86398 & echo $! >&2; wait'");
    let mut agent = Command::new("/bin/sh")
        .args(["-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(agent.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let child = Pid::from_raw(line.trim().parse().unwrap());
    assert!(lives(child));
    let children = format!("/proc/{0}/task/{0}/children", agent.id());
    let children = std::fs::read_to_string(children).unwrap();
    let holder = children
        .split_whitespace()
        .find(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim() == "sleep")
        .unwrap();
    kill(Pid::from_raw(holder.parse().unwrap()), Signal::SIGKILL).unwrap();
    gone(child).await;
    agent.wait().unwrap();
}
