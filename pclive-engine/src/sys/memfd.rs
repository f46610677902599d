//! memfd_create(2) (Linux 3.17) and mappings of such memory.

use std::ffi::CStr;
use std::fs::File;

use memmap2::{Advice, Mmap, MmapOptions};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Anonymous memory with a descriptor; `name` is for people. Closed on execve.
pub fn create(name: &str) -> nix::Result<File> {
    memfd_create(name, MFdFlags::MFD_CLOEXEC).map(File::from)
}

/// A memfd that can be sealed later; executable, as it is by default (`MFD_EXEC`, Linux 6.3); in huge pages of 2 MiB or
/// in ordinary ones.
pub fn create_sealable(name: &CStr, huge: bool) -> nix::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut flags = flags | MFdFlags::from_bits_retain(libc::MFD_EXEC);
    if huge {
        flags |= MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
    }
    memfd_create(name, flags).map(File::from)
}

/// Maps `len` bytes from `offset` (a multiple of the page size) for reading, all pages in one go, and left out of core dumps
/// (`MADV_DONTDUMP`).
///
/// The file must be a memfd of this process that nobody else has: then the mapped bytes are only ever changed, or cut
/// off, by this process itself. The caller must not do either while the mapping is in use.
pub fn map(file: &File, offset: u64, len: usize) -> std::io::Result<Mmap> {
    // SAFETY: mapping a file is unsafe because others could change or truncate it under a `&[u8]`; the only writer is
    // the owner of this private memfd, whose contract above forbids it.
    let mapping = unsafe { MmapOptions::new().offset(offset).len(len).populate().map(file) }?;
    mapping.advise(Advice::DontDump)?;
    Ok(mapping)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The flags of this process's mapping at an address (proc(5), `VmFlags`).
    fn flags_at(address: usize) -> String {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let begin = smaps.find(&format!("{address:08x}-")).unwrap();
        let flags = smaps[begin..].lines().find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
        flags.to_owned()
    }

    #[test]
    fn what_is_mapped_is_left_out_of_core_dumps() {
        let file = create("test").unwrap();
        file.set_len(3 * 4096).unwrap();
        let mapping = map(&file, 4096, 4096).unwrap();
        let flags = flags_at(mapping.as_ptr() as usize);
        assert!(flags.split_whitespace().any(|flag| flag == "dd"), "{flags}");
    }
}
