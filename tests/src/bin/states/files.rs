//! Files: offsets, flags, owners, and which descriptors share them.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use anyhow::{Result, ensure};

use crate::{Check, State, calls, same};

pub(crate) const STATES: &[State] = &[
    ("offsets", offsets),
    ("file-flags", file_flags),
    ("directory-descriptor", directory),
    ("devices", devices),
    ("owner", owner),
];

/// A dup shares its offset, a second open does not.
fn offsets() -> Result<Check> {
    let path = "/data/offsets";
    std::fs::write(path, "0123456789")?;
    let mut file = File::options().read(true).write(true).open(path)?;
    let (mut dup, mut other) = (file.try_clone()?, File::open(path)?);
    file.seek(SeekFrom::Start(4))?;
    other.seek(SeekFrom::Start(7))?;
    Ok(Box::new(move || {
        same("offset", &4, &dup.stream_position()?)?;
        dup.seek(SeekFrom::Start(2))?;
        same("offset of the dup's origin", &2, &file.stream_position()?)?;
        same("offset of the second open", &7, &other.stream_position()?)?;
        let mut rest = String::new();
        other.read_to_string(&mut rest)?;
        same("rest", &"789".to_owned(), &rest)?;
        other.seek(SeekFrom::Start(7))?;
        file.seek(SeekFrom::Start(4))?;
        Ok(())
    }))
}

fn file_flags() -> Result<Check> {
    let mut append = File::options().append(true).create(true).open("/data/append")?;
    append.write_all(b"a")?;
    calls::fcntl(append.as_fd(), libc::F_SETFD, 0)?;
    let kept = File::open("/data/append")?;
    let look = move || -> Result<[i32; 4]> {
        let flags = |file: &File, command| calls::fcntl(file.as_fd(), command, 0);
        Ok([
            flags(&append, libc::F_GETFL)?,
            flags(&append, libc::F_GETFD)?,
            flags(&kept, libc::F_GETFL)?,
            flags(&kept, libc::F_GETFD)?,
        ])
    };
    let before = look()?;
    ensure!(before[1] == 0 && before[3] == libc::FD_CLOEXEC, "flags were not taken: {before:?}");
    Ok(Box::new(move || same("flags", &before, &look()?)))
}

fn directory() -> Result<Check> {
    let directory = File::open("/etc")?;
    Ok(Box::new(move || {
        ensure!(directory.metadata()?.is_dir(), "it is no directory");
        same("inode", &std::fs::metadata("/etc")?.ino(), &directory.metadata()?.ino())
    }))
}

fn devices() -> Result<Check> {
    let open = |path: &str| File::options().read(true).write(true).open(path);
    let (mut null, mut zero) = (open("/dev/null")?, open("/dev/zero")?);
    let (mut full, mut random) = (open("/dev/full")?, File::open("/dev/urandom")?);
    Ok(Box::new(move || {
        let mut byte = [1; 8];
        same("null", &0, &null.read(&mut byte)?)?;
        zero.read_exact(&mut byte)?;
        same("zero", &[0; 8], &byte)?;
        ensure!(full.write(&byte).is_err(), "/dev/full has room");
        random.read_exact(&mut byte)?;
        ensure!(byte != [0; 8], "urandom gives zeros");
        Ok(())
    }))
}

/// Who gets SIGIO of a descriptor, and which signal it is instead.
fn owner() -> Result<Check> {
    let (reader, _writer) = std::io::pipe()?;
    let this = i32::try_from(std::process::id())?;
    calls::fcntl(reader.as_fd(), libc::F_SETOWN, this)?;
    calls::fcntl(reader.as_fd(), F_SETSIG, libc::SIGURG)?;
    Ok(Box::new(move || {
        let _alive = &_writer;
        same("owner", &this, &calls::fcntl(reader.as_fd(), libc::F_GETOWN, 0)?)?;
        same("signal", &libc::SIGURG, &calls::fcntl(reader.as_fd(), F_GETSIG, 0)?)
    }))
}

/// fcntl(2); not in the `libc` crate for every target.
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
