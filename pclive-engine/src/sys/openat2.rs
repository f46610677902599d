//! openat2(2) (Linux 5.6): opening below a directory of which nothing leads out.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag};

/// Opens `path` as a process whose root is `root` would: `/`, `..` and symbolic links stay inside; magic links of
/// procfs are refused (ELOOP). O_CLOEXEC is implied. EAGAIN: a rename raced with the walk, try again.
pub fn in_root(root: impl AsFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    nix::fcntl::openat2(root, path, how)
}

/// Opens again the file behind a descriptor of this process (also an `O_PATH` one), with other flags: a new open
/// file description. Needs /proc.
pub fn reopen(file: impl AsFd, flags: OFlag) -> nix::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let link = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    nix::fcntl::open(link.as_str(), flags | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())
}
