//! Regular files, directories and device nodes, opened anew by their path inside the container.
//!
//! The path is walked first, the type checked next, and only then the file opened, so that nothing unexpected (a
//! FIFO, a device with effects on opening) ever is.

use std::fs::File;
use std::os::fd::OwnedFd;

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag, fstat};
use nix::unistd::{Whence, lseek};

use super::error::{FilesError, printable};
use crate::capture::files::is_carried_device;
use crate::model::OpenFile;
use crate::proc::root::ContainerRoot;
use crate::sys::openat2::reopen;

/// Flags that a second opening takes; `O_CREAT`, `O_EXCL` and `O_TRUNC` have done their work, `O_ASYNC` comes later.
const FLAGS: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_SYNC
    | libc::O_DIRECT
    | libc::O_LARGEFILE
    | libc::O_DIRECTORY
    | libc::O_NOATIME;

/// The flags of a second opening.
pub(super) fn opening_flags(flags: i32) -> OFlag {
    OFlag::from_bits_retain(flags & FLAGS | libc::O_NOCTTY)
}

/// Opens a file of [`crate::model::FileKind::Path`].
pub(super) fn open(
    root: &ContainerRoot,
    path: &[u8],
    flags: i32,
    offset: i64,
    file_type: u32,
) -> Result<OwnedFd, FilesError> {
    let place = root.resolve(path).map_err(FilesError::path("find", path))?;
    let stat = fstat(&place).map_err(FilesError::path("stat", path))?;
    check_type(path, &stat, file_type)?;
    if flags & libc::O_PATH != 0 {
        return opaque(place, path, flags);
    }
    if file_type == libc::S_IFCHR && !is_carried_device(stat.st_rdev) {
        return Err(other_type(path, "another device", file_type));
    }
    let file = reopen(&place, opening_flags(flags)).map_err(FilesError::path("open", path))?;
    set_offset(&file, path, flags, offset, file_type)?;
    Ok(file)
}

/// Sets the offset of a file that was opened at its beginning.
pub(super) fn set_offset(
    file: &OwnedFd,
    path: &[u8],
    flags: i32,
    offset: i64,
    file_type: u32,
) -> Result<(), FilesError> {
    if offset != 0 && file_type != libc::S_IFCHR && flags & libc::O_PATH == 0 {
        lseek(file, offset, Whence::SeekSet).map_err(FilesError::path("set the offset of", path))?;
    }
    Ok(())
}

/// Makes a directory list what is in it now: some file systems take note of its end when it is opened.
pub(super) fn rewind(file: &OwnedFd, path: &[u8], flags: i32, file_type: u32) -> Result<(), FilesError> {
    if file_type == libc::S_IFDIR && flags & libc::O_PATH == 0 {
        lseek(file, 0, Whence::SeekSet).map_err(FilesError::path("rewind", path))?;
    }
    Ok(())
}

/// Opens a file of [`crate::model::FileKind::Memory`] once more.
pub(super) fn open_again(found: &File, file: &OpenFile, offset: i64) -> Result<OwnedFd, FilesError> {
    let opened = reopen(found, opening_flags(file.flags));
    let opened = opened.map_err(FilesError::make("open a file in memory", file.id))?;
    lseek(&opened, offset, Whence::SeekSet).map_err(FilesError::make("set an offset", file.id))?;
    Ok(opened)
}

fn opaque(place: OwnedFd, path: &[u8], flags: i32) -> Result<OwnedFd, FilesError> {
    if flags & libc::O_NOFOLLOW != 0 {
        return Ok(place);
    }
    let flags = OFlag::from_bits_retain(flags & libc::O_DIRECTORY) | OFlag::O_PATH;
    reopen(&place, flags).map_err(FilesError::path("open", path))
}

/// Refuses a file of another type than the source's.
pub(super) fn check_type(path: &[u8], stat: &FileStat, expected: u32) -> Result<(), FilesError> {
    let found = stat.st_mode & SFlag::S_IFMT.bits();
    if found == expected { Ok(()) } else { Err(other_type(path, type_name(found), expected)) }
}

fn other_type(path: &[u8], found: &'static str, expected: u32) -> FilesError {
    FilesError::OtherType { path: printable(path), found, expected: type_name(expected) }
}

fn type_name(file_type: u32) -> &'static str {
    match file_type {
        libc::S_IFREG => "a regular file",
        libc::S_IFDIR => "a directory",
        libc::S_IFCHR => "a character device",
        libc::S_IFBLK => "a block device",
        libc::S_IFIFO => "a FIFO",
        libc::S_IFLNK => "a symbolic link",
        libc::S_IFSOCK => "a socket",
        _ => "of an unknown type",
    }
}
