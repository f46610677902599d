//! Pipes and FIFOs: both ends, and what is queued between them.
//!
//! The queue is copied with tee(2), which leaves it where it is. A pipe of which the container has one end only
//! is asked, with poll(2), whether anybody has the other: then it leads out of the container. (A FIFO whose
//! read end waits for its first writer cannot be told from one with a writer outside; it counts as inside.)

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::description::Description;
use super::holder::Holder;
use super::refusal::Refusal;
use super::scene::{Finding, Sample, Scene};
use super::{FilesError, Mode};
use crate::model::FileKind;
use crate::sys::pipe;
use std::os::fd::AsFd;

/// A pipe or FIFO: link and inode.
pub(super) type Key<'a> = (&'a [u8], u64);

/// Bit that keeps the numbers of FIFOs apart from those of nameless pipes.
const FIFO: u64 = 1 << 63;

/// The ends of a pipe that the container has.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// First description that can read.
    reader: Option<usize>,
    /// First description that can write.
    writer: Option<usize>,
    /// Number of the first description.
    first: usize,
    /// A write end is in packet mode (`O_DIRECT`).
    packets: bool,
}

/// Finds the ends of everything that may be a pipe (a FIFO shows by its type only when it is opened).
pub(super) fn ends<'a>(holders: &'a [Holder], descriptions: &[Description]) -> HashMap<Key<'a>, Ends> {
    let mut pipes: HashMap<Key<'a>, Ends> = HashMap::new();
    for (index, description) in descriptions.iter().enumerate() {
        let (_, entry) = description.first(holders);
        let candidate = entry.target.starts_with(b"pipe:[") || entry.target.starts_with(b"/");
        if !candidate || entry.info.flags & libc::O_PATH != 0 {
            continue;
        }
        let ends = pipes
            .entry((&entry.target, entry.info.inode))
            .or_insert_with(|| Ends { first: index, ..Ends::default() });
        let access = entry.info.flags & libc::O_ACCMODE;
        if access != libc::O_WRONLY {
            ends.reader.get_or_insert(index);
        }
        if access != libc::O_RDONLY {
            ends.writer.get_or_insert(index);
            ends.packets |= entry.info.flags & libc::O_DIRECT != 0;
        }
    }
    pipes
}

/// Captures an end of a nameless pipe, or of the FIFO `path`.
pub(super) fn capture(
    scene: &Scene<'_>,
    sample: &Sample<'_>,
    path: Option<Vec<u8>>,
) -> Result<Finding, FilesError> {
    let failed = |verb| move |source| FilesError::Pipe { verb, inode: sample.info.inode, source };
    let Some(ends) = scene.pipes.get(&(sample.target, sample.info.inode)) else {
        return Err(failed("find the ends of")(Errno::ENOENT));
    };
    if let Some(end) = other_end_outside(ends, sample, path.is_some()).map_err(failed("poll"))? {
        return Ok(Finding::Outside { refusal: leads_out(sample, end), substitute: None });
    }
    let queued = pipe::queued(sample).map_err(failed("read the queue length of"))?;
    let gives_contents = scene.mode == Mode::Dump && ends.reader == Some(sample.index) && queued > 0;
    if gives_contents && ends.packets {
        let what = format!("pipe {} in packet mode (O_DIRECT) with unread data", sample.info.inode);
        return Ok(Finding::Refused(Refusal::new(what, "try again when the application has read it")));
    }
    let capacity = pipe::capacity(sample).map_err(failed("read the capacity of"))?;
    let contents = match gives_contents {
        true => contents(sample, queued, capacity).map_err(failed("copy the queue of"))?,
        false => Vec::new(),
    };
    let pipe = if path.is_some() { FIFO | ends.first as u64 } else { sample.info.inode };
    let owner = (sample.stat.st_uid, sample.stat.st_gid);
    Ok(Finding::Carried(FileKind::Pipe { pipe, path, capacity, owner, contents }))
}

fn leads_out(sample: &Sample<'_>, end: &str) -> Refusal {
    Refusal::new(
        format!("pipe {} whose {end} end is outside of the container", sample.info.inode),
        "end the process that was started with it (an exec session, a log reader), or close the descriptor",
    )
}

/// The end that only a process outside has: "read", "write".
fn other_end_outside(ends: &Ends, sample: &Sample<'_>, fifo: bool) -> nix::Result<Option<&'static str>> {
    let (end, gone) = match (ends.reader, ends.writer) {
        (Some(_), None) if fifo => return Ok(None),
        (Some(_), None) => ("write", PollFlags::POLLHUP),
        (None, _) => ("read", PollFlags::POLLERR),
        (Some(_), Some(_)) => return Ok(None),
    };
    let mut fds = [PollFd::new(sample.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO)?;
    let closed = fds[0].revents().is_some_and(|events| events.contains(gone));
    Ok((!closed).then_some(end))
}

/// Copies `queued` bytes through a pipe of our own that is as large.
fn contents(sample: &Sample<'_>, queued: u32, capacity: u32) -> nix::Result<Vec<u8>> {
    let (read, write) = pipe::create(OFlag::O_NONBLOCK)?;
    pipe::set_capacity(&write, capacity)?;
    let copied = pipe::tee(sample, &write, queued as usize)?;
    drop(write);
    let mut bytes = Vec::with_capacity(copied);
    File::from(read)
        .read_to_end(&mut bytes)
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    if bytes.len() == queued as usize { Ok(bytes) } else { Err(Errno::EIO) }
}
