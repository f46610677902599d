//! What the capture of one description looks at.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::stat::{FileStat, fstat};

use super::description::Description;
use super::holder::{Entry, Holder};
use super::mounts::Mounts;
use super::refusal::Refusal;
use super::{FilesError, Mode, pipe};
use crate::capture::sockets::Connections;
use crate::memory::Objects;
use crate::model::FileKind;
use crate::proc::fdinfo::FdInfo;
use crate::proc::root::ContainerRoot;

/// The container as a whole.
#[derive(Debug)]
pub(super) struct Scene<'a> {
    pub(super) holders: &'a [Holder],
    pub(super) root: &'a ContainerRoot,
    pub(super) mounts: &'a Mounts,
    pub(super) pipes: HashMap<pipe::Key<'a>, pipe::Ends>,
    pub(super) objects: &'a Objects,
    pub(super) mode: Mode,
    pub(super) connections: Connections,
}

impl<'a> Scene<'a> {
    /// The entry that a [`Description`] names.
    pub(super) fn entry(&self, (holder, entry): (usize, usize)) -> &'a Entry {
        &self.holders[holder].entries[entry]
    }
}

/// One description, looked at through a duplicate of its first descriptor.
#[derive(Debug)]
pub(super) struct Sample<'a> {
    pub(super) index: usize,
    pub(super) target: &'a [u8],
    pub(super) info: &'a FdInfo,
    pub(super) stat: FileStat,
    pub(super) file: OwnedFd,
}

impl<'a> Sample<'a> {
    /// Duplicates the descriptor.
    pub(super) fn take(
        holders: &'a [Holder],
        index: usize,
        description: &Description,
    ) -> Result<Self, FilesError> {
        let (holder, entry) = description.first(holders);
        Self::of(holder, entry, index, holder.duplicate(entry.fd)?)
    }

    /// Looks at what is open without duplicating the descriptor: the description ends when its program closes it.
    pub(super) fn look(holder: &Holder, entry: &'a Entry, index: usize) -> Result<Self, FilesError> {
        Self::of(holder, entry, index, holder.look(entry.fd)?)
    }

    fn of(holder: &Holder, entry: &'a Entry, index: usize, file: OwnedFd) -> Result<Self, FilesError> {
        let stat = fstat(&file).map_err(|source| FilesError::Descriptor {
            verb: "stat",
            pid: holder.pid,
            fd: entry.fd,
            source,
        })?;
        Ok(Self { index, target: &entry.target, info: &entry.info, stat, file })
    }
}

impl AsFd for Sample<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// What became of a description.
#[derive(Debug)]
pub(super) enum Finding {
    /// It is carried.
    Carried(FileKind),
    /// It leads out of the container: stdio, or `substitute`, or refused.
    Outside {
        /// Why it is refused if it is not stdio.
        refusal: Refusal,
        /// Something inside that is as good.
        substitute: Option<FileKind>,
    },
    /// It cannot be carried just now.
    NotNow(Refusal),
    /// It cannot be carried.
    Refused(Refusal),
}
