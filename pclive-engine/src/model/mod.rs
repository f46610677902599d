//! What a container is, as plain data: the process tree, its memory layout, and the kernel state of each task.
//!
//! Pure: no file, no system call. These types are also what crosses the wire as one `postcard` document (see
//! [`codec`]); both ends speak the same protocol version, which the agents check before any of this is sent.
//! Everything decoded from a peer is validated by the restore side before it is used.

pub mod blocker;
pub mod codec;
pub mod creds;
pub mod file;
pub mod ids;
pub mod layout;
pub mod pages;
pub mod signal;
pub mod socket;
pub mod socket_options;
pub mod state;
pub mod terminal;
pub mod timer;
pub mod tree;

pub use blocker::{Blocker, Place};
pub use file::{Descriptor, FileId, FileKind, OpenFile, OpenFiles};
pub use ids::{Deadline, Pid, RemoteAddr, Vpid};
pub use layout::{Layout, Mapping, ProcessLayout, Protection, ThreadLayout, Vma, VmaFlags};
pub use pages::{Batch, Extent, ExtentKind, HUGE_PAGE_SIZE, PAGE_SIZE, Target};
pub use state::{FinalState, ProcessState, ThreadState};
