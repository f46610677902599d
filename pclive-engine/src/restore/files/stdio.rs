//! stdin, stdout and stderr of the created container's init take the place of the source's.
//!
//! They are fetched before init loses them. Where the source had several descriptions of one stream, the first
//! takes the runtime's own and the others open it again, as far as it can be opened again (a socket cannot).

use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::error::FilesError;
use super::path::opening_flags;
use crate::model::{Descriptor, FileKind, OpenFile, Pid};
use crate::sys::{fcntl, openat2, pidfd};

/// The streams of the created init, those that it has.
#[derive(Debug)]
pub(super) struct Streams {
    streams: [Option<OwnedFd>; 3],
    used: [bool; 3],
}

impl Streams {
    /// Fetches the streams.
    pub(super) fn fetch(init: Pid) -> Result<Self, FilesError> {
        let failed = |source| FilesError::Stream { stream: 0, source };
        let process = pidfd::open(init).map_err(failed)?;
        let mut streams = [None, None, None];
        for (stream, slot) in (0..).zip(&mut streams) {
            *slot = match pidfd::getfd(&process, stream) {
                Ok(file) => Some(file),
                Err(Errno::EBADF) => None,
                Err(source) => return Err(FilesError::Stream { stream: stream as u8, source }),
            };
        }
        Ok(Self { streams, used: [false; 3] })
    }

    /// A description of a stream with these status flags.
    pub(super) fn take(&mut self, stream: u8, flags: i32) -> Result<OwnedFd, FilesError> {
        let failed = |source| FilesError::Stream { stream, source };
        let at = usize::from(stream);
        let (Some(Some(file)), Some(used)) = (self.streams.get(at), self.used.get_mut(at)) else {
            return Err(failed(nix::Error::EBADF));
        };
        if std::mem::replace(used, true)
            && let Ok(again) = openat2::reopen(file, opening_flags(flags))
        {
            return Ok(again);
        }
        fcntl::set_status(file, flags & !libc::O_ASYNC).map_err(failed)?;
        file.try_clone().map_err(|_| failed(nix::Error::EMFILE))
    }
}

/// The files with those first that init has as 0, 1 and 2: they get the runtime's own descriptions.
pub(super) fn own_first<'a>(files: &'a [OpenFile], init: &[Descriptor]) -> Vec<&'a OpenFile> {
    let is_own = |file: &&OpenFile| match file.kind {
        FileKind::Stdio(stream) => init.iter().any(|d| d.fd == i32::from(stream) && d.file == file.id),
        FileKind::Path { .. }
        | FileKind::Memory { .. }
        | FileKind::Pipe { .. }
        | FileKind::Event { .. }
        | FileKind::Timer { .. }
        | FileKind::Signal { .. }
        | FileKind::Epoll { .. }
        | FileKind::Socket(_)
        | FileKind::Master(_)
        | FileKind::Slave { .. } => false,
    };
    let (mut own, others): (Vec<_>, Vec<_>) = files.iter().partition(is_own);
    own.extend(others);
    own
}
