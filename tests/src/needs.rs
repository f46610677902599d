//! What the end-to-end tests need from the machine.

use anyhow::{Result, bail};

use crate::command::installed;

/// Programs without which no lab can be built.
const LAB: [&str; 6] = ["runc", "ip", "tc", "nsenter", "unshare", "mount"];

/// Whether the test may run; says why when not.
///
/// Call it first in each test: `if !needs::met(&["redis-server"]) { return }`.
///
/// # Panics
/// When something is missing and `CI=true`: a pipeline must not pass by skipping.
pub fn met(programs: &[&str]) -> bool {
    allows(check(programs))
}

/// The same for what a test needs beside the lab.
///
/// # Panics
/// As [`met`].
pub fn allows(there: Result<()>) -> bool {
    let Err(missing) = there else { return true };
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(!ci, "this test cannot run here, and CI=true forbids skipping it: {missing}");
    eprintln!("NOT TESTED: {missing}");
    false
}

/// Everything that is missing for a lab with these programs in its containers, in one message.
pub fn check(programs: &[&str]) -> Result<()> {
    let mut missing: Vec<String> = LAB
        .iter()
        .chain(programs)
        .filter(|name| installed(name).is_none())
        .map(|name| format!("program {name} is not installed (`make deps`)"))
        .collect();
    if !nix::unistd::geteuid().is_root() {
        missing.push("not root: namespaces, veth pairs and containers need it".into());
    }
    if !missing.is_empty() {
        bail!("{}", missing.join("; "));
    }
    Ok(())
}
