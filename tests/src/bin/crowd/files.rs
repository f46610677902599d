//! Open files, each with a position of its own.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use anyhow::{Context, Result, ensure};

/// The file that all of them have open.
const PATH: &str = "/data/crowd";
/// How far a check moves each position.
const STEP: u64 = 1_000_003;

/// Open files; file number `i` is at position `moved + i`.
#[derive(Debug)]
pub(crate) struct Files {
    open: Vec<File>,
    moved: u64,
}

impl Files {
    pub(crate) fn open(count: usize) -> Result<Self> {
        std::fs::write(PATH, "crowd").with_context(|| format!("cannot write {PATH}"))?;
        let open = |_| File::open(PATH).with_context(|| format!("cannot open {PATH}"));
        let mut files = Self { open: (0..count).map(open).collect::<Result<_>>()?, moved: 0 };
        files.advance()?;
        Ok(files)
    }

    /// Every file is where it was left; then each is moved on.
    pub(crate) fn check(&mut self) -> Result<()> {
        for (number, file) in (0..).zip(&mut self.open) {
            let (found, expected) = (file.stream_position()?, self.moved + number);
            ensure!(found == expected, "file {number} is at {found} instead of {expected}");
        }
        self.advance()
    }

    fn advance(&mut self) -> Result<()> {
        self.moved += STEP;
        for (number, file) in (0..).zip(&mut self.open) {
            file.seek(SeekFrom::Start(self.moved + number))?;
        }
        Ok(())
    }
}
