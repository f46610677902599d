//! Shared memory that has a descriptor, a name or an id: how it is made, and what becomes of it.

use std::fs::{File, remove_file};
use std::os::fd::FromRawFd;
use std::path::PathBuf;

use super::memory::{self, Address, Backing, Protection};
use super::page::BYTES;

/// Where files in memory are.
const PLACE: &str = "/dev/shm";

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sort {
    /// A memfd whose descriptor stays open.
    Memfd,
    /// A file of a tmpfs.
    Named,
    /// The same, removed while it is mapped and open.
    Removed,
    /// A System V segment, removed while it is attached.
    Segment,
}

/// All of them.
pub(crate) const SORTS: [Sort; 4] = [Sort::Memfd, Sort::Named, Sort::Removed, Sort::Segment];

/// What an object needs beside its mappings. It ends with the last region that is mapped from it.
#[derive(Debug)]
pub(crate) struct Object {
    /// Stays open.
    _file: Option<File>,
    /// To be removed at the end.
    path: Option<PathBuf>,
}

impl Object {
    /// A new one of so many pages of zeros, mapped to be written. `number` is chosen by chance: other programs make some
    /// too, also in this process, before and after this one.
    pub(crate) fn map(sort: Sort, pages: usize, number: u64) -> std::io::Result<(Address, Self)> {
        let path = PathBuf::from(format!("{PLACE}/torture-{number:016x}"));
        let (file, path) = match sort {
            Sort::Segment => {
                let address = memory::attach_new_segment(pages)?;
                return Ok((address, Self { _file: None, path: None }));
            }
            Sort::Memfd => (memfd()?, None),
            Sort::Named => (open(&path)?, Some(path)),
            Sort::Removed => {
                let file = open(&path)?;
                remove_file(&path)?;
                (file, None)
            }
        };
        file.set_len((pages * BYTES) as u64)?;
        let address = memory::map(pages, Protection::Write, Backing::Object(&file))?;
        Ok((address, Self { _file: Some(file), path }))
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = remove_file(path);
        }
    }
}

fn open(path: &PathBuf) -> std::io::Result<File> {
    File::options().read(true).write(true).create_new(true).open(path)
}

fn memfd() -> std::io::Result<File> {
    // SAFETY: the name is a string that outlives the call.
    let fd = unsafe { libc::memfd_create(c"torture".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}
