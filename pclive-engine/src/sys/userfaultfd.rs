//! userfaultfd(2) in the one mode that the tracker uses: asynchronous write protection.
//!
//! Kernel: `UFFD_FEATURE_WP_ASYNC`, Linux 6.7. Addresses are the tracked process's own, in bytes, page-aligned.
//! The descriptor stays tied to the address space in which it was created, also in the hands of another process
//! (`pidfd_getfd`).

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::Error;
use nix::errno::Errno;

/// `_IOWR(type, number, size)`, asm-generic/ioctl.h.
const fn iowr(kind: u8, number: u8, size: usize) -> u64 {
    (3 << 30) | ((size as u64) << 16) | ((kind as u64) << 8) | number as u64
}

/// `_IOR(type, number, size)`.
const fn ior(kind: u8, number: u8, size: usize) -> u64 {
    (2 << 30) | ((size as u64) << 16) | ((kind as u64) << 8) | number as u64
}

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRange {
    start: u64,
    len: u64,
}

#[repr(C)]
struct UffdioRegister {
    range: UffdioRange,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioWriteprotect {
    range: UffdioRange,
    mode: u64,
}

const UFFDIO_API: u64 = iowr(0xaa, 0x3f, size_of::<UffdioApi>());
const UFFDIO_REGISTER: u64 = iowr(0xaa, 0x00, size_of::<UffdioRegister>());
const UFFDIO_UNREGISTER: u64 = ior(0xaa, 0x01, size_of::<UffdioRange>());
const UFFDIO_WRITEPROTECT: u64 = iowr(0xaa, 0x06, size_of::<UffdioWriteprotect>());

const _: () = assert!(size_of::<UffdioApi>() == 24 && UFFDIO_API == 0xc018_aa3f);
const _: () = assert!(size_of::<UffdioRegister>() == 32 && UFFDIO_REGISTER == 0xc020_aa00);
const _: () = assert!(size_of::<UffdioRange>() == 16 && UFFDIO_UNREGISTER == 0x8010_aa01);
const _: () = assert!(size_of::<UffdioWriteprotect>() == 24 && UFFDIO_WRITEPROTECT == 0xc018_aa06);

const UFFD_API_VERSION: u64 = 0xaa;
const REGISTER_MODE_WP: u64 = 1 << 1;

/// `UFFD_FEATURE_WP_UNPOPULATED`: pages that are not there can be write-protected too (Linux 6.4).
pub const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
/// `UFFD_FEATURE_WP_ASYNC`: the kernel resolves write faults by itself and only remembers them (Linux 6.7).
pub const FEATURE_WP_ASYNC: u64 = 1 << 15;

/// `UFFD_USER_MODE_ONLY`: flag of userfaultfd(2) that needs no privilege (Linux 5.11).
pub const USER_MODE_ONLY: u64 = 1;

fn ioctl<T>(fd: BorrowedFd<'_>, request: u64, argument: &mut T) -> Result<(), Error> {
    // SAFETY: `request` encodes the size of `T` (const-asserted above), `argument` is a live, exclusively borrowed
    // `repr(C)` value of it, and the kernel reads and writes nothing else of this process.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument as *mut T) }).map(drop)
}

/// `UFFDIO_API`: enables `features` on a new descriptor; must be the first call on it.
///
/// Errors: EINVAL (a feature that the kernel lacks, or called before).
pub fn handshake(fd: BorrowedFd<'_>, features: u64) -> Result<(), Error> {
    ioctl(fd, UFFDIO_API, &mut UffdioApi { api: UFFD_API_VERSION, features, ioctls: 0 })
}

/// `UFFDIO_REGISTER` for write protection: puts the mappings of a range under the tracker; gaps in it are skipped,
/// mappings that are registered already stay so.
///
/// Errors: ENOMEM (the address space is gone), EINVAL (no mapping in the range), EPERM (a mapping that can never
/// be written), EBUSY (a mapping that belongs to another userfaultfd).
pub fn register_write_protect(fd: BorrowedFd<'_>, start: u64, end: u64) -> Result<(), Error> {
    let range = UffdioRange { start, len: end - start };
    ioctl(fd, UFFDIO_REGISTER, &mut UffdioRegister { range, mode: REGISTER_MODE_WP, ioctls: 0 })
}

/// `UFFDIO_UNREGISTER`: takes the mappings of a range out of the tracker and drops their protection.
///
/// Errors: ENOMEM (the address space is gone), EINVAL (no mapping in the range, or one that cannot be tracked).
pub fn unregister(fd: BorrowedFd<'_>, start: u64, end: u64) -> Result<(), Error> {
    ioctl(fd, UFFDIO_UNREGISTER, &mut UffdioRange { start, len: end - start })
}

/// `UFFDIO_WRITEPROTECT` with mode 0: lifts the protection of a range, so that its pages count as written.
///
/// Errors: ESRCH (the address space is gone), ENOENT (no registered mapping covers the range), EAGAIN.
pub fn lift_write_protection(fd: BorrowedFd<'_>, start: u64, end: u64) -> Result<(), Error> {
    let range = UffdioRange { start, len: end - start };
    ioctl(fd, UFFDIO_WRITEPROTECT, &mut UffdioWriteprotect { range, mode: 0 })
}
