//! process_vm_readv(2) and process_vm_writev(2): copies between this process and another.
//!
//! Kernel: Linux 3.2; needs the rights of ptrace(2) over the process. Neither call stops it. A short result means
//! that the first page after the bytes done is not accessible.

use std::mem::MaybeUninit;

use bytes::BytesMut;
use nix::Error;
use nix::errno::Errno;

use crate::model::Pid;

/// The most ranges that one call takes (`UIO_MAXIOV`).
pub const MAX_RANGES: usize = 1024;

/// A range of another process's memory, laid out as the kernel's `struct iovec`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteRange {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

const _: () = assert!(size_of::<RemoteRange>() == size_of::<libc::iovec>());
const _: () = assert!(align_of::<RemoteRange>() == align_of::<libc::iovec>());

/// Reads `ranges` one after the other and appends what was read to `buffer`, at most its spare capacity. Returns
/// the number of bytes appended, which may end inside any range.
///
/// Errors (only when nothing was read): EFAULT (the first page is not readable), ESRCH (no such process), EPERM,
/// EINVAL (more than [`MAX_RANGES`]).
pub fn read_append(pid: Pid, ranges: &[RemoteRange], buffer: &mut BytesMut) -> Result<usize, Error> {
    let spare: &mut [MaybeUninit<u8>] = buffer.spare_capacity_mut();
    let local = libc::iovec { iov_base: spare.as_mut_ptr().cast(), iov_len: spare.len() };
    // SAFETY: `local` covers exactly the spare capacity, which is exclusively borrowed and may be written without
    // being read; `ranges` is a slice of `iovec`-shaped values whose addresses are used in the other process only.
    let read = Errno::result(unsafe {
        libc::process_vm_readv(pid.0, &raw const local, 1, ranges.as_ptr().cast(), ranges.len() as u64, 0)
    })?;
    let read = usize::try_from(read).unwrap_or(0);
    // SAFETY: the kernel has initialised `read` bytes from the start of the spare capacity, and never more than it.
    unsafe { buffer.set_len(buffer.len() + read) };
    Ok(read)
}

/// Writes `bytes` into `ranges`, one after the other. Returns the number of bytes written. Of this process itself
/// ([`super::window`]) only what no reference leads to may be written.
///
/// Errors (only when nothing was written): EFAULT (the first page is not writable), ESRCH, EPERM, EINVAL.
pub fn write(pid: Pid, bytes: &[u8], ranges: &[RemoteRange]) -> Result<usize, Error> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: the kernel only reads `local`, which covers exactly `bytes`; the addresses in `ranges` are used in the
    // other process, or are, as the callers say, memory of this one that no reference leads to.
    let written = Errno::result(unsafe {
        libc::process_vm_writev(pid.0, &raw const local, 1, ranges.as_ptr().cast(), ranges.len() as u64, 0)
    })?;
    Ok(usize::try_from(written).unwrap_or(0))
}

/// pread(2) on `/proc/PID/mem`, appended to `buffer`: reads at most `len` bytes and at most the spare capacity.
/// Unlike [`read_append`] it also reads mappings without read permission.
///
/// Errors: EIO (the first page is not mapped), ESRCH; `Ok(0)` when the address space is gone.
pub fn pread_append(
    mem: std::os::fd::BorrowedFd<'_>,
    start: u64,
    len: usize,
    buffer: &mut BytesMut,
) -> Result<usize, Error> {
    use std::os::fd::AsRawFd;
    let spare = buffer.spare_capacity_mut();
    let len = len.min(spare.len());
    // SAFETY: the pointer and length describe (part of) the exclusively borrowed spare capacity; an address as the
    // file offset is what /proc/PID/mem expects.
    let read = Errno::result(unsafe {
        libc::pread(mem.as_raw_fd(), spare.as_mut_ptr().cast(), len, start.cast_signed())
    })?;
    let read = usize::try_from(read).unwrap_or(0);
    // SAFETY: the kernel has initialised `read` bytes from the start of the spare capacity, `read <= len`.
    unsafe { buffer.set_len(buffer.len() + read) };
    Ok(read)
}
