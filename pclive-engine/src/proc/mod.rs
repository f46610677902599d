//! Bytes of `/proc` -> model. Parsers take bytes and never panic: a container chooses its names.

pub mod auxv;
pub mod fdinfo;
pub mod inet_diag;
pub mod maps;
mod maps_line;
pub mod mountinfo;
pub mod multicast;
pub mod root;
pub mod smaps;
pub mod sock_diag;
pub mod stat;
pub mod status;
pub mod sysvipc;
pub mod task_ids;
pub mod timers;
