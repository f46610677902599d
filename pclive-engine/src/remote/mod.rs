//! Remote system calls: the engine makes a stopped task of another process execute them.
//!
//! A batch is written into a mapped page of the task; a small loop there walks it, so that a hundred calls cost
//! one stop. The same machinery serves the source (where the task must survive the death of the agent) and the
//! restorers at the destination.

mod batch;
mod captive;
mod code;
mod memory;
mod release;
mod restart;
mod slot;

use crate::model::{Pid, RemoteAddr, Vpid};

pub use batch::{Answers, Batch, Piece, Ticket};
pub use captive::{Captive, Outcome};
pub use memory::ProcessMemory;
pub use release::release;
pub use slot::{Slot, Spot};

/// One system call: number (`libc::SYS_*`) and arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// System call number.
    pub number: i64,
    /// Arguments; addresses are the task's own.
    pub args: [u64; 6],
}

impl Call {
    /// A call with up to six arguments; the missing ones are zero.
    pub fn new(number: i64, given: &[u64]) -> Self {
        let mut args = [0; 6];
        for (slot, value) in args.iter_mut().zip(given) {
            *slot = *value;
        }
        Self { number, args }
    }
}

/// Failure of a remote batch as a whole (a single call's errno is part of its result instead).
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// A ptrace operation failed, or the task is gone.
    #[error(transparent)]
    Trace(#[from] crate::tracee::TraceError),
    /// Its memory could not be read or written.
    #[error("cannot {operation} of task {pid}")]
    Memory {
        /// "read 8 bytes at 7f00" ...
        operation: String,
        /// The task.
        pid: Pid,
        /// Why.
        source: std::io::Error,
    },
    /// One call of the batch failed, and the caller needs it.
    #[error("cannot {what} in process {vpid}")]
    Call {
        /// The process, inside the container.
        vpid: Vpid,
        /// What the call was for: "map 7f00-8f00".
        what: String,
        /// The call's errno.
        source: nix::Error,
    },
    /// More calls or data than the scratch memory holds.
    #[error("a remote batch of {bytes} bytes does not fit the scratch memory of {limit} bytes")]
    TooLarge {
        /// Bytes asked for.
        bytes: usize,
        /// Bytes there.
        limit: usize,
    },
    /// The task stopped in a way that the engine does not expect.
    #[error("task {pid} stopped unexpectedly: {stop:?}")]
    UnexpectedStop {
        /// The task.
        pid: Pid,
        /// How.
        stop: crate::tracee::Stop,
    },
    /// A signal came before the first call could be made; try again later.
    #[error("signal {signal} came to task {pid} before a remote call")]
    Busy {
        /// The task.
        pid: Pid,
        /// The signal, which the task must still get.
        signal: i32,
    },
    /// The process has no vdso with room for the first call.
    #[error("process {pid} has no vdso with {} unused bytes", code::STUB_BYTES)]
    NoVdso {
        /// The process.
        pid: Pid,
    },
}

/// The data area that remote calls may point into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScratchArea {
    /// First address in the task.
    pub start: RemoteAddr,
    /// Bytes.
    pub len: usize,
    /// Behind it, a page of the engine's mapping that nothing else uses: a call may map it anew, and must not unmap it.
    pub spare_page: RemoteAddr,
}

/// One stopped task (a thread) that executes system calls on request. Capture and restore of small state are
/// written against this trait; [`crate::tracee`] has the ptrace implementation.
pub trait RemoteTask {
    /// The thread, as the agent sees it.
    fn pid(&self) -> Pid;

    /// The thread, inside the container.
    fn vpid(&self) -> Vpid;

    /// Memory for the arguments and results of calls (at least 32 KiB). The caller may use all of it; contents
    /// survive until the next `run` that uses them.
    fn scratch(&self) -> ScratchArea;

    /// Runs the calls in order; the results are raw (`-errno` on failure). A few hundred calls fit one batch.
    fn run(&mut self, calls: &[Call]) -> Result<Vec<i64>, RemoteError>;

    /// The same; `meanwhile` is done once while the task makes its calls. It must not touch the task.
    fn run_beside(&mut self, calls: &[Call], meanwhile: &mut dyn FnMut()) -> Result<Vec<i64>, RemoteError> {
        meanwhile();
        self.run(calls)
    }

    /// Writes into the task's memory.
    fn write(&mut self, to: RemoteAddr, bytes: &[u8]) -> Result<(), RemoteError>;

    /// Reads from the task's memory.
    fn read(&mut self, from: RemoteAddr, bytes: &mut [u8]) -> Result<(), RemoteError>;
}

/// The processes of a skeleton, as the parts of the restore side that work on several of them see them.
pub trait Processes {
    /// The agent's id of a process of the container.
    fn pid(&self, vpid: Vpid) -> Option<Pid>;

    /// The leader thread of a process.
    fn leader(&mut self, vpid: Vpid) -> Option<&mut dyn RemoteTask>;
}
