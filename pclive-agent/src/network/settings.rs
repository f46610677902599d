//! Per-interface sysctls of a namespace.
//!
//! Kernel: `/proc/sys/net` shows the namespace of the thread that opens a file in it.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use super::namespace::Namespace;

/// A sysctl and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    path: PathBuf,
    value: &'static str,
}

impl Setting {
    /// `net.ipv6.conf.<interface>.disable_ipv6`. The name is one that the kernel takes: it has no slash.
    pub(super) fn disable_ipv6(interface: &str, disabled: bool) -> Self {
        let path = Path::new("/proc/sys/net/ipv6/conf").join(interface).join("disable_ipv6");
        Self { path, value: if disabled { "1" } else { "0" } }
    }
}

/// Whether the kernel has it: not without IPv6.
pub(super) fn exists(namespace: &Namespace, setting: &Setting) -> Result<bool> {
    namespace.run(|| setting.path.exists())
}

/// Sets it.
pub(super) fn write(namespace: &Namespace, setting: &Setting) -> Result<()> {
    namespace.run(|| fs::write(&setting.path, setting.value))?.map_err(|source| Error::Setting {
        verb: "write",
        setting: setting.path.display().to_string(),
        source,
    })
}
