//! One migration's file, kept up to date.
//!
//! A change is written to the spare (`ID.next`), made durable, and renamed over the record. The spare can be written
//! long before it is put in force ([`Log::stage`], [`Log::enact`]): what is left for the moment that counts is a
//! rename and one flush of the directory, neither of which needs room. The spare is written again in place when
//! another change comes first, so that a decision against the commit needs no room either.
//!
//! Invariant: after a failure the record on disk is the old one or the new one, whole.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::page;
use super::record::{Phase, Record};
use super::{Directory, JournalError};
use crate::fault;

/// What a source that asks is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The copy was let go.
    Runs,
    /// The copy never was and never will be let go.
    Discarded,
    /// The copy is being let go.
    Pending,
    /// The copy was let go, and lacks pages.
    Tail,
    /// The copy was let go, and lost pages.
    Torn,
    /// The copy was let go, and is being ended for its source.
    Withdrawn,
}

/// A migration's record and its file.
#[derive(Debug)]
pub struct Log {
    directory: Arc<Directory>,
    record: Record,
    staged: Option<Record>,
    /// Whether room for a spare is there.
    spare: bool,
    /// An earlier agent began it.
    inherited: bool,
    /// Destination: the commit has come and was taken; from here on nothing is discarded on demand.
    let_go: bool,
}

impl Log {
    /// A log of a record that is not on disk yet.
    pub(super) fn create(directory: Arc<Directory>, record: Record) -> Result<Self, JournalError> {
        let mut log = Self {
            directory,
            record: record.clone(),
            staged: None,
            spare: false,
            inherited: false,
            let_go: false,
        };
        match log.put(record) {
            Ok(()) => Ok(log),
            Err(error) => {
                log.remove();
                Err(error)
            }
        }
    }

    /// The log of a record that was read.
    pub(super) fn found(directory: Arc<Directory>, record: Record) -> Self {
        Self { directory, record, staged: None, spare: false, inherited: true, let_go: false }
    }

    /// What is in force.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Whether an earlier agent began the migration.
    pub(crate) fn is_inherited(&self) -> bool {
        self.inherited
    }

    /// Writes down what [`Self::enact`] will put in force. Two flushes the first time, one afterwards.
    pub fn stage(&mut self, record: Record) -> Result<(), JournalError> {
        self.staged = None;
        let text = page::encode(&record).map_err(|source| self.unwritable(source))?;
        let path = self.path("next");
        let failed = |source| JournalError::Write { path: path.clone(), source };
        // Not truncated: the blocks that it has are the room that was kept.
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        file.write_all(&text).and_then(|()| file.set_len(text.len() as u64)).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        if !self.spare {
            self.directory.flush()?;
            self.spare = true;
        }
        self.staged = Some(record);
        Ok(())
    }

    /// Puts in force what was staged: one rename, one flush. Nothing happens when nothing is staged any more; false.
    pub fn enact(&mut self) -> Result<bool, JournalError> {
        let Some(staged) = self.staged.take() else { return Ok(false) };
        let (from, to) = (self.path("next"), self.path("record"));
        fault::staged(&staged);
        std::fs::rename(&from, &to).map_err(|source| JournalError::Write { path: to, source })?;
        self.spare = false;
        fault::renamed(&staged);
        self.directory.flush()?;
        self.record = staged;
        Ok(true)
    }

    /// Puts a record in force. On `Err` what is in force is on disk as it was.
    pub fn put(&mut self, record: Record) -> Result<(), JournalError> {
        self.stage(record)?;
        self.enact().map(drop)
    }

    /// Puts the end in force. It is the truth in memory also when it cannot be written: a successor comes to the
    /// same end from the record before.
    pub fn end(&mut self, phase: Phase, ended_ms: u64) -> Result<(), JournalError> {
        let ended = Record { phase, ended_ms, ..self.record.clone() };
        let put = self.put(ended.clone());
        self.record = ended;
        put
    }

    /// The commit has come: true if the copy may be let go. Otherwise it has been promised that it never is.
    pub fn take_commit(&mut self) -> bool {
        self.let_go |= self.record.phase == Phase::Committing;
        self.let_go
    }

    /// The source gives its original up: a copy that was let go is never withdrawn from here on.
    pub fn renounce(&mut self) -> Result<(), JournalError> {
        let runs = self.record.phase == Phase::Ended(super::Ending::Done);
        if runs && self.record.keep_source_for_ms > 0 {
            self.put(Record { keep_source_for_ms: 0, ..self.record.clone() })?;
        }
        Ok(())
    }

    /// The source asks. What is undecided is decided against the copy, durably, before this returns.
    pub fn answer(&mut self) -> Result<Standing, JournalError> {
        match &self.record.phase {
            Phase::Ended(super::Ending::Done) => Ok(Standing::Runs),
            Phase::Ended(super::Ending::Failed(_)) | Phase::Discarded => Ok(Standing::Discarded),
            Phase::Tail => Ok(Standing::Tail),
            Phase::Torn => Ok(Standing::Torn),
            Phase::Withdrawn => Ok(Standing::Withdrawn),
            // Of a source only, which nobody asks.
            Phase::Kept(_) | Phase::Undoing(_) => Ok(Standing::Pending),
            Phase::Begun | Phase::Committing if self.let_go => Ok(Standing::Pending),
            Phase::Begun | Phase::Committing => {
                self.put(Record { phase: Phase::Discarded, ..self.record.clone() })?;
                Ok(Standing::Discarded)
            }
        }
    }

    pub(super) fn remove(self) {
        for kind in ["next", "record", "slowing", "slowed", "placed"] {
            let path = self.path(kind);
            match std::fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => tracing::debug!("cannot remove {}: {error}", path.display()),
            }
        }
    }

    pub(super) fn directory(&self) -> &Directory {
        &self.directory
    }

    pub(super) fn id(&self) -> &str {
        &self.record.id
    }

    fn path(&self, kind: &str) -> PathBuf {
        path(self.directory.path(), &self.record.id, kind)
    }

    fn unwritable(&self, source: page::PageError) -> JournalError {
        JournalError::Page { path: self.path("record"), source }
    }
}

pub(super) fn path(directory: &Path, id: &str, kind: &str) -> PathBuf {
    directory.join(format!("{id}.{kind}"))
}
