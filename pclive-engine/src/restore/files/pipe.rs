//! Pipes and FIFOs: made once, filled, then one description for every end that the source has.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use nix::unistd::{Gid, Uid, fchown};

use super::error::{FilesError, printable};
use super::path::{check_type, opening_flags};
use crate::model::{FileId, FileKind, OpenFile};
use crate::proc::root::ContainerRoot;
use crate::sys::{fcntl, openat2, pipe};

/// A pipe of the source: what its ends say together.
struct Plan<'a> {
    path: Option<&'a [u8]>,
    capacity: u32,
    owner: (u32, u32),
    contents: &'a [u8],
    ends: Vec<(FileId, i32)>,
}

/// A pipe that is there, with both ends open for as long as this lives.
struct Made {
    read: OwnedFd,
    write: OwnedFd,
    /// The description of `read` belongs to an end of the plan already (always so for a FIFO, which has none).
    reader_used: bool,
    writer_used: bool,
}

/// Makes every pipe; adds the descriptor of each end to `opened`, and to `warnings` what is less than it was.
pub(super) fn make_all(
    files: &[OpenFile],
    root: &ContainerRoot,
    opened: &mut HashMap<FileId, OwnedFd>,
    warnings: &mut Vec<String>,
) -> Result<(), FilesError> {
    for plan in plans(files) {
        let file = plan.ends.first().map_or(FileId(0), |(file, _)| *file);
        let mut made = match plan.path {
            None => nameless(&plan, file)?,
            Some(path) => fifo(path, root)?,
        };
        resize(&plan, &made, file, warnings)?;
        fill(&made, plan.contents).map_err(FilesError::make("fill a pipe", file))?;
        for (file, flags) in &plan.ends {
            let end = end(&mut made, *flags).map_err(FilesError::make("open an end of a pipe", *file))?;
            fcntl::set_status(&end, *flags & !libc::O_ASYNC)
                .map_err(FilesError::make("set the flags of a pipe", *file))?;
            opened.insert(*file, end);
        }
    }
    Ok(())
}

fn plans(files: &[OpenFile]) -> Vec<Plan<'_>> {
    let mut places = HashMap::new();
    let mut plans: Vec<Plan<'_>> = Vec::new();
    for file in files {
        let FileKind::Pipe { pipe, path, capacity, owner, contents } = &file.kind else { continue };
        let at = *places.entry(pipe).or_insert_with(|| {
            let (path, contents, ends) = (path.as_deref(), [].as_slice(), Vec::new());
            plans.push(Plan { path, capacity: *capacity, owner: *owner, contents, ends });
            plans.len() - 1
        });
        if !contents.is_empty() {
            plans[at].contents = contents;
        }
        plans[at].ends.push((file.id, file.flags));
    }
    plans
}

fn nameless(plan: &Plan<'_>, file: FileId) -> Result<Made, FilesError> {
    let packets = plan.ends.iter().any(|(_, flags)| is_packet_writer(*flags));
    let mode = if packets { OFlag::O_DIRECT } else { OFlag::empty() };
    let (read, write) =
        pipe::create(mode | OFlag::O_NONBLOCK).map_err(FilesError::make("create a pipe", file))?;
    let (user, group) = plan.owner;
    fchown(&write, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))
        .map_err(FilesError::make("give a pipe its owner", file))?;
    Ok(Made { read, write, reader_used: false, writer_used: false })
}

fn is_packet_writer(flags: i32) -> bool {
    flags & libc::O_DIRECT != 0 && flags & libc::O_ACCMODE != libc::O_RDONLY
}

/// A FIFO is opened for both directions first, so that no opening waits for the other end.
fn fifo(path: &[u8], root: &ContainerRoot) -> Result<Made, FilesError> {
    let place = root.resolve(path).map_err(FilesError::path("find", path))?;
    let stat = fstat(&place).map_err(FilesError::path("stat", path))?;
    check_type(path, &stat, libc::S_IFIFO)?;
    let open = || openat2::reopen(&place, OFlag::O_RDWR | OFlag::O_NONBLOCK);
    let (read, write) =
        open().and_then(|read| Ok((read, open()?))).map_err(FilesError::path("open", path))?;
    match pipe::queued(&read).map_err(FilesError::path("look into", path))? {
        0 => Ok(Made { read, write, reader_used: true, writer_used: true }),
        bytes => Err(FilesError::FifoInUse { path: printable(path), bytes }),
    }
}

/// Gives the pipe its capacity. Without the privilege for a large one it keeps its own, if the contents fit.
fn resize(plan: &Plan<'_>, made: &Made, file: FileId, warnings: &mut Vec<String>) -> Result<(), FilesError> {
    let failed = FilesError::make("set the capacity of a pipe", file);
    if pipe::capacity(&made.read).map_err(&failed)? == plan.capacity {
        return Ok(());
    }
    match pipe::set_capacity(&made.read, plan.capacity) {
        Ok(()) => return Ok(()),
        Err(Errno::EPERM | Errno::ENOMEM) => {}
        Err(source) => return Err(failed(source)),
    }
    let capacity = pipe::capacity(&made.read).map_err(&failed)?;
    if plan.contents.len() > capacity as usize {
        return Err(FilesError::PipeTooSmall { bytes: plan.contents.len(), capacity });
    }
    let was = plan.capacity;
    warnings.push(format!("a pipe of {was} bytes has {capacity} bytes here (fs.pipe-max-size)"));
    Ok(())
}

fn fill(made: &Made, mut contents: &[u8]) -> nix::Result<()> {
    while !contents.is_empty() {
        match nix::unistd::write(&made.write, contents)? {
            0 => return Err(Errno::EIO),
            written => contents = contents.get(written..).unwrap_or_default(),
        }
    }
    Ok(())
}

/// A description with the access mode of `flags`: the pipe's own end for the first of each, a new one after it.
fn end(made: &mut Made, flags: i32) -> nix::Result<OwnedFd> {
    let own = match flags & libc::O_ACCMODE {
        libc::O_RDONLY if !made.reader_used => {
            made.reader_used = true;
            Some(&made.read)
        }
        libc::O_WRONLY if !made.writer_used => {
            made.writer_used = true;
            Some(&made.write)
        }
        _ => None,
    };
    match own {
        Some(end) => end.try_clone().map_err(|_| Errno::EMFILE),
        None => openat2::reopen(&made.read, opening_flags(flags) | OFlag::O_NONBLOCK),
    }
}
