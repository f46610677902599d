//! Who is at the other end of a connection, and what it may do.
//!
//! Links to other agents and the control listener on TCP are mutual TLS unless the configuration says `insecure`;
//! the control socket goes by the caller's uid. [`Keeper`] holds the certificates and reloads them, `accept` makes
//! connections of sockets, `Gate` decides about each call.
//!
//! Invariants: a connection's `Caller` is known before its first byte of HTTP/2 is read; a reload that fails
//! leaves the certificates as they were; nothing a caller does holds up others, or takes more than one slot of
//! `accept::HANDSHAKES` and `accept::PATIENCE`.
//!
//! Kernel: `SO_PEERCRED` (unix(7)). How it fails: [`TlsError`] at the start, a log line for a handshake, a status
//! with code `access-denied` for a call.

pub(crate) mod accept;
mod caller;
mod connection;
mod gate;
mod keeper;

pub(crate) use caller::Caller;
pub(crate) use connection::Connection;
pub(crate) use gate::{Gate, GateLayer};
pub use keeper::{Keeper, TlsError};
