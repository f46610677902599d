//! The checkpoint/restore engine of PCLive.
//!
//! The *source* side ([`capture::Source`]) copies a running container in rounds and takes its final state while
//! it is stopped; the *destination* side ([`restore::Destination`]) turns a container that the runtime has
//! created, but not started, into the copy, while the original still runs.
//!
//! Invariants: nothing here talks to a network or knows a runtime; a call that fails leaves the source
//! container runnable; filling a restorer never makes it run code of its own.
//!
//! Kernel: Linux 6.7 or newer on x86-64 (PAGEMAP_SCAN, userfaultfd WP_ASYNC). Addresses are bytes, ranges are
//! half-open. Everything blocks; ptrace needs one OS thread that makes every call on a `Source` or
//! `Destination`.

#![deny(unsafe_code)]

pub mod capture;
pub mod fault;
pub mod kernel;
pub mod memory;
pub mod model;
pub mod proc;
pub mod remote;
pub mod restore;
#[allow(unsafe_code, reason = "the only home of system calls and raw memory")]
pub mod sys;
pub mod tail;
pub mod tracee;
