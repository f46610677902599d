//! What a bundle's `config.json` (OCI runtime specification) says that matters for a migration.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use pclive_engine::model::{Blocker, Place, Vpid};

/// Largest `config.json` that is read, bytes.
const MAX_CONFIG: u64 = 4 << 20;

/// A bundle that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not a runtime configuration.
    #[error("cannot parse {path}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where it stops making sense.
        source: serde_json::Error,
    },
}

/// A bundle and its configuration.
#[derive(Debug)]
pub struct Bundle {
    spec: Spec,
}

impl Bundle {
    /// Reads the configuration of the bundle in `directory`.
    pub fn load(directory: &Path) -> Result<Self, BundleError> {
        let path = directory.join("config.json");
        let text = read(&path).map_err(|source| BundleError::Read { path: path.clone(), source })?;
        let spec = serde_json::from_slice(&text).map_err(|source| BundleError::Parse { path, source })?;
        Ok(Self { spec })
    }

    /// What of the configuration cannot be migrated; `pid` is the container's init, to be named.
    pub fn blockers(&self, pid: i32) -> Vec<Blocker> {
        let mut found = Vec::new();
        if self.spec.process().as_ref().is_some_and(|process| process.terminal().unwrap_or(false)) {
            found.push((
                "terminal: a pseudo-terminal of the runtime",
                "set process.terminal to false in config.json",
            ));
        }
        if self.has(LinuxNamespaceType::User) {
            found.push(("a user namespace", "run it without one"));
        }
        if !self.has(LinuxNamespaceType::Pid) {
            found.push(("the host's process ids", "give it a PID namespace of its own"));
        }
        if !self.has(LinuxNamespaceType::Mount) {
            found.push(("the host's mounts", "give it a mount namespace of its own"));
        }
        if !self.has(LinuxNamespaceType::Network) {
            let hint = "give it a network namespace of its own: an address of the host cannot move with it";
            found.push(("the host's network", hint));
        }
        found.into_iter().map(|(what, hint)| blocker(pid, what, hint)).collect()
    }

    fn has(&self, kind: LinuxNamespaceType) -> bool {
        let namespaces = self.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        namespaces.is_some_and(|all| all.iter().any(|namespace| namespace.typ() == kind))
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    // A peer names the bundle: what is there may be a FIFO, and opening that would wait for somebody.
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    file.take(MAX_CONFIG + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_CONFIG {
        return Err(io::Error::other(format!("larger than {MAX_CONFIG} bytes")));
    }
    Ok(text)
}

fn blocker(pid: i32, what: &str, hint: &str) -> Blocker {
    Blocker {
        pid,
        vpid: Vpid(1),
        comm: "config.json".into(),
        place: Place::Process,
        what: what.into(),
        hint: hint.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blockers(config: &serde_json::Value) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
        let bundle = Bundle::load(directory.path()).unwrap();
        bundle.blockers(7).into_iter().map(|blocker| blocker.what).collect()
    }

    fn config(terminal: bool, namespaces: &[&str]) -> serde_json::Value {
        let namespaces: Vec<_> = namespaces.iter().map(|kind| serde_json::json!({ "type": kind })).collect();
        serde_json::json!({
            "ociVersion": "1.0.2",
            "process": { "terminal": terminal, "cwd": "/", "args": ["sh"], "user": { "uid": 0, "gid": 0 } },
            "root": { "path": "rootfs" },
            "linux": { "namespaces": namespaces },
        })
    }

    #[test]
    fn a_container_with_its_own_namespaces_is_fine() {
        assert!(blockers(&config(false, &["pid", "network", "mount", "ipc", "uts", "cgroup"])).is_empty());
    }

    #[test]
    fn everything_in_the_way_is_found_at_once() {
        let found = blockers(&config(true, &["user"]));
        assert_eq!(found.len(), 5, "{found:?}");
        assert!(found[0].starts_with("terminal"));
    }

    #[test]
    fn a_missing_or_broken_configuration_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let error = Bundle::load(directory.path()).unwrap_err();
        assert!(error.to_string().contains("config.json"));
        std::fs::write(directory.path().join("config.json"), "{").unwrap();
        assert!(matches!(Bundle::load(directory.path()).unwrap_err(), BundleError::Parse { .. }));
    }
}
