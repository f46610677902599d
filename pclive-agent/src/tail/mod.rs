//! Post-copy: the container runs at the destination, and its last pages are still at the source.
//!
//! At the destination a process of its own fetches them (`process` is the agent's hold of it, `fetcher` what it
//! does): it hears which pages tasks wait for, asks the source for these first and for the others meanwhile, and puts
//! them in place. It goes on when the agent is killed or restarted, and when the link is cut for as long as that takes:
//! tasks that want a page wait. At the source (`originals`) pages are read from the container that stands still; that
//! needs nothing but the journal's record, so a restarted agent goes on with it.
//!
//! Invariants: the source keeps its container until it was told that every page is in place; nobody is told so before
//! that is written down beside the journal's record; a userfaultfd is held by the agent as well as by the fetcher, so
//! that one of them may be killed without a task reading zeros for a page; a fetcher that cannot go on holds them until
//! the copy has ended. A fetcher that is lost cannot be replaced, because only it knows what the container did to its
//! memory meanwhile: the copy is ended then, and an operator decides about the original.

mod copy;
mod fetcher;
mod frame;
mod orders;
mod originals;
mod process;
mod serving;
mod stream;
mod tally;

use std::io;
use std::path::{Path, PathBuf};

use pclive_engine::model::Pid;
use pclive_engine::sys::sched::{self, Attributes};
use serde::{Deserialize, Serialize};

use crate::journal::Process;

pub use fetcher::run;
pub(crate) use originals::{Tails, fetch};
pub(crate) use process::{Fetcher, Outcome};
pub(crate) use tally::tail;

/// Most runs of pages that may come later: a list of 64 MiB.
pub(crate) const MOST_RUNS: usize = 4 << 20;

/// What a fetcher is told at its begin.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// The agent's configuration, as TOML.
    pub(crate) config: String,
    pub(crate) agent_name: String,
    /// The source.
    pub(crate) peer_name: String,
    pub(crate) peer_address: String,
    pub(crate) migration_id: String,
    pub(crate) token: String,
    /// Init of the created container.
    pub(crate) init: Process,
    /// Where it writes down that every page is in place.
    pub(crate) marker: PathBuf,
}

/// The file that says that every page of a migration is in place.
pub(crate) fn marker(state_dir: &Path, migration_id: &str) -> PathBuf {
    state_dir.join("migrations").join(format!("{migration_id}.placed"))
}

/// Goes ahead of others on this thread: tasks wait for what it does, for some microseconds a page.
fn hurry() {
    let wanted = Attributes { policy: 0, flags: 0, nice: -15, priority: 0 };
    if let Err(error) = sched::set_attributes(Pid(0), wanted) {
        tracing::debug!("pages are fetched without haste: {error}");
    }
}

/// Makes the marker durable.
fn write_marker(path: &Path) -> io::Result<()> {
    std::fs::File::create(path)?.sync_all()?;
    path.parent().map_or(Ok(()), |directory| std::fs::File::open(directory)?.sync_all())
}
