//! Peers that want to do harm: a source against a real destination agent, a destination against a real source agent,
//! with a real container. What one of them says is changed on its way ([`proxy`]); everything else is as it always is.
//!
//! Each attack is refused with a clear error, the agents serve the next request, nothing is left at the destination,
//! and the container goes on. Needs root, runc and python3.

mod container;
mod destination;
mod pair;
mod proxy;
mod source;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;

/// False if this machine lacks something, which is a failure where `CI=true`.
fn ready() -> bool {
    let programs = ["/usr/bin/python3", "/usr/sbin/runc"];
    let missing: Vec<&str> = programs.into_iter().filter(|path| !Path::new(path).exists()).collect();
    if nix::unistd::geteuid().is_root() && missing.is_empty() {
        return true;
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "needs root and {missing:?}");
    eprintln!("skipped: needs root and {missing:?}");
    false
}
