//! What this host offers and lacks, in words, for administrators.

use std::path::Path;

use pclive_proto::control::Feature;

/// First kernel with PAGEMAP_SCAN and asynchronous write protection.
const FIRST_KERNEL: (u32, u32) = (6, 7);

/// What this host offers and lacks; `release` is the kernel's (`uname -r`).
pub fn features(release: &str) -> Vec<Feature> {
    let tracking = kernel_version(release).is_some_and(|version| version >= FIRST_KERNEL);
    vec![
        feature("Linux 6.7 or newer", tracking, "tracking written pages"),
        present("userfaultfd", "/proc/sys/vm/unprivileged_userfaultfd", "tracking written pages"),
        present("cgroup freezer", freezer(), "holding the source at the commit"),
        present("PID namespaces' last id", "/proc/sys/kernel/ns_last_pid", "giving tasks their ids"),
        present("/dev/userfaultfd", "/dev/userfaultfd", "arriving by policy post-copy"),
    ]
}

fn freezer() -> &'static str {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        "/sys/fs/cgroup/cgroup.controllers"
    } else {
        "/sys/fs/cgroup/freezer"
    }
}

fn present(name: &str, path: &str, needed_for: &str) -> Feature {
    feature(name, Path::new(path).exists(), needed_for)
}

fn feature(name: &str, present: bool, needed_for: &str) -> Feature {
    Feature { name: name.into(), present, needed_for: needed_for.into() }
}

/// Major and minor number of a release like `6.18.44-x`.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions_are_understood() {
        assert_eq!(kernel_version("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(kernel_version("6.1-rc3"), Some((6, 1)));
        assert_eq!(kernel_version("mainline"), None);
    }

    #[test]
    fn an_old_kernel_lacks_page_tracking() {
        assert!(!features("6.1.0-18-amd64")[0].present);
        assert!(features("6.7.0")[0].present);
        assert!(features("7.0.1")[0].present);
    }
}
