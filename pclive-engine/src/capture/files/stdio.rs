//! stdin, stdout and stderr of the container's init, where they lead out of the container.
//!
//! Every description of the container that leads to the same thing is taken for the same stream: workers inherit
//! it, servers open `/dev/stdout` a second time.

use nix::sys::stat::fstat;

use super::holder::Holder;
use super::scene::Sample;
use super::{FilesError, Mode};

/// Which file, opened how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    access: i32,
}

/// init's 0, 1 and 2.
#[derive(Debug, Default)]
pub(super) struct Stdio {
    streams: Vec<(u8, usize, Identity)>,
}

impl Stdio {
    /// Looks at the first three descriptors of init.
    pub(super) fn of(init: Option<&Holder>, mode: Mode) -> Result<Self, FilesError> {
        let mut streams = Vec::new();
        let Some(init) = init else { return Ok(Self { streams }) };
        for number in 0..3 {
            let Some(entry) = init.entry(i32::from(number)) else { continue };
            let Some(file) = mode.forgive(init.duplicate(entry.fd))? else { continue };
            let stat = fstat(&file).map_err(|source| FilesError::Descriptor {
                verb: "stat",
                pid: init.pid,
                fd: entry.fd,
                source,
            })?;
            let access = entry.info.flags & libc::O_ACCMODE;
            streams.push((number, entry.file, Identity { device: stat.st_dev, inode: stat.st_ino, access }));
        }
        Ok(Self { streams })
    }

    /// The stream that a description is: the one that init has it as, else one that leads to the same file.
    pub(super) fn find(&self, sample: &Sample<'_>) -> Option<u8> {
        let access = sample.info.flags & libc::O_ACCMODE;
        let identity = Identity { device: sample.stat.st_dev, inode: sample.stat.st_ino, access };
        let own = self.streams.iter().find(|(_, index, _)| *index == sample.index);
        own.or_else(|| self.streams.iter().find(|(_, _, stream)| *stream == identity)).map(|stream| stream.0)
    }
}
