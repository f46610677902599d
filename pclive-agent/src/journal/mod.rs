//! The journal: what a restarted agent must know of the migrations of the one before it.
//!
//! One file a migration in `STATE_DIR/migrations`, replaced whole at each change (see the module `log`). It is
//! begun before anything of a migration exists, so that a full disk or a read-only directory stops the migration
//! and not the container; the record that the commit needs is written in advance.
//!
//! Writes while the container is stopped, each a rename and a flush of the directory, both beside the other end's
//! work: at the source `Committing`, durable before COMMIT is sent; at the destination `Committing`, durable before
//! a task is let go.
//!
//! Kernel: rename(2) within a directory is atomic, fsync(2) of the directory makes it durable. Everything blocks.

mod asker;
mod log;
mod page;
mod record;
mod slowed;

use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

pub use asker::Asker;
pub use log::{Log, Standing};
pub use page::PageError;
pub(crate) use page::decode;
pub use record::{Ending, Kept, Peer, Phase, Process, Reason, Record, Role};
pub use slowed::Slowed;

/// The journal cannot be kept. What was in force is in force.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The directory.
    #[error("cannot use {path} for the journal of migrations")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file.
    #[error("cannot write {path} of the journal")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A record that cannot be put into words.
    #[error("cannot write {path} of the journal")]
    Page {
        /// The file.
        path: PathBuf,
        /// Why.
        source: PageError,
    },
}

/// A file of the journal that says nothing.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path} of the journal: {reason}")]
pub struct Unreadable {
    /// The file. It is left as it is.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// The directory of the journal.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    handle: OnceLock<File>,
}

impl Directory {
    fn path(&self) -> &Path {
        &self.path
    }

    /// Makes renames and new names durable.
    fn flush(&self) -> Result<(), JournalError> {
        let failed = |source| JournalError::Directory { path: self.path.clone(), source };
        let handle = match self.handle.get() {
            Some(handle) => handle,
            None => {
                let opened = File::open(&self.path).map_err(failed)?;
                self.handle.get_or_init(|| opened)
            }
        };
        handle.sync_all().map_err(failed)
    }

    fn make(&self) -> Result<(), JournalError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.path);
        made.map_err(|source| JournalError::Directory { path: self.path.clone(), source })
    }
}

/// All records. Cheap to share; calls that write block.
#[derive(Debug)]
pub struct Journal {
    directory: Arc<Directory>,
    logs: Mutex<HashMap<String, Arc<Mutex<Log>>>>,
    /// Ended migrations that are remembered.
    history: usize,
}

impl Journal {
    /// The journal below a state directory. Nothing is read or made yet.
    pub fn new(state_dir: &Path, history: u32) -> Self {
        let directory = Directory { path: state_dir.join("migrations"), handle: OnceLock::new() };
        Self {
            directory: Arc::new(directory),
            logs: Mutex::default(),
            history: usize::try_from(history).unwrap_or(usize::MAX),
        }
    }

    /// Reads what a dead agent left, oldest first, and takes it over. Spares, which were never in force, go.
    pub fn take_over(&self) -> Result<(Vec<Record>, Vec<Unreadable>), JournalError> {
        self.directory.make()?;
        let failed = |source| JournalError::Directory { path: self.directory.path.clone(), source };
        let (mut records, mut unreadable) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(&self.directory.path).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            match path.extension().and_then(|kind| kind.to_str()) {
                Some("record") => match read(&path) {
                    Ok(record) => records.push(record),
                    Err(reason) => unreadable.push(Unreadable { path, reason }),
                },
                // What cannot be removed is written over when it is needed.
                Some("next") => drop(std::fs::remove_file(&path)),
                Some(_) | None => {}
            }
        }
        records.sort_by(|a, b| (a.started_ms, &a.id).cmp(&(b.started_ms, &b.id)));
        let mut logs = self.lock();
        for record in &records {
            let log = Log::found(Arc::clone(&self.directory), record.clone());
            logs.insert(record.id.clone(), Arc::new(Mutex::new(log)));
        }
        Ok((records, unreadable))
    }

    /// Writes a new migration down, and keeps it. Nothing of it may exist before.
    pub fn begin(&self, record: Record) -> Result<Arc<Mutex<Log>>, JournalError> {
        self.directory.make()?;
        let id = record.id.clone();
        let log = Arc::new(Mutex::new(Log::create(Arc::clone(&self.directory), record)?));
        self.lock().insert(id, Arc::clone(&log));
        Ok(log)
    }

    /// The log of a migration that is remembered.
    pub fn log(&self, id: &str) -> Option<Arc<Mutex<Log>>> {
        self.lock().get(id).cloned()
    }

    /// Whether the very process that a destination's record is about has been moved on from here, or is being.
    pub fn has_moved_on(&self, record: &Record) -> bool {
        self.lock().values().any(|log| {
            let log = guard(log);
            let later = log.record();
            later.role == Role::Source
                && later.init.is_some()
                && (later.init, &later.boot_id) == (record.init, &record.boot_id)
                && !matches!(later.phase, Phase::Ended(Ending::Failed(_)))
        })
    }

    /// Forgets the oldest ended migrations.
    pub fn prune(&self) {
        let mut logs = self.lock();
        let mut ended: Vec<(u64, String)> = logs
            .iter()
            .filter_map(|(id, log)| {
                let log = guard(log);
                log.record().is_ended().then(|| (log.record().ended_ms, id.clone()))
            })
            .collect();
        ended.sort();
        let excess = ended.len().saturating_sub(self.history);
        for (_, id) in ended.into_iter().take(excess) {
            // One that somebody still holds is forgotten the next time.
            if let Some(log) = logs.remove(&id)
                && let Ok(log) = Arc::try_unwrap(log).map_err(|log| logs.insert(id, log))
            {
                log.into_inner().unwrap_or_else(PoisonError::into_inner).remove();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Mutex<Log>>>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A log for oneself: every change to it is one step, so that a panic elsewhere leaves it usable.
pub fn guard(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read(path: &Path) -> Result<Record, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mut text = Vec::new();
    file.take(page::MAX_BYTES as u64).read_to_end(&mut text).map_err(|error| error.to_string())?;
    let record = page::decode(&text).map_err(|error| error.to_string())?;
    let named = path.file_stem().is_some_and(|stem| stem == record.id.as_str());
    if named { Ok(record) } else { Err("it is the record of another migration".into()) }
}

#[cfg(test)]
pub(crate) mod tests;
