//! The two-host harness: two "hosts" on one machine, real containers on them, and clients that watch.
//!
//! A [`Lab`] is a set of namespaces joined by veth pairs: a switch, a client and two hosts. Each host has its own
//! PID, mount, UTS and network namespace, its own `/run` and its own bundles at the same path, so that an agent
//! and a runtime inside it behave as on a machine of their own. Everything hangs on one process a node, which
//! ends with the harness: nothing that runs or is configured outlives it, not even after SIGKILL. What remains on
//! disk after a crash (a directory under `/tmp`, empty cgroups) is swept by the next lab.
//!
//! Needs root, `runc`, `iproute2`, `util-linux` and the servers that the workloads run; see [`needs`].
#![forbid(unsafe_code)]

pub mod answers;
pub mod bundle;
pub mod command;
pub mod container;
pub mod ctl;
pub mod delay;
pub mod footprint;
pub mod host;
pub mod huge_pages;
pub mod lab;
pub mod leftovers;
pub mod link;
pub mod measure;
pub mod migrations;
pub mod needs;
pub mod node;
pub mod random;
pub mod remains;
pub mod rootfs;
pub mod syscalls;
pub mod wait;
pub mod workload;

pub use bundle::Bundle;
pub use container::Container;
pub use host::Host;
pub use lab::Lab;
pub use node::Node;
