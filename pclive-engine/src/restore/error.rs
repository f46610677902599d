//! What can go wrong at the destination.

use std::io;

use crate::model::layout::VdsoLayout;
use crate::model::{Pid, Vpid};
use crate::remote::RemoteError;

/// Failure of the destination engine. Nothing of the copy has run.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Remote calls.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// A layout that no container can have.
    #[error("cannot accept the layout of process {vpid}: {why}")]
    Layout {
        /// The process.
        vpid: Vpid,
        /// What is wrong.
        why: &'static str,
    },
    /// `/dev/userfaultfd`.
    #[error("cannot open /dev/userfaultfd")]
    Device(#[source] io::Error),
    /// Pages that come later and cannot be waited for.
    #[error("cannot let process {vpid} wait for its pages: {what}")]
    Wait {
        /// The process.
        vpid: Vpid,
        /// What failed.
        what: &'static str,
        /// Why.
        source: nix::Error,
    },
    /// Something is meant for a process that is not there.
    #[error("cannot find process {vpid} in the skeleton")]
    NoProcess {
        /// The process.
        vpid: Vpid,
    },
    /// The id of the next task could not be chosen.
    #[error("cannot choose id {vpid} for the next task of the container")]
    ChooseId {
        /// The id.
        vpid: Vpid,
        /// Why.
        source: io::Error,
    },
    /// Another task has the id.
    #[error("cannot bear task {wanted}: the kernel gave it id {got}")]
    IdTaken {
        /// The id it should have.
        wanted: Vpid,
        /// The id it got.
        got: Vpid,
    },
    /// A birth without an event.
    #[error("cannot find the newborn task {vpid}")]
    NotBorn {
        /// The task.
        vpid: Vpid,
    },
    /// A task that should have ended.
    #[error("cannot end task {vtid}")]
    ThreadLives {
        /// The task.
        vtid: Vpid,
    },
    /// An ended process that nobody could reap.
    #[error("cannot reap process {vpid}")]
    NotReaped {
        /// The process.
        vpid: Vpid,
    },
    /// A session that cannot be rebuilt.
    #[error("cannot put process {vpid} into session {sid}: its parent {parent} never belonged to it")]
    Session {
        /// The process.
        vpid: Vpid,
        /// The session.
        sid: Vpid,
        /// The parent.
        parent: Vpid,
    },
    /// No free range for the engine's own mapping.
    #[error("cannot find room for the engine in the address space of process {vpid}")]
    NoRoom {
        /// The process.
        vpid: Vpid,
    },
    /// The executable did not replace the runtime's.
    #[error("cannot execute {path} in process {vpid}")]
    Execute {
        /// The process.
        vpid: Vpid,
        /// Path inside the container.
        path: String,
    },
    /// The kernels of the hosts differ.
    #[error("cannot move the vdso of process {vpid}: this kernel has {here:?}, the source's {wanted:?}")]
    VdsoDiffers {
        /// The process.
        vpid: Vpid,
        /// Here.
        here: Box<VdsoLayout>,
        /// At the source.
        wanted: Box<VdsoLayout>,
    },
    /// Mappings of a restorer cannot be read.
    #[error("cannot read the mappings of process {pid}")]
    Maps {
        /// The process, as the agent sees it.
        pid: Pid,
        /// Why.
        source: io::Error,
    },
    /// Descriptors could not be handed over.
    #[error("cannot give {count} descriptors to process {vpid}")]
    Give {
        /// The process.
        vpid: Vpid,
        /// How many.
        count: usize,
        /// Why.
        source: nix::Error,
    },
    /// A mapped file cannot be opened inside the container's root.
    #[error("cannot open the mapped file {path}")]
    OpenMapped {
        /// Path inside the container.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// What is there may not be mapped: a device, a FIFO.
    #[error("cannot map {path}: it is no regular file here")]
    NotMappable {
        /// Path inside the container.
        path: String,
    },
    /// The bundle's files differ from the source's.
    #[error("cannot map {path}: it has {here} bytes here and {wanted} at the source")]
    FileDiffers {
        /// Path inside the container.
        path: String,
        /// Its size here.
        here: u64,
        /// Its size at the source.
        wanted: u64,
    },
    /// The host lacks huge pages.
    #[error(
        "cannot map {wanted} huge pages of 2 MiB: this host can give {here} more; raise vm.nr_hugepages (or \
         vm.nr_overcommit_hugepages) here"
    )]
    HugePages {
        /// Pages that the container needs beside those that it has here.
        wanted: u64,
        /// Pages that are free here and not reserved, or may be made.
        here: u64,
    },
    /// A shared memory object that no layout has announced.
    #[error("cannot find shared memory object {id}")]
    NoObject {
        /// Its id.
        id: u64,
    },
    /// A file in memory cannot be made like the source's.
    #[error("cannot {verb} shared memory object {id}")]
    Object {
        /// "seal" ...
        verb: &'static str,
        /// Its id.
        id: u64,
        /// Why.
        source: nix::Error,
    },
    /// A file system in memory.
    #[error(transparent)]
    Tree(#[from] super::trees::TreeError),
    /// A System V segment.
    #[error(transparent)]
    Segment(#[from] super::segments::SegmentError),
    /// Pages could not be written.
    #[error(transparent)]
    Fill(#[from] crate::memory::FillError),
    /// Memory that is to be compared.
    #[error(transparent)]
    Memory(#[from] crate::memory::MemoryError),
    /// The small state of a task could not be put in place.
    #[error(transparent)]
    State(#[from] super::failure::RestoreStateError),
    /// Descriptors could not be put in place.
    #[error(transparent)]
    Files(#[from] super::files::FilesError),
    /// Terminals could not be made.
    #[error(transparent)]
    Terminals(#[from] super::terminals::TerminalError),
    /// A controlling terminal that no process can have.
    #[error(
        "cannot give process {vpid} its controlling terminal: the process that it is born of has another"
    )]
    Terminal {
        /// The process.
        vpid: Vpid,
    },
    /// Sockets could not be built.
    #[error(transparent)]
    Sockets(#[from] super::sockets::SocketsError),
    /// The container's root directory cannot be opened.
    #[error("cannot open the root directory of process {pid}")]
    Root {
        /// The container's init, as the agent sees it.
        pid: Pid,
        /// Why.
        source: nix::Error,
    },
}
