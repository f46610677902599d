//! Certificates and mutual TLS, for the agent and `pclivectl`.
//!
//! One CA of one's own stands for the whole fleet. An agent's certificate carries the agent's name as a dNSName; a
//! user's carries a [`Role`] as a URI. Both ends show a certificate and check the other's against the CA; what a
//! checked name may do is decided by the agent.
//!
//! Invariants: TLS 1.3 only, ALPN `h2`; no resumption, so that every connection is checked against the
//! certificates of its day; no key ever leaves [`Credentials`]. Cryptography: ring, which needs a C compiler alone.
//!
//! How it fails: files by [`CredentialsError`], a handshake by [`Fault`]; both say what to do.

#![forbid(unsafe_code)]

mod certificate;
mod client;
mod credentials;
mod fault;
mod role;
mod server;

pub use certificate::{Facts, NotCertificate};
pub use client::Connector;
pub use credentials::{Credentials, CredentialsError, Files};
pub use fault::{End, Fault};
pub use role::Role;
pub use server::acceptor;

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};

/// What both ends offer first and last: HTTP/2 and nothing else.
const ALPN: &[u8] = b"h2";

/// ring, with AES-128-GCM before AES-256-GCM: as safe here, and a third faster on a page stream.
fn provider() -> Arc<CryptoProvider> {
    use ring::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    let cipher_suites =
        vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    Arc::new(CryptoProvider { cipher_suites, ..ring::default_provider() })
}
