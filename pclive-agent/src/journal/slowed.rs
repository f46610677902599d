//! A CPU limit that a migration has changed, for a successor that has to put it back.
//!
//! A file of its own beside the record (`ID.slowed`), written before the limit is, so that the record of the commit,
//! which waits in the spare, stays as it is. It is kept as long as the record: whether there is anything to put back is
//! seen at the limit itself.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::JournalError;
use super::log::{Log, path};

/// Longest file that is read.
const MAX_BYTES: u64 = 64 << 10;

/// What was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slowed {
    /// `cpu.max` or `cpu.cfs_quota_us` of a cgroup.
    pub file: PathBuf,
    /// What it said before.
    pub before: String,
    /// What the migration has written, or was about to.
    pub written: Vec<String>,
}

impl Log {
    /// Writes down what is about to be changed. On `Err` nothing may be.
    pub fn keep_slowed(&self, slowed: &Slowed) -> Result<(), JournalError> {
        let directory = self.directory();
        let (new, kept) =
            (path(directory.path(), self.id(), "slowing"), path(directory.path(), self.id(), "slowed"));
        let written = || -> io::Result<()> {
            let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
            file.write_all(&serde_json::to_vec(slowed)?)?;
            file.sync_all()?;
            std::fs::rename(&new, &kept)
        };
        written().map_err(|source| JournalError::Write { path: kept.clone(), source })?;
        directory.flush()
    }

    /// What an agent before this one has changed; `None`: nothing, or it cannot be read, which is logged.
    pub fn slowed(&self) -> Option<Slowed> {
        let path = path(self.directory().path(), self.id(), "slowed");
        let read = || -> io::Result<Slowed> {
            let mut text = Vec::new();
            File::open(&path)?.take(MAX_BYTES).read_to_end(&mut text)?;
            Ok(serde_json::from_slice(&text)?)
        };
        match read() {
            Ok(slowed) => Some(slowed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::error!("cannot read {}: {error}; a container may stay slowed down", path.display());
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::super::{Journal, guard};
    use super::*;

    #[test]
    fn what_was_changed_is_found_by_a_successor_until_the_migration_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::new(directory.path(), 0);
        let log = journal.begin(record()).unwrap();
        assert_eq!(guard(&log).slowed(), None);
        let mut slowed = Slowed {
            file: "/sys/fs/cgroup/c/cpu.max".into(),
            before: "max 100000".into(),
            written: vec!["50000 100000".into()],
        };
        guard(&log).keep_slowed(&slowed).unwrap();
        slowed.written.push("25000 100000".into());
        guard(&log).keep_slowed(&slowed).unwrap();
        let successor = Journal::new(directory.path(), 0);
        let (records, _) = successor.take_over().unwrap();
        let found = successor.log(&records[0].id).unwrap();
        assert_eq!(guard(&found).slowed(), Some(slowed));
        guard(&found).end(super::super::Phase::Ended(super::super::Ending::Done), 1).unwrap();
        drop(found);
        successor.prune();
        assert_eq!(std::fs::read_dir(directory.path().join("migrations")).unwrap().count(), 0);
    }
}
