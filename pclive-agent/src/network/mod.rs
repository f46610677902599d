//! The network of a container while it moves: its addresses go with it.
//!
//! ```text
//!   source                                        destination
//!   Namespace::of(pid), refuse_host, capture
//!   Lock::prepare(.., Tenure::Agent)   -- wire --> apply: interfaces made or completed, locks engaged
//!   Tap::prepare                                   Announcer::prepare, Injector::prepare
//!   freeze: Tap::listen, Lock::engage
//!   before the commit: Lock::outlive_agent
//!   Tap::take                 -- wire -->          Waiting::take
//!                         == commit ==>            Applied::open, Announcer::announce, sockets wake,
//!                                                  Injector::inject, resume
//!   Tap::take                 -- wire -->          Injector::inject
//!                                                  Announcer::repeat, Applied::keep
//!   retire, Lock::abandon
//! ```
//!
//! Invariants: of two copies with one address at most one can be heard; the agent's own interfaces and those of
//! others are never touched; a guard that is dropped takes back what it did.
//!
//! Kernel: rtnetlink, nf_tables netdev hooks (egress: Linux 5.16), setns(2), packet(7). Everything blocks, for
//! milliseconds; nothing but opening sockets and sysctls needs a thread inside the namespace.

mod announce;
mod apply;
mod arrival;
mod capture;
mod changes;
mod error;
mod frames;
mod host_end;
mod injector;
mod interface;
mod links;
mod lock;
mod namespace;
mod native;
mod netlink;
mod nftables;
mod retire;
mod settings;
mod tap;
mod unmoved;
mod wire;

pub use announce::Announcer;
pub use apply::{Applied, NetworkConfig, apply};
pub use arrival::{Arrival, Waiting};
pub use capture::capture;
pub use error::{Error, Result};
pub use host_end::HOST_END_PREFIX;
pub use injector::{Injector, Tally};
pub use interface::{Address, Interface, Kind, Lifetime, Mac, Neighbour, Route};
pub use lock::{Lock, Tenure, remove_stale_lock};
pub use namespace::Namespace;
pub use native::{addresses, differ, native};
pub use retire::{remove_host_ends, retire, unlock_host_ends};
pub use tap::Tap;
pub use unmoved::unmoved;
pub use wire::{decode, encode};
