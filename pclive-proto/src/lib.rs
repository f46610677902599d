//! The messages and services of PCLive, generated from `proto/`. No I/O.
//!
//! [`control`] is what users call; [`peer`] is what two agents say to each other. The `.proto` files are the
//! documentation of both.

#![forbid(unsafe_code)]
#![allow(missing_docs, clippy::all, reason = "generated code; the .proto files carry the documentation")]

mod status;

/// Version of the agent-to-agent protocol. Agents of different versions refuse each other and name both.
pub const PROTOCOL_VERSION: u32 = 7;

/// Encoded `FileDescriptorSet` of all services, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pclive.descriptors"));

/// `pclive.control.v1`.
pub mod control {
    tonic::include_proto!("pclive.control.v1");
}

/// `pclive.peer.v1`.
pub mod peer {
    tonic::include_proto!("pclive.peer.v1");
}
