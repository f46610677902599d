//! Pseudo-terminals: settings, window size and modes of those that the skeleton has, and the others made anew; then
//! a slave for every description that the source has.
//!
//! Invariants: the master is the very description that [`Terminals`] keeps; a lock and exclusive mode come last,
//! because both are in the way of opening. A descriptor of `/dev/tty` is opened in the session's leader, since to
//! anybody else it is another terminal; where the terminal controls no session any more, its own node is as good.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fchmod, fstat, makedev};
use nix::unistd::{Gid, Uid, fchown};

use super::error::FilesError;
use super::path::{check_type, opening_flags};
use crate::model::terminal::{Terminal, number_of_device};
use crate::model::{FileId, FileKind, OpenFile, Vpid};
use crate::proc::root::ContainerRoot;
use crate::remote::{Batch, Call, Processes};
use crate::restore::terminals::{Ends, TerminalError, Terminals};
use crate::sys::{fcntl, openat2, pidfd, terminal};

/// What the descriptions of terminals are opened with.
pub(super) struct Workshop<'a> {
    pub(super) root: &'a ContainerRoot,
    pub(super) terminals: &'a mut Terminals,
    pub(super) processes: &'a mut dyn Processes,
}

/// Makes every terminal of `files`; adds the descriptor of each end to `opened`. Terminals that are not wanted end.
pub(super) fn make_all(
    files: &[OpenFile],
    workshop: &mut Workshop<'_>,
    opened: &mut HashMap<FileId, OwnedFd>,
) -> Result<(), FilesError> {
    let mut masters = Vec::new();
    for file in files {
        if let FileKind::Master(told) = &file.kind {
            masters.push((file, &**told));
        }
    }
    // In the order in which the kernel hands their numbers out.
    masters.sort_unstable_by_key(|(_, told)| told.number);
    workshop.terminals.keep(|number| masters.iter().any(|(_, told)| told.number == number));
    for (file, told) in &masters {
        let ends = workshop.terminals.obtain(told.number, workshop.root)?;
        opened.insert(file.id, set(ends, told, file.flags)?);
    }
    for file in files {
        let FileKind::Slave { terminal, path, .. } = &file.kind else { continue };
        let session = masters.iter().find(|(_, told)| told.number == *terminal);
        let session = session.and_then(|(_, told)| told.session);
        let leader = session.map(|session| session.leader);
        opened.insert(file.id, workshop.open_slave(*terminal, path, file.flags, leader)?);
    }
    seal(files, opened)
}

/// Gives a terminal what the source's has; returns its master.
fn set(ends: &Ends, told: &Terminal, flags: i32) -> Result<OwnedFd, TerminalError> {
    let failed = |verb| TerminalError::request(verb, told.number);
    terminal::set_settings(&ends.master, &told.settings).map_err(failed("set the modes of"))?;
    terminal::set_size(&ends.master, told.size).map_err(failed("set the size of"))?;
    // After the settings, whose change it would report.
    terminal::set_packet(&ends.master, told.packet).map_err(failed("set the packet mode of"))?;
    let (user, group) = told.owner;
    fchown(&ends.slave, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))
        .map_err(failed("set the owner of"))?;
    let mode = Mode::from_bits_truncate(told.mode);
    fchmod(&ends.slave, mode).map_err(failed("set the permissions of"))?;
    fcntl::set_status(&ends.master, flags & !libc::O_ASYNC).map_err(failed("set the status flags of"))?;
    ends.master.try_clone().map_err(|_| failed("duplicate")(nix::Error::EMFILE))
}

impl Workshop<'_> {
    fn open_slave(
        &mut self,
        number: u32,
        path: &[u8],
        flags: i32,
        leader: Option<Vpid>,
    ) -> Result<OwnedFd, FilesError> {
        let failed = |verb| FilesError::path(verb, path);
        let place = self.root.resolve(path).map_err(failed("find"))?;
        let stat = fstat(&place).map_err(failed("stat"))?;
        check_type(path, &stat, libc::S_IFCHR)?;
        if u32::try_from(stat.st_rdev).ok().and_then(|device| number_of_device(device.into())) == Some(number)
        {
            return openat2::reopen(&place, opening_flags(flags)).map_err(failed("open"));
        }
        if stat.st_rdev != makedev(5, 0) {
            return Err(failed("open")(nix::Error::ENXIO));
        }
        match leader {
            Some(leader) => self.open_in(leader, path, opening_flags(flags)),
            None => {
                let ends = self.terminals.obtain(number, self.root)?;
                let again = terminal::open_slave(&ends.master, opening_flags(flags).bits());
                Ok(again.map_err(TerminalError::request("open", number))?)
            }
        }
    }

    /// Opens `/dev/tty` in a process, whose table is the same afterwards.
    fn open_in(&mut self, vpid: Vpid, path: &[u8], flags: OFlag) -> Result<OwnedFd, FilesError> {
        let failed = |verb| FilesError::path(verb, path);
        let pid = self.processes.pid(vpid).ok_or(FilesError::NoProcess { vpid })?;
        let task = self.processes.leader(vpid).ok_or(FilesError::NoProcess { vpid })?;
        let mut batch = Batch::new(task);
        let name = batch.place(&[path, b"\0"].concat())?.address();
        let flags = (flags | OFlag::O_CLOEXEC).bits() as u64;
        let open = batch.call(libc::SYS_openat, &[libc::AT_FDCWD as u64, name, flags, 0]);
        let answers = batch.run(task)?;
        let fd = answers.result(open).map_err(failed("open"))?;
        let fetched = pidfd::open(pid).and_then(|process| pidfd::getfd(process, fd as i32));
        task.run(&[Call::new(libc::SYS_close, &[fd])])?;
        fetched.map_err(failed("fetch"))
    }
}

/// Locks and exclusive modes.
fn seal(files: &[OpenFile], opened: &HashMap<FileId, OwnedFd>) -> Result<(), FilesError> {
    for file in files {
        let Some(end) = opened.get(&file.id) else { continue };
        let (number, exclusive) = match &file.kind {
            FileKind::Master(told) => {
                let failed = TerminalError::request("lock", told.number);
                terminal::set_locked(end, told.locked).map_err(failed)?;
                (told.number, told.exclusive)
            }
            FileKind::Slave { terminal, exclusive, .. } => (*terminal, *exclusive),
            FileKind::Path { .. }
            | FileKind::Memory { .. }
            | FileKind::Pipe { .. }
            | FileKind::Stdio(_)
            | FileKind::Event { .. }
            | FileKind::Timer { .. }
            | FileKind::Signal { .. }
            | FileKind::Epoll { .. }
            | FileKind::Socket(_) => continue,
        };
        if exclusive {
            let failed = TerminalError::request("set the exclusive mode of", number);
            terminal::set_exclusive(end.as_fd()).map_err(failed)?;
        }
    }
    Ok(())
}
