//! What runs in the containers, and the clients that check it.

pub mod clients;
pub mod crowd;
pub mod graph;
pub mod http;
pub mod memcached;
pub mod pipeline;
pub mod postgres;
pub mod redis;
pub mod resp;
pub mod states;
pub mod torture;
pub mod traffic;
pub mod verifier;
pub mod writer;
