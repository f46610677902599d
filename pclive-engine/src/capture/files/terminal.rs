//! Pseudo-terminals that live inside the container: masters, slaves, and slaves that were opened as `/dev/tty`.
//!
//! Everything is asked of a duplicate of the master, which answers for the slave. A terminal is carried if its node is
//! in the devpts instance that the container has at `/dev/pts` and its master is held by a process of the container.
//!
//! Kernel: there is no way to look at what waits in a terminal without taking it, and in canonical mode no way to tell
//! that an unfinished line is there. poll(2) waits for what the kernel has still to deliver, so that `TIOCINQ` is
//! exact afterwards. `tty-index` in fdinfo (Linux 4.14), `TIOCGDEV` (2.6.38), `TIOCGEXCL` and the like (3.8).
//! Failure: a terminal of another kind, or one that reaches out of the container, is a refusal.

use std::collections::HashSet;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FileStat, SFlag, major, minor};

use super::FilesError;
use super::owner::Owners;
use super::path;
use super::refusal::{Refusal, printable};
use super::scene::{Finding, Sample, Scene};
use crate::model::terminal::{MOST_TERMINALS, Session, Terminal, number_of_device};
use crate::model::{FileId, FileKind, OpenFile, Pid, Vpid};
use crate::proc::fdinfo::Detail;
use crate::proc::stat;
use crate::sys::terminal;

/// Where the container has its devpts instance.
const INSTANCE: &[u8] = b"/dev/pts";
/// `N_TTY`, the line discipline that every terminal begins with.
const ORDINARY: i32 = 0;

/// True for a descriptor of a terminal of any kind: console, serial line, `/dev/tty`, pseudo-terminal.
pub(super) fn is_terminal(sample: &Sample<'_>) -> bool {
    let opaque = sample.info.flags & libc::O_PATH != 0;
    let device = path::file_type(&sample.stat) == SFlag::S_IFCHR;
    !opaque && device && matches!(major(sample.stat.st_rdev), 4 | 5 | 136..=143)
}

/// Captures a terminal's descriptor.
pub(super) fn capture(
    scene: &Scene<'_>,
    owners: &Owners,
    sample: &Sample<'_>,
) -> Result<Finding, FilesError> {
    if let Detail::Terminal(number) = sample.info.detail {
        return master(scene, owners, sample, number);
    }
    let alias = (major(sample.stat.st_rdev), minor(sample.stat.st_rdev)) == (5, 0);
    let device = match terminal::device(sample) {
        Ok(device) => device,
        Err(Errno::EIO) => return Ok(hung_up(sample)),
        Err(source) => return Err(failed("read the device number of", sample)(source)),
    };
    let Some(number) = number_of_device(device) else { return Ok(of_the_host(sample)) };
    let inside = scene.mounts.contains(sample.info.mount)
        && path::leads_to(scene, sample.target, &sample.stat)?
        && (alias || Some(sample.stat.st_dev) == instance(scene)?);
    if !inside {
        return Ok(foreign(sample));
    }
    let exclusive = terminal::is_exclusive(sample).map_err(failed("read the mode of", sample))?;
    Ok(Finding::Carried(FileKind::Slave { terminal: number, path: sample.target.to_vec(), exclusive }))
}

fn master(
    scene: &Scene<'_>,
    owners: &Owners,
    sample: &Sample<'_>,
    number: u32,
) -> Result<Finding, FilesError> {
    let Some(node) = own_node(scene, sample, number)? else { return Ok(foreign(sample)) };
    let read = |verb| failed(verb, sample);
    let settings = terminal::settings(sample).map_err(read("read the settings of"))?;
    let own_discipline = terminal::discipline(sample).map_err(read("read the line discipline of"))?;
    let ordinary = own_discipline == ORDINARY && i32::from(settings.discipline) == ORDINARY;
    let for_both = sample.info.flags & libc::O_ACCMODE == libc::O_RDWR;
    if !ordinary || !for_both || number >= MOST_TERMINALS {
        let what = match (ordinary, for_both) {
            (false, _) => format!("terminal {number} with a line discipline of its own"),
            (true, false) => {
                format!("master of terminal {number} that was not opened for reading and writing")
            }
            (true, true) => format!("terminal {number}, of which only {MOST_TERMINALS} are supported"),
        };
        return Ok(Finding::Refused(Refusal::new(what, "stop the program that made it")));
    }
    let session = match session(owners, sample, number)? {
        Ok(session) => session,
        Err(refusal) => return Ok(Finding::Refused(refusal)),
    };
    Ok(Finding::Carried(FileKind::Master(Box::new(Terminal {
        number,
        settings,
        size: terminal::size(sample).map_err(read("read the size of"))?,
        locked: terminal::is_locked(sample).map_err(read("read the lock of"))?,
        packet: terminal::is_packet(sample).map_err(read("read the mode of"))?,
        exclusive: terminal::is_exclusive(sample).map_err(read("read the mode of"))?,
        owner: (node.st_uid, node.st_gid),
        mode: node.st_mode & 0o7777,
        session,
    }))))
}

/// The device of the devpts instance at `/dev/pts`.
fn instance(scene: &Scene<'_>) -> Result<Option<u64>, FilesError> {
    Ok(path::resolve(scene, INSTANCE)?.map(|found| found.st_dev))
}

/// The slave's node, if the master belongs to the container's instance. The kernel takes the instance that the master
/// was opened in, or, for a node elsewhere, the one mounted at `pts` beside it.
fn own_node(scene: &Scene<'_>, sample: &Sample<'_>, number: u32) -> Result<Option<FileStat>, FilesError> {
    let Some(own) = instance(scene)? else { return Ok(None) };
    let name = sample.target;
    let inside = scene.mounts.contains(sample.info.mount) && path::leads_to(scene, name, &sample.stat)?;
    let directory = name.iter().rposition(|byte| *byte == b'/').map_or(&b""[..], |at| &name[..at]);
    let beside = [directory, b"/pts"].concat();
    let same =
        sample.stat.st_dev == own || path::resolve(scene, &beside)?.is_some_and(|found| found.st_dev == own);
    if !inside || !same {
        return Ok(None);
    }
    let node = path::resolve(scene, &[INSTANCE, format!("/{number}").as_bytes()].concat())?;
    let is_slave = |node: &FileStat| node.st_dev == own && number_of(node) == Some(number);
    Ok(node.filter(is_slave))
}

fn number_of(node: &FileStat) -> Option<u32> {
    // st_rdev has more bits than the kernel's own encoding; the lower 32 are the same.
    u32::try_from(node.st_rdev).ok().and_then(|device| number_of_device(device.into()))
}

/// The session that the terminal controls. A foreground group that has just ended is nobody's: the leader's stands in
/// until [`waiting`] has told.
fn session(
    owners: &Owners,
    sample: &Sample<'_>,
    number: u32,
) -> Result<Result<Option<Session>, Refusal>, FilesError> {
    let pid = match terminal::session(sample) {
        Ok(pid) => Pid(pid),
        Err(Errno::ENOTTY) => return Ok(Ok(None)),
        Err(source) => return Err(failed("read the session of", sample)(source)),
    };
    let controlled =
        crate::proc::read(format!("/proc/{pid}/stat")).ok().and_then(|text| stat::parse(&text).ok());
    let controlled = controlled.and_then(|stat| number_of_device(u64::from(stat.tty as u32)));
    match owners.process(pid) {
        // Its last slave was closed: the terminal remembers the session, the session forgot the terminal.
        _ if pid.0 != 0 && controlled != Some(number) => Ok(Ok(None)),
        Some(leader) => {
            let group = terminal::foreground(sample).map_err(failed("read the session of", sample))?;
            Ok(Ok(Some(Session { leader, foreground: owners.group(Pid(group)) })))
        }
        None => Ok(Err(Refusal::new(
            format!("terminal {number} that controls a session outside of the container"),
            "end the process that was started with it",
        ))),
    }
}

/// Slaves whose master the container lacks, each with the reason.
pub(super) fn without_master(files: &[OpenFile]) -> Vec<(FileId, Refusal)> {
    let mut masters = HashSet::new();
    for file in files {
        if let FileKind::Master(terminal) = &file.kind {
            masters.insert(terminal.number);
        }
    }
    let mut found = Vec::new();
    for file in files {
        if let FileKind::Slave { terminal, path, .. } = &file.kind
            && !masters.contains(terminal)
        {
            let what = format!("terminal {}, whose master is outside of the container", printable(path));
            found.push((file.id, Refusal::new(what, WITHOUT)));
        }
    }
    found
}

const WITHOUT: &str = "create the container without a terminal (process.terminal: false, no -t), and end processes \
                       that were started with one (exec -t)";

/// Why a terminal cannot be carried just now, if so: what waits in it cannot be read without taking it. `slave` is
/// one of its slaves; without any the far end cannot be looked at.
pub(super) fn waiting(
    told: &Terminal,
    master: &Sample<'_>,
    slave: Option<&Sample<'_>>,
) -> Result<Option<Refusal>, FilesError> {
    let number = told.number;
    let passing = |what: String, hint: &str| Ok(Some(Refusal::new(what, hint)));
    let Some(slave) = slave else {
        let what = format!("terminal {number}, which no program has open at its far end");
        return passing(what, "wait until it is in use, or let the application close it");
    };
    if told.session.is_some_and(|session| session.foreground == Vpid(0)) {
        let what = format!("terminal {number} whose foreground process group has just ended");
        return passing(what, "try again in a moment");
    }
    // The slave first: what arrives there may be echoed to the master.
    let slave_events = events(slave)?;
    let master_events = events(master)?;
    for (end, name) in [(slave, "input"), (master, "output")] {
        let bytes = terminal::readable(end).map_err(failed("look into", end))?;
        if bytes != 0 {
            let what = format!("terminal {number} with {bytes} bytes of {name} that no program has read");
            return passing(what, "try again when it is quiet");
        }
    }
    if !slave_events.contains(PollFlags::POLLOUT) || !master_events.contains(PollFlags::POLLOUT) {
        let what = format!("terminal {number} whose output is stopped");
        return passing(what, "let it go on (Ctrl-Q)");
    }
    if master_events.contains(PollFlags::POLLPRI) {
        let what = format!("terminal {number} with a change of state that its master has not read");
        return passing(what, "try again in a moment");
    }
    Ok(None)
}

/// What poll(2) says now, after it has delivered what was on its way to this end.
fn events(end: &Sample<'_>) -> Result<PollFlags, FilesError> {
    let mut fds = [PollFd::new(end.as_fd(), PollFlags::POLLIN | PollFlags::POLLOUT | PollFlags::POLLPRI)];
    poll(&mut fds, PollTimeout::ZERO).map_err(failed("poll", end))?;
    Ok(fds[0].revents().unwrap_or(PollFlags::empty()))
}

fn hung_up(sample: &Sample<'_>) -> Finding {
    let name = printable(sample.target);
    let name = name.strip_suffix(" (deleted)").unwrap_or(&name);
    let what = format!("terminal {name}, whose master is closed");
    Finding::Refused(Refusal::new(what, "let the application close it, or restart the application"))
}

fn foreign(sample: &Sample<'_>) -> Finding {
    let what =
        format!("terminal {} of another devpts instance than the container's", printable(sample.target));
    Finding::Refused(Refusal::new(what, WITHOUT))
}

fn of_the_host(sample: &Sample<'_>) -> Finding {
    let what = format!("terminal {} of the host (a console or serial line)", printable(sample.target));
    Finding::Refused(Refusal::new(what, "stop the program that uses it, or give it no such device"))
}

fn failed(verb: &'static str, sample: &Sample<'_>) -> impl Fn(Errno) -> FilesError {
    let name = printable(sample.target);
    move |source| FilesError::Terminal { verb, name: name.clone(), source }
}
