//! A session with a controlling pseudo-terminal: this program has the master, a shell leads the session, and a job of
//! the shell is in the foreground.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};
use nix::unistd::{Pid, tcgetpgrp};

use crate::{Check, State, calls, same};

pub(crate) const STATES: &[State] = &[("terminal", terminal)];

const SHELL: &str = "/usr/bin/busybox";
/// A job in a process group of its own; the shell keeps a descriptor of `/dev/tty`.
const SCRIPT: &str = "set -m; /usr/bin/busybox sh -c \
    'trap \"echo INT\" INT; while :; do if read -r word; then echo \"got $word\"; fi; done'; exit 1";
/// How long an answer may take.
const LIMIT_MS: u16 = 10_000;
const INTERRUPT: &[u8] = b"\x03";

/// What is asked of the terminal and of the session.
#[derive(Debug, PartialEq)]
struct Found {
    settings: Termios,
    size: (u16, u16),
    foreground: Pid,
    /// State fields of the shell and of its job: session, terminal, foreground group.
    sessions: Vec<String>,
}

struct Terminal {
    master: std::fs::File,
    shell: Pid,
}

fn terminal() -> Result<Check> {
    let size = Winsize { ws_row: 43, ws_col: 137, ws_xpixel: 0, ws_ypixel: 0 };
    let ends = openpty(Some(&size), None).context("cannot open a pseudo-terminal")?;
    for end in [&ends.master, &ends.slave] {
        calls::fcntl(end.as_fd(), libc::F_SETFD, libc::FD_CLOEXEC)?;
    }
    let mut settings = tcgetattr(&ends.master)?;
    settings.local_flags.remove(LocalFlags::ECHO);
    settings.control_chars[SpecialCharacterIndices::VERASE as usize] = 8;
    tcsetattr(&ends.master, SetArg::TCSANOW, &settings)?;
    let mut terminal = Terminal::start(ends.master, &ends.slave)?;
    drop(ends.slave);
    terminal.exchange(b"begin\n", "got begin\r\n")?;
    let before = terminal.look()?;
    ensure!(before.foreground != terminal.shell, "the job has no group of its own: {before:?}");
    Ok(Box::new(move || {
        same("terminal", &before, &terminal.look()?)?;
        terminal.exchange(b"a word\n", "got a word\r\n")?;
        terminal.exchange(INTERRUPT, "INT\r\n").context("after Ctrl-C")?;
        terminal.exchange(b"more\n", "got more\r\n")
    }))
}

impl Terminal {
    fn start(master: OwnedFd, slave: &OwnedFd) -> Result<Self> {
        let mut command = Command::new(SHELL);
        command.args(["setsid", "-c", SHELL, "sh", "-c", SCRIPT]);
        command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave.try_clone()?);
        let shell = command.spawn().context("cannot start a session")?;
        Ok(Self { master: master.into(), shell: Pid::from_raw(i32::try_from(shell.id())?) })
    }

    fn look(&self) -> Result<Found> {
        let foreground = tcgetpgrp(&self.master)?;
        let sessions = [self.shell, foreground].map(session);
        Ok(Found {
            settings: tcgetattr(&self.master)?,
            size: calls::window_size(self.master.as_fd())?,
            foreground,
            sessions: sessions.into_iter().collect::<Result<_>>()?,
        })
    }

    /// Types something and reads the answer, and nothing else.
    fn exchange(&mut self, typed: &[u8], expected: &str) -> Result<()> {
        self.master.write_all(typed)?;
        let mut found = Vec::new();
        while found.len() < expected.len() {
            let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            let heard = String::from_utf8_lossy(&found);
            // Other states' timers ring meanwhile.
            let ready = match poll(&mut fds, LIMIT_MS) {
                Err(Errno::EINTR) => continue,
                ready => ready?,
            };
            ensure!(ready == 1, "no answer to {typed:?} but {heard:?}");
            let mut buffer = [0; 64];
            let length = self.master.read(&mut buffer)?;
            found.extend_from_slice(&buffer[..length]);
        }
        same("answer", &expected.to_owned(), &String::from_utf8_lossy(&found).into_owned())
    }
}

/// Session, terminal and foreground group of a process.
fn session(pid: Pid) -> Result<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").context("a stat without a name")?;
    Ok(rest.split(' ').skip(3).take(3).collect::<Vec<_>>().join(" "))
}
