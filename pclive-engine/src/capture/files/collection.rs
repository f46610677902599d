//! One pass over the descriptions of a container: each becomes an open file or a blocker.

use std::os::fd::OwnedFd;

use super::description::{self, Description};
use super::epoll::Resolver;
use super::holder::Holder;
use super::owner::Owners;
use super::refusal::{Refusal, printable, special_file};
use super::scene::{Finding, Sample, Scene};
use super::stdio::Stdio;
use super::{Files, FilesError, Mode, event, path, pipe, signal, socket, terminal, timer};
use crate::capture::sockets::UnixDiag;
use crate::model::{Blocker, FileId, FileKind, OpenFile, Place};

/// A collection that is going on.
pub(super) struct Collection<'a> {
    pub(super) scene: &'a Scene<'a>,
    pub(super) diag: &'a UnixDiag,
    pub(super) stdio: Stdio,
    pub(super) owners: Owners,
    pub(super) resolver: Resolver<'a>,
    pub(super) found: Files,
}

impl Collection<'_> {
    /// Looks at every description.
    pub(super) fn run(mut self, descriptions: &[Description]) -> Result<Files, FilesError> {
        for (index, description) in descriptions.iter().enumerate() {
            let captured = self.capture(index, description);
            match self.scene.mode.forgive(captured)?.flatten() {
                Some(Ok(file)) => self.found.files.push(file),
                Some(Err(refusal)) => {
                    let blocker = self.blocker(description, refusal);
                    self.found.blockers.push(blocker);
                }
                None => {}
            }
        }
        self.judge_peers(descriptions)?;
        self.judge_terminals(descriptions)?;
        Ok(self.found)
    }

    /// `None` for a socket that is in passing.
    fn capture(
        &mut self,
        index: usize,
        description: &Description,
    ) -> Result<Option<Result<OpenFile, Refusal>>, FilesError> {
        let sample = Sample::take(self.scene.holders, index, description)?;
        let owner = self.owners.find(&sample)?;
        let stream = self.stdio.find(&sample).map(FileKind::Stdio);
        let flags = sample.info.status();
        let finding = if description::is_socket(sample.target) {
            self.capture_socket(description, sample.file)
        } else {
            Some(self.classify(description, &sample)?)
        };
        let kind = match finding {
            None => return Ok(None),
            Some(Finding::Carried(kind)) => kind,
            Some(Finding::Outside { refusal, substitute }) => match stream.or(substitute) {
                Some(kind) => kind,
                None => return Ok(Some(Err(refusal))),
            },
            Some(Finding::NotNow(refusal)) => {
                let blocker = self.blocker(description, refusal);
                self.found.transient.push(blocker);
                return Ok(None);
            }
            Some(Finding::Refused(refusal)) => return Ok(Some(Err(refusal))),
        };
        Ok(Some(Ok(OpenFile { id: FileId(index as u32), flags, owner, kind })))
    }

    fn classify(&self, description: &Description, sample: &Sample<'_>) -> Result<Finding, FilesError> {
        let detail = &sample.info.detail;
        let kind = match sample.target {
            target if target.starts_with(b"/") && terminal::is_terminal(sample) => {
                return terminal::capture(self.scene, &self.owners, sample);
            }
            target if target.starts_with(b"/") => return path::capture(self.scene, description, sample),
            target if target.starts_with(b"pipe:[") => return pipe::capture(self.scene, sample, None),
            b"anon_inode:[eventfd]" => event::capture(detail),
            b"anon_inode:[timerfd]" => timer::capture(self.scene, sample)?,
            b"anon_inode:[signalfd]" => signal::capture(detail),
            b"anon_inode:[eventpoll]" => match self.resolver.capture(description)? {
                Ok(kind) => Some(kind),
                Err(refusal) => return Ok(Finding::Refused(refusal)),
            },
            _ => None,
        };
        Ok(kind.map_or_else(|| Finding::Refused(special_file(sample.target)), Finding::Carried))
    }

    fn capture_socket(&mut self, description: &Description, file: OwnedFd) -> Option<Finding> {
        match socket::capture(file, self.diag, (self.scene.mode, self.scene.connections)) {
            Ok(captured) => {
                self.found.sockets.push(captured.guard);
                Some(Finding::Carried(FileKind::Socket(Box::new(captured.socket))))
            }
            Err(refused) if !refused.transient => {
                Some(Finding::Outside { refusal: refused.refusal, substitute: None })
            }
            Err(refused) => {
                if self.scene.mode == Mode::Dump {
                    let blocker = self.blocker(description, refused.refusal);
                    self.found.transient.push(blocker);
                }
                None
            }
        }
    }

    /// Unix sockets whose peers turned out to be outside: stdio, or refused.
    fn judge_peers(&mut self, descriptions: &[Description]) -> Result<(), FilesError> {
        let description = |id: FileId| &descriptions[id.0 as usize];
        let inode = |id: FileId| description(id).first(self.scene.holders).1.info.inode;
        for (id, refusal) in socket::outside(&self.found.files, inode) {
            let sample = Sample::take(self.scene.holders, id.0 as usize, description(id));
            let stream = self.scene.mode.forgive(sample)?.and_then(|sample| self.stdio.find(&sample));
            match (stream, self.found.files.iter().position(|file| file.id == id)) {
                (Some(stream), Some(at)) => self.found.files[at].kind = FileKind::Stdio(stream),
                (None, Some(at)) => {
                    self.found.files.remove(at);
                    let blocker = self.blocker(description(id), refusal);
                    self.found.blockers.push(blocker);
                }
                (_, None) => {}
            }
        }
        Ok(())
    }

    /// Slaves without their masters are refused; in a dump, terminals in which something waits are passing.
    fn judge_terminals(&mut self, descriptions: &[Description]) -> Result<(), FilesError> {
        for (id, refusal) in terminal::without_master(&self.found.files) {
            self.found.files.retain(|file| file.id != id);
            let blocker = self.blocker(&descriptions[id.0 as usize], refusal);
            self.found.blockers.push(blocker);
        }
        if self.scene.mode == Mode::Check {
            return Ok(());
        }
        let sample =
            |id: FileId| Sample::take(self.scene.holders, id.0 as usize, &descriptions[id.0 as usize]);
        let mut waiting = Vec::new();
        for file in &self.found.files {
            let FileKind::Master(told) = &file.kind else { continue };
            let is_slave = |file: &&OpenFile| matches!(&file.kind, FileKind::Slave { terminal, .. } if *terminal == told.number);
            let slave = self.found.files.iter().find(is_slave).map(|file| sample(file.id)).transpose()?;
            let refusal = terminal::waiting(told, &sample(file.id)?, slave.as_ref())?;
            waiting.extend(refusal.map(|refusal| (file.id, refusal)));
        }
        for (id, refusal) in waiting {
            let blocker = self.blocker(&descriptions[id.0 as usize], refusal);
            self.found.transient.push(blocker);
        }
        Ok(())
    }

    fn blocker(&self, description: &Description, refusal: Refusal) -> Blocker {
        let (holder, entry) = description.first(self.scene.holders);
        blocker(holder, Place::Descriptor(entry.fd), refusal)
    }
}

/// A blocker of a process.
pub(super) fn blocker(holder: &Holder, place: Place, refusal: Refusal) -> Blocker {
    let comm = crate::proc::read(format!("/proc/{}/comm", holder.pid)).unwrap_or_default();
    let comm = printable(comm.strip_suffix(b"\n").unwrap_or(&comm));
    Blocker { pid: holder.pid.0, vpid: holder.vpid, comm, place, what: refusal.what, hint: refusal.hint }
}
