//! Child processes: in sessions of their own, stopped, dead and not yet waited for, sharing memory and files.

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getpgid, getsid};
use pclive_tests::wait::until;

use crate::{Check, State, same};

pub(crate) const STATES: &[State] = &[
    ("zombie", zombie),
    ("stopped-child", stopped_child),
    ("child-with-pipes", child_with_pipes),
    ("inherited-offset", inherited_offset),
];

const LIMIT: Duration = Duration::from_secs(10);
/// The only other program in the container.
const SHELL: &str = "/usr/bin/busybox";

fn shell(script: &str) -> Command {
    let mut command = Command::new(SHELL);
    command.args(["sh", "-c", script]);
    command
}

fn pid(child: &Child) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(child.id())?))
}

/// The letter of a process's state.
fn letter(pid: Pid) -> Result<char> {
    let stat =
        std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("{pid} is gone"))?;
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).context("a stat without a state")
}

fn zombie() -> Result<Check> {
    let make = || -> Result<Child> {
        let child = shell("exit 7").spawn()?;
        // Its end is seen and left for the check to take.
        let dead = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        let status = waitid(Id::Pid(pid(&child)?), dead)?;
        ensure!(matches!(status, WaitStatus::Exited(_, 7)), "the child ended with {status:?}");
        Ok(child)
    };
    let mut child = make()?;
    Ok(Box::new(move || {
        same("state", &'Z', &letter(pid(&child)?)?)?;
        same("exit status", &Some(7), &child.wait()?.code())?;
        child = make()?;
        Ok(())
    }))
}

/// A stopped child stays stopped, goes on when told, and is stopped again.
fn stopped_child() -> Result<Check> {
    let child = shell("while :; do busybox sleep 0.01; done").process_group(0).spawn()?;
    let pid = pid(&child)?;
    let is = move |wanted: fn(char) -> bool| move || Ok(wanted(letter(pid)?));
    kill(pid, Signal::SIGSTOP)?;
    until("the stop", LIMIT, is(|letter| letter == 'T'))?;
    Ok(Box::new(move || {
        same("state", &'T', &letter(pid)?)?;
        same("process group", &pid, &getpgid(Some(pid))?)?;
        kill(pid, Signal::SIGCONT)?;
        until("the child's going on", LIMIT, is(|letter| letter != 'T'))?;
        kill(pid, Signal::SIGSTOP)?;
        until("the stop", LIMIT, is(|letter| letter == 'T'))
    }))
}

/// A child in a session of its own that answers over pipes; it has written something that was not read yet.
fn child_with_pipes() -> Result<Check> {
    let script = "echo waiting; while read -r word; do echo \"$((word + 1))\"; done";
    let mut command = shell(script);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (mut to, mut from) =
        (child.stdin.take().context("no pipe")?, child.stdout.take().context("no pipe")?);
    let pid = pid(&child)?;
    let before = (getpgid(Some(pid))?, getsid(Some(pid))?);
    let mut number = 0;
    Ok(Box::new(move || {
        same("group and session", &before, &(getpgid(Some(pid))?, getsid(Some(pid))?))?;
        let expected = if number == 0 { "waiting\n".to_owned() } else { format!("{number}\n") };
        let mut found = vec![0; expected.len()];
        from.read_exact(&mut found)?;
        same("what the child had written", &expected, &String::from_utf8_lossy(&found).into_owned())?;
        to.write_all(format!("{number}\n").as_bytes())?;
        number += 1;
        Ok(())
    }))
}

/// A file that a child has open too, with one offset for both.
fn inherited_offset() -> Result<Check> {
    std::fs::write("/data/inherited", "")?;
    let mut file = std::fs::File::options().read(true).write(true).open("/data/inherited")?;
    let script = "while read -r word; do printf %s \"$word\" >&2; echo; done";
    let mut child =
        shell(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file.try_clone()?).spawn()?;
    let (mut to, mut from) =
        (child.stdin.take().context("no pipe")?, child.stdout.take().context("no pipe")?);
    Ok(Box::new(move || {
        let before = file.stream_position()?;
        to.write_all(b"four\n")?;
        from.read_exact(&mut [0])?;
        same("offset after the child's write", &(before + 4), &file.stream_position()?)?;
        file.seek(SeekFrom::Start(before + 10))?;
        to.write_all(b"six\n")?;
        from.read_exact(&mut [0])?;
        same("offset after a seek and the child's write", &(before + 13), &file.stream_position()?)
    }))
}
