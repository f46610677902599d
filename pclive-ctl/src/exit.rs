//! Exit codes: what a script may conclude when `pclivectl` has ended.

use std::process::ExitCode;

/// How the program ends. The numbers are part of the interface, see docs/CLI.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0: the container runs at the destination, or the command did what it was asked.
    Ok,
    /// 1: the migration failed and the container runs at the source, or the command could not be carried out.
    Failed,
    /// 3: where the container runs is not known here; somebody must look.
    Unknown,
    /// 130: left by Ctrl-C (or because nobody reads the output) while the migration goes on.
    Left,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Unknown => 3,
            Exit::Left => 130,
        })
    }
}
