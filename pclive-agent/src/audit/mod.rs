//! The audit record: one line for every migration that has ended at this agent (see [`Line`]).
//!
//! `STATE_DIR/audit.jsonl`, mode 0600, only ever appended to and durable when [`Audit::append`] returns. A line that would
//! make the file longer than allowed goes into a new one; the one before stays as `audit.jsonl.1`, what was there goes.
//!
//! Invariants: a line is whole or not there; a migration has one line, also when an agent died between writing it and
//! the journal's end, as long as that line has not been rotated away. Nothing depends on it: whoever cannot write it goes
//! on without.
//!
//! Kernel: O_APPEND (open(2)), fdatasync(2), rename(2). Everything blocks.

mod line;

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::error::ErrorCode;

pub use line::{End, Line, Moved};

/// Least size at which the file may be rotated, bytes: more than the longest line.
pub const LEAST_BYTES: u64 = 64 << 10;
/// Most.
pub const MOST_BYTES: u64 = 1 << 30;

/// A line that could not be written. What was in the file is in it.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}")]
pub struct AuditError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// The file of one agent.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    most_bytes: u64,
    /// Lines are written one after the other.
    writing: Mutex<()>,
}

impl Audit {
    /// The audit record below a state directory, rotated at this size. Nothing is opened yet.
    pub fn new(state_dir: &Path, most_bytes: u64) -> Self {
        Self { path: state_dir.join("audit.jsonl"), most_bytes, writing: Mutex::default() }
    }

    /// Adds a line. With `once`, only if there is none of this migration yet: for migrations that an earlier agent began. One
    /// that is undone after it was done has a line of each.
    pub fn append(&self, line: &Line<'_>, once: bool) -> Result<(), AuditError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.write(line, once).map_err(|source| AuditError { path: self.path.clone(), source })
    }

    fn write(&self, line: &Line<'_>, once: bool) -> io::Result<()> {
        if once && self.has(line)? {
            return Ok(());
        }
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let mut file = self.open()?;
        let mut length = file.metadata()?.len();
        if length > 0 && length.saturating_add(text.len() as u64) > self.most_bytes {
            std::fs::rename(&self.path, self.older())?;
            file = self.open()?;
            length = 0;
        }
        if is_torn(&mut file, length)? {
            text.insert(0, b'\n');
        }
        let written = file.write_all(&text).and_then(|()| file.sync_data());
        if written.is_err() {
            // Half a line is none. What cannot be taken back is cut off by the next line.
            let _ = file.set_len(length);
        }
        written?;
        if length == 0 { self.flush_names() } else { Ok(()) }
    }

    /// Whether there is a line like this one.
    fn has(&self, line: &Line<'_>) -> io::Result<bool> {
        let is_undone = |outcome: &str| outcome == ErrorCode::Undone.as_str();
        for path in [&self.path, &self.older()] {
            let file = match File::open(path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for written in BufReader::new(file).split(b'\n') {
                let known: Option<Known> = serde_json::from_slice(&written?).ok();
                let like = |known: Known| {
                    known.id == line.id && is_undone(&known.outcome) == is_undone(line.outcome)
                };
                if known.is_some_and(like) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn older(&self) -> PathBuf {
        self.path.with_extension("jsonl.1")
    }

    fn open(&self) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(&self.path)
    }

    /// Makes a new file's name durable.
    fn flush_names(&self) -> io::Result<()> {
        match self.path.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    }
}

/// What is looked at of a line that was written before.
#[derive(serde::Deserialize)]
struct Known {
    id: String,
    outcome: String,
}

/// True if the last line has no end.
fn is_torn(file: &mut File, length: u64) -> io::Result<bool> {
    if length == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::Start(length - 1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

#[cfg(test)]
mod tests;
