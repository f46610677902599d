//! `/proc/PID/root`: the container's file tree, from outside.
//!
//! A path is walked as the container's init would walk it, but with the agent's privileges; nothing in it (`..`,
//! symbolic links) leads out, and procfs magic links are not followed. Kernel: openat2(2), Linux 5.6.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::model::Pid;
use crate::sys::openat2;

/// How often a walk that raced with a rename is tried again.
const ATTEMPTS: u32 = 16;

/// The root directory of a container's mount namespace.
#[derive(Debug)]
pub struct ContainerRoot {
    directory: OwnedFd,
}

impl ContainerRoot {
    /// The root of the process `init` and of whatever mount namespace it is in.
    pub fn open(init: Pid) -> nix::Result<Self> {
        let path = format!("/proc/{init}/root");
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::fcntl::open(path.as_str(), flags, Mode::empty()).map(|directory| Self { directory })
    }

    /// The file at `path`, as an `O_PATH` descriptor; a symbolic link at its end is not followed.
    pub fn resolve(&self, path: &[u8]) -> nix::Result<OwnedFd> {
        let path = Path::new(OsStr::from_bytes(path));
        let mut result = Err(Errno::EAGAIN);
        for _ in 0..ATTEMPTS {
            result = openat2::in_root(&self.directory, path, OFlag::O_PATH | OFlag::O_NOFOLLOW);
            if result.as_ref().err() != Some(&Errno::EAGAIN) {
                break;
            }
        }
        result
    }
}

impl AsFd for ContainerRoot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> ContainerRoot {
        ContainerRoot::open(Pid(std::process::id() as i32)).unwrap()
    }

    #[test]
    fn a_path_leads_to_its_file() {
        let found = own().resolve(b"/dev/null").unwrap();
        assert_eq!(nix::sys::stat::fstat(&found).unwrap().st_rdev, nix::sys::stat::makedev(1, 3));
    }

    #[test]
    fn magic_links_are_refused() {
        assert_eq!(own().resolve(b"/proc/self/cwd/x").unwrap_err(), Errno::ELOOP);
    }
}
