//! `runs.jsonl`: a line for each run, written when it has ended, so that an interrupted session keeps what it has.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use crate::outcome::Run;

/// The file of runs, open for more.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    file: File,
    runs: Vec<Run>,
}

impl Store {
    /// Opens the file, or makes it and its directory. What an interruption left of a line is cut off.
    ///
    /// # Errors
    /// When it cannot be read or made, or a line of it is no run.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let file = File::options().read(true).append(true).create(true).open(path);
        let mut file = file.with_context(|| format!("cannot open {}", path.display()))?;
        file.try_lock().map_err(|error| anyhow!("another session writes to {}: {error}", path.display()))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
        let runs = parse(path, &bytes)?;
        file.set_len(whole(&bytes).len() as u64)
            .with_context(|| format!("cannot shorten {}", path.display()))?;
        Ok(Self { runs, path: path.into(), file })
    }

    /// Every run so far.
    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Adds a run, and has it on disk.
    pub(crate) fn add(&mut self, run: Run) -> Result<()> {
        let line = serde_json::to_string(&run).context("cannot write a run as JSON")? + "\n";
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        written.with_context(|| format!("cannot write to {}", self.path.display()))?;
        self.runs.push(run);
        Ok(())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // A child that was just forked may still have the file open, and with it the lock.
        let _ = self.file.unlock();
    }
}

/// Every run of a file; none when it is not there.
///
/// # Errors
/// When it cannot be read, or a line of it is no run.
pub(crate) fn read(path: &Path) -> Result<Vec<Run>> {
    match std::fs::read(path) {
        Ok(bytes) => parse(path, &bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Without what an interruption left of a line.
fn whole(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1)]
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Run>> {
    let text = str::from_utf8(whole(bytes)).with_context(|| format!("{} is no text", path.display()))?;
    let run = |(number, line): (usize, &str)| {
        serde_json::from_str(line).with_context(|| {
            format!("line {} of {} is no run of this version; move the file away", number + 1, path.display())
        })
    };
    text.lines().enumerate().map(run).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn runs_are_there_again_when_the_file_is_opened_again() {
        let directory = sample::directory();
        let path = directory.path().join("deep/runs.jsonl");
        let mut store = Store::open(&path).unwrap();
        store.add(sample::run("global", 1)).unwrap();
        store.add(sample::run("one-shot", 1)).unwrap();
        drop(store);
        let found: Vec<_> =
            Store::open(&path).unwrap().runs().iter().map(|run| run.setting.clone()).collect();
        assert_eq!(found, [sample::run("global", 1).setting, sample::run("one-shot", 1).setting]);
        assert_eq!(read(&path).unwrap().len(), 2);
    }

    #[test]
    fn line_that_an_interruption_cut_short_is_cut_off() {
        let directory = sample::directory();
        let path = directory.path().join("runs.jsonl");
        Store::open(&path).unwrap().add(sample::run("global", 1)).unwrap();
        File::options().append(true).open(&path).unwrap().write_all(b"{\"setting\":\"\xc3").unwrap();
        assert_eq!(read(&path).unwrap().len(), 1);
        let mut store = Store::open(&path).unwrap();
        store.add(sample::run("global", 2)).unwrap();
        drop(store);
        let found: Vec<_> = read(&path).unwrap().iter().map(|run| run.repetition).collect();
        assert_eq!(found, [1, 2]);
    }

    #[test]
    fn one_session_writes_to_a_file() {
        let directory = sample::directory();
        let path = directory.path().join("runs.jsonl");
        let first = Store::open(&path).unwrap();
        let error = Store::open(&path).unwrap_err().to_string();
        assert!(error.contains("another session"), "{error}");
        drop(first);
        Store::open(&path).unwrap();
    }

    #[test]
    fn line_that_is_no_run_is_named() {
        let directory = sample::directory();
        let path = directory.path().join("runs.jsonl");
        std::fs::write(&path, "{}\n").unwrap();
        let error = format!("{:#}", Store::open(&path).unwrap_err());
        assert!(error.contains("line 1 of") && error.contains("move the file away"), "{error}");
    }

    #[test]
    fn file_that_is_not_there_has_no_runs() {
        assert!(read(Path::new("/nonexistent/runs.jsonl")).unwrap().is_empty());
    }
}
