//! The program itself: its options, exit codes and signals.

#[path = "support/authority.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]
mod authority;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use authority::Authority;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const AGENT: &str = env!("CARGO_BIN_EXE_pclive-agent");

fn agent(config: &Path) -> Command {
    let mut command = Command::new(AGENT);
    command.arg("--config").arg(config).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

fn write(directory: &Path, text: &str) -> std::path::PathBuf {
    let path = directory.join("agent.toml");
    std::fs::write(&path, text).unwrap();
    path
}

fn usable(directory: &Path) -> std::path::PathBuf {
    let place = directory.display();
    write(
        directory,
        &format!(
            "[agent]\nstate_dir = \"{place}/state\"\n[control]\nsocket = \"{place}/run/agent.sock\"\n\
             [peer]\nlisten = \"127.0.0.1:0\"\ninsecure = true\n[log]\nformat = \"json\"\n"
        ),
    )
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_configuration_is_checked_without_starting() {
    let directory = tempfile::tempdir().unwrap();
    let good = agent(&usable(directory.path())).arg("--check-config").output().unwrap();
    assert_eq!(good.status.code(), Some(0), "{}", said(&good));
    assert!(!directory.path().join("run").exists());
    let bad = agent(&write(directory.path(), "[migration]\nmax_rounds = 0\nspeed = 1\n")).output().unwrap();
    assert_eq!(bad.status.code(), Some(2));
    assert!(said(&bad).contains("migration.speed") && said(&bad).contains("agent.toml:3"), "{}", said(&bad));
}

#[test]
fn the_environment_reaches_the_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let config = usable(directory.path());
    let printed =
        agent(&config).arg("--print-config").env("PCLIVE_MIGRATION__MAX_ROUNDS", "7").output().unwrap();
    let table: toml::Table = String::from_utf8(printed.stdout).unwrap().parse().unwrap();
    assert_eq!(table["migration"]["max_rounds"].as_integer(), Some(7));
    let bad = agent(&config).env("PCLIVE_MIGRATION__MAX_ROUNDS", "0").output().unwrap();
    assert_eq!(bad.status.code(), Some(2));
    assert!(said(&bad).contains("PCLIVE_MIGRATION__MAX_ROUNDS"), "{}", said(&bad));
}

#[test]
fn wrong_usage_exits_with_2() {
    let output = Command::new(AGENT).arg("--frobnicate").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn without_certificates_it_does_not_start_and_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let config = usable(directory.path());
    for check in [&[][..], &["--check-config"]] {
        let mut command = agent(&config);
        command.env("PCLIVE_PEER__INSECURE", "false").env("PCLIVE_TLS__CA", "/nonexistent/ca.pem");
        let refused = command.args(check).output().unwrap();
        assert_eq!(refused.status.code(), Some(2));
        for word in ["/nonexistent/ca.pem", "pclivectl certs init", "peer.insecure"] {
            assert!(said(&refused).contains(word), "{word}: {}", said(&refused));
        }
    }
    let exposed = agent(&config).env("PCLIVE_PEER__LISTEN", "0.0.0.0:0").output().unwrap();
    assert_eq!(exposed.status.code(), Some(2));
    assert!(said(&exposed).contains("insecure_outside_loopback"), "{}", said(&exposed));
}

#[test]
fn plain_text_is_warned_about_and_a_hangup_does_not_end_the_agent() {
    let directory = tempfile::tempdir().unwrap();
    let (mut child, mut log) = start(&usable(directory.path()));
    assert!(wait_for(&mut log, "plain text").contains("WARN"));
    wait_for(&mut log, "agent serves");
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    kill(pid, Signal::SIGHUP).unwrap();
    wait_for(&mut log, "no certificates to reload");
    kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_hangup_reloads_certificates_or_says_why_not() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let files = authority.issue(&directory.path().join("tls"), "host-t");
    let mut command = agent(&usable(directory.path()));
    command.env("PCLIVE_PEER__INSECURE", "false").env("PCLIVE_TLS__CA", &files.ca);
    let mut child = command.env("PCLIVE_AGENT__NAME", "host-t").stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    wait_for(&mut log, "agent serves");
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    authority.issue(&directory.path().join("tls"), "host-t");
    kill(pid, Signal::SIGHUP).unwrap();
    wait_for(&mut log, "certificates reloaded");
    std::fs::remove_file(&files.key).unwrap();
    kill(pid, Signal::SIGHUP).unwrap();
    assert!(wait_for(&mut log, "stay as they were").contains("host-t.key"));
    kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_port_that_is_taken_exits_with_1_and_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = agent(&usable(directory.path())).env("PCLIVE_PEER__LISTEN", &address).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains(&address), "{}", said(&output));
}

/// Reads the log until a line has `word`.
fn wait_for(log: &mut impl BufRead, word: &str) -> String {
    let mut line = String::new();
    while !line.contains(word) {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0, "the log ended before {word:?}");
    }
    line
}

fn start(config: &Path) -> (Child, BufReader<std::process::ChildStderr>) {
    let mut child = agent(config).stderr(Stdio::piped()).spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    (child, log)
}

#[test]
fn signals_end_it_with_0_and_without_leftovers() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let directory = tempfile::tempdir().unwrap();
        let (mut child, mut log) = start(&usable(directory.path()));
        let line = wait_for(&mut log, "agent serves");
        assert!(serde_json::from_str::<serde_json::Value>(&line).is_ok(), "not JSON: {line}");
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        let mut rest = String::new();
        log.read_to_string(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{rest}");
        assert!(!directory.path().join("run/agent.sock").exists());
    }
}

#[test]
fn readiness_is_told_to_the_service_manager() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
    let mut child =
        agent(&usable(directory.path())).env("NOTIFY_SOCKET", &path).stderr(Stdio::null()).spawn().unwrap();
    let mut message = [0; 64];
    let told = |message: &mut [u8]| {
        let length = socket.recv(message).unwrap();
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    assert!(told(&mut message).contains("READY=1"));
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert!(told(&mut message).contains("STOPPING=1"));
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_agent_on_the_same_socket_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let config = usable(directory.path());
    let (mut first, mut log) = start(&config);
    wait_for(&mut log, "agent serves");
    let second = agent(&config).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(said(&second).contains("another agent"), "{}", said(&second));
    kill(Pid::from_raw(i32::try_from(first.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(first.wait().unwrap().code(), Some(0));
}
