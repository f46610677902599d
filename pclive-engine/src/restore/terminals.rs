//! Pseudo-terminals of the created container, and the sessions that they control.
//!
//! A terminal must be its session's before the session has children: a process inherits its controlling terminal at
//! birth, and nobody but a session leader can get one later. So terminals are made with the skeleton; what they are
//! set to comes with the final state ([`super::files`]). The kernel gives the lowest free number: lower ones are
//! opened and closed again. Invariant: while a terminal is kept here one of its slaves is open, without which its
//! session would lose it.
//!
//! Kernel: TIOCGPTPEER (Linux 4.13). Whatever signals a restorer gets from its terminal are blocked, and drained
//! before it runs.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::RestoreError;
use super::channel::{FdChannel, need};
use crate::model::terminal::{MOST_TERMINALS, Session};
use crate::proc::root::ContainerRoot;
use crate::remote::{Call, RemoteTask};
use crate::sys::{openat2, terminal};

/// Where a master is opened in the created container.
const MULTIPLEXER: &[u8] = b"/dev/pts/ptmx";

/// A terminal cannot be made in the created container.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// The container's devpts instance.
    #[error(
        "cannot open /dev/pts/ptmx in the container; its bundle must mount a devpts of its own at /dev/pts"
    )]
    Open {
        /// Why.
        source: Errno,
    },
    /// Something else has the number.
    #[error("cannot make terminal {number}: the created container already has one of this number")]
    Taken {
        /// N of `/dev/pts/N`.
        number: u32,
    },
    /// An operation on a terminal.
    #[error("cannot {verb} terminal {number}")]
    Request {
        /// "set the size of" ...
        verb: &'static str,
        /// N of `/dev/pts/N`.
        number: u32,
        /// Why.
        source: Errno,
    },
}

impl TerminalError {
    pub(super) fn request(verb: &'static str, number: u32) -> impl Fn(Errno) -> Self {
        move |source| Self::Request { verb, number, source }
    }
}

/// Both ends of a pseudo-terminal. The master is the description that the container's process will have.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) master: OwnedFd,
    pub(super) slave: OwnedFd,
}

/// The terminals of a created container, by number.
#[derive(Debug, Default)]
pub struct Terminals {
    made: BTreeMap<u32, Ends>,
}

impl Terminals {
    /// The terminal of this number, which is made if it is not there.
    pub(super) fn obtain(&mut self, number: u32, root: &ContainerRoot) -> Result<&Ends, TerminalError> {
        let ends = match self.made.remove(&number) {
            Some(ends) => ends,
            None => make(number, root)?,
        };
        Ok(self.made.entry(number).or_insert(ends))
    }

    /// The terminal of this number, if it is there.
    pub(super) fn get(&self, number: u32) -> Option<&Ends> {
        self.made.get(&number)
    }

    /// Closes the terminals that `wanted` refuses.
    pub(super) fn keep(&mut self, wanted: impl Fn(u32) -> bool) {
        self.made.retain(|number, _| wanted(*number));
    }
}

fn make(number: u32, root: &ContainerRoot) -> Result<Ends, TerminalError> {
    let open = |source| TerminalError::Open { source };
    let multiplexer = root.resolve(MULTIPLEXER).map_err(open)?;
    let mut surplus = Vec::new();
    for _ in 0..MOST_TERMINALS {
        let master = openat2::reopen(&multiplexer, OFlag::O_RDWR | OFlag::O_NOCTTY).map_err(open)?;
        let found = terminal::number(&master).map_err(open)?;
        if found > number {
            break;
        }
        if found < number {
            surplus.push(master);
            continue;
        }
        let failed = TerminalError::request("open", number);
        terminal::set_locked(&master, false).map_err(&failed)?;
        let slave = terminal::open_slave(&master, libc::O_RDWR).map_err(&failed)?;
        return Ok(Ends { master, slave });
    }
    Err(TerminalError::Taken { number })
}

/// Makes a terminal the controlling one of a session's leader, which has none.
pub(super) fn take(leader: &mut dyn RemoteTask, ends: &Ends) -> Result<(), RestoreError> {
    with_slave(leader, ends, "take its controlling terminal", |fd| {
        Call::new(libc::SYS_ioctl, &[fd, terminal::SET_CONTROLLING, 0])
    })
}

/// Lets a process give its controlling terminal up. With a leader the whole session loses it.
pub(super) fn give_up(task: &mut dyn RemoteTask, ends: &Ends) -> Result<(), RestoreError> {
    with_slave(task, ends, "give its controlling terminal up", |fd| {
        Call::new(libc::SYS_ioctl, &[fd, terminal::GIVE_UP_CONTROLLING])
    })
}

/// Sets the foreground group of a session, by its leader.
pub(super) fn set_foreground(
    leader: &mut dyn RemoteTask,
    ends: &Ends,
    session: Session,
) -> Result<(), RestoreError> {
    let group = leader.scratch().start;
    let channel = FdChannel::open(leader)?;
    let numbers = channel.give(leader, &[ends.slave.as_fd()])?;
    leader.write(group, &session.foreground.0.to_ne_bytes())?;
    let calls =
        numbers.iter().map(|fd| Call::new(libc::SYS_ioctl, &[*fd, terminal::SET_FOREGROUND, group.0]));
    finish(leader, channel, &numbers, calls.collect(), "set its foreground process group")
}

fn with_slave(
    task: &mut dyn RemoteTask,
    ends: &Ends,
    what: &str,
    call: impl Fn(u64) -> Call,
) -> Result<(), RestoreError> {
    let channel = FdChannel::open(task)?;
    let numbers = channel.give(task, &[ends.slave.as_fd()])?;
    let calls = numbers.iter().map(|fd| call(*fd)).collect();
    finish(task, channel, &numbers, calls, what)
}

/// Runs the calls and closes what they needed, in one batch.
fn finish(
    task: &mut dyn RemoteTask,
    channel: FdChannel,
    numbers: &[u64],
    mut calls: Vec<Call>,
    what: &str,
) -> Result<(), RestoreError> {
    let wanted = calls.len();
    calls.extend(numbers.iter().map(|fd| Call::new(libc::SYS_close, &[*fd])));
    let results = task.run(&calls)?;
    channel.close(task)?;
    for result in results.into_iter().take(wanted) {
        need(task.vpid(), result, what)?;
    }
    Ok(())
}
