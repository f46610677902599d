//! Writes into files of hugetlbfs, which have no write(2): through a mapping of this process's own.
//!
//! The bytes are copied by process_vm_writev(2), so that a huge page which is not to be had is an error and no SIGBUS.

use std::fs::File;

use memmap2::MmapOptions;
use nix::errno::Errno;

use super::process_vm::{self, RemoteRange};
use crate::model::{HUGE_PAGE_SIZE, Pid};

/// Writes `bytes` at `offset`, all of it below the end of the file. On `Err` a part may be written.
///
/// Errors: ENOMEM (no huge page is free), EINVAL, ENODEV (the file cannot be mapped).
pub fn write_at(file: &File, offset: u64, bytes: &[u8]) -> nix::Result<()> {
    let start = offset / HUGE_PAGE_SIZE * HUGE_PAGE_SIZE;
    let within = usize::try_from(offset - start).map_err(|_| Errno::EINVAL)?;
    let len = (within + bytes.len()).next_multiple_of(HUGE_PAGE_SIZE as usize);
    // Nothing is reserved for the mapping: what is written takes pages, and those that have it mapped have theirs.
    let window = MmapOptions::new().offset(start).len(len).no_reserve_swap().map_raw(file);
    let window = window.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    let own = Pid(std::process::id().cast_signed());
    let address = window.as_mut_ptr().expose_provenance() as u64 + within as u64;
    // The range is inside the mapping, which nobody else knows of and which is never made a reference.
    let range = RemoteRange { start: address, len: bytes.len() as u64 };
    match process_vm::write(own, bytes, &[range]) {
        Ok(written) if written == bytes.len() => Ok(()),
        Ok(_) | Err(Errno::EFAULT) => Err(Errno::ENOMEM),
        Err(error) => Err(error),
    }
}
