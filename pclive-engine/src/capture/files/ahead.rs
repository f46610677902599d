//! What processes have open by a path, and what they listen on, while the container runs: the destination opens it before
//! the stop.

use std::collections::{HashMap, HashSet};

use super::description::{self, Description};
use super::scene::{Finding, Sample, Scene};
use super::{FilesError, Mode, Table, descriptors, path, socket, terminal};
use crate::capture::sockets::UnixDiag;
use crate::memory::Objects;
use crate::model::socket::{Socket, SocketKind};
use crate::model::{FileId, FileKind, OpenFile, OpenFiles, Pid, Vpid};
use crate::proc::inet_diag;

/// What a round tells of open files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilesAhead {
    /// Those that a path leads to.
    pub files: bool,
    /// Listening TCP sockets.
    pub listeners: bool,
}

impl FilesAhead {
    /// Everything is left for the stop.
    pub const NOTHING: Self = Self { files: false, listeners: false };
    /// All that can be told ahead.
    pub const ALL: Self = Self { files: true, listeners: true };
}

/// Listening sockets that a round has read, by inode. Later rounds do not read them again: for that a duplicate is needed,
/// for whose moment a program that closes its own cannot use the port anew. What changes is seen at the stop.
#[derive(Debug, Default)]
pub struct Listeners {
    /// `None`: one that cannot be told, or that no process of the container has.
    known: HashMap<u64, Option<Box<Socket>>>,
}

impl Table {
    /// The files of `processes` that are `wanted`. What goes away meanwhile is left out, and so is what cannot be
    /// carried: the final dump looks at everything again.
    pub fn ahead(
        &self,
        processes: &[(Pid, Vpid)],
        objects: &Objects,
        wanted: FilesAhead,
        listeners: &mut Listeners,
    ) -> Result<OpenFiles, FilesError> {
        let listening = if wanted.listeners { self.listening()? } else { HashSet::new() };
        listeners.known.retain(|inode, _| listening.contains(inode));
        let is_new = listening.iter().any(|inode| !listeners.known.contains_key(inode));
        let diag = is_new.then(|| self.diag.take()).transpose()?;
        let found = self.look_at(processes, Mode::Check, objects, |scene, descriptions| {
            let mut open = OpenFiles::default();
            for (index, description) in descriptions.iter().enumerate() {
                let (_, entry) = description.first(scene.holders);
                let found = if !description::is_socket(&entry.target) {
                    if wanted.files { by_path(scene, index, description) } else { Ok(None) }
                } else if listening.contains(&entry.info.inode) {
                    listeners.find(scene, index, description, diag.as_ref())
                } else {
                    Ok(None)
                };
                open.files.extend(Mode::Check.forgive(found)?.flatten());
            }
            let told: HashSet<FileId> = open.files.iter().map(|file| file.id).collect();
            open.descriptors = scene.holders.iter().map(descriptors).collect();
            open.descriptors.iter_mut().for_each(|(_, own)| own.retain(|own| told.contains(&own.file)));
            Ok(open)
        })?;
        for inode in listening {
            listeners.known.entry(inode).or_default();
        }
        Ok(found)
    }

    /// The inodes of the sockets that listen in the container's network namespace.
    fn listening(&self) -> Result<HashSet<u64>, FilesError> {
        let found = self.diag.connections(&[inet_diag::LISTEN])?;
        Ok(found.iter().map(|listener| u64::from(listener.inode)).collect())
    }
}

impl Listeners {
    /// A listening socket; `None` for one that cannot be told, or is something else by now.
    fn find(
        &mut self,
        scene: &Scene<'_>,
        index: usize,
        description: &Description,
        diag: Option<&UnixDiag>,
    ) -> Result<Option<OpenFile>, FilesError> {
        let (_, entry) = description.first(scene.holders);
        let inode = entry.info.inode;
        if let (None, Some(diag)) = (self.known.get(&inode), diag) {
            let sample = Sample::take(scene.holders, index, description)?;
            if sample.stat.st_ino != inode {
                return Ok(None);
            }
            let captured = socket::capture(sample.file, diag, (Mode::Check, scene.connections));
            if let Ok(captured) = captured
                && matches!(captured.socket.kind, SocketKind::TcpListener { .. })
            {
                self.known.insert(inode, Some(Box::new(captured.socket)));
            }
        }
        let kind = self.known.get(&inode).cloned().flatten().map(FileKind::Socket);
        let id = FileId(index as u32);
        Ok(kind.map(|kind| OpenFile { id, flags: entry.info.status(), owner: None, kind }))
    }
}

fn by_path(
    scene: &Scene<'_>,
    index: usize,
    description: &Description,
) -> Result<Option<OpenFile>, FilesError> {
    let (holder, entry) = description.first(scene.holders);
    let locked = description.held.iter().any(|at| scene.entry(*at).info.lock.is_some());
    if !entry.target.starts_with(b"/") || locked {
        return Ok(None);
    }
    let sample = Sample::look(holder, entry, index)?;
    if terminal::is_terminal(&sample) {
        return Ok(None);
    }
    Ok(match path::capture(scene, description, &sample)? {
        Finding::Carried(FileKind::Path { path, file_type, .. }) => {
            let kind = FileKind::Path { path, offset: 0, file_type };
            Some(OpenFile { id: FileId(index as u32), flags: sample.info.status(), owner: None, kind })
        }
        Finding::Carried(_) | Finding::Outside { .. } | Finding::NotNow(_) | Finding::Refused(_) => None,
    })
}
