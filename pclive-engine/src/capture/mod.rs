//! The source side: a running container -> rounds of memory, then the final dump.
//!
//! Order of calls: [`Source::open`], [`Source::check`], any number of [`Source::round`], [`Source::freeze`],
//! then on the [`Frozen`] guard [`Frozen::dump`] and, once the destination runs, [`Frozen::destroy`]. Dropping
//! the guard (or the agent's death) lets the container run on, unchanged; dropping the source takes back what
//! the rounds had put into it. A container that an agent left frozen is a [`Leftover`] to the next one.

mod attributes;
mod calls;
mod check;
pub(crate) mod creds;
mod error;
pub mod failure;
pub mod files;
mod first_touched;
mod freezer;
mod frozen;
mod in_memory;
mod leftover;
pub(crate) mod limits;
mod mapping_kind;
mod mm;
mod obstacles;
mod pending;
pub mod process;
mod round;
pub mod rseq;
pub mod scheduling;
pub(crate) mod seccomp;
mod segments;
pub(crate) mod signals;
mod sink;
pub mod sockets;
mod source;
mod stop;
mod terminals;
pub mod thread;
mod timers;
mod tracked;
pub mod tree;
mod trees;
pub mod vmas;
pub(crate) mod xstate;

pub use error::CaptureError;
pub use files::FilesAhead;
pub use frozen::{Dumped, Frozen};
pub use leftover::Leftover;
pub use sink::{LastPages, RoundStats, Sink, SinkError};
pub use sockets::Connections;
pub use source::{Source, SourceOptions};
