//! userfaultfd(2) in its missing mode: a task that touches a page which is not there waits until somebody puts it there.
//!
//! Kernel: Linux 6.1 (`/dev/userfaultfd`), 4.14 (the events). The descriptor belongs to the address space of the task
//! that made it, whoever uses it. Addresses are that task's, in bytes, page-aligned.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::Error;
use nix::errno::Errno;

/// `_IO(0xaa, 0x00)` on `/dev/userfaultfd`: makes a userfaultfd that also takes faults of the kernel on behalf of the
/// task; the argument has its flags.
pub const USERFAULTFD_IOC_NEW: u64 = 0xaa00;

/// `UFFD_FEATURE_EVENT_FORK`, `_REMAP`, `_REMOVE`, `_UNMAP`: the task waits until these have been read.
pub const EVENTS: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6;

const REGISTER_MODE_MISSING: u64 = 1;

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
struct Zeropage {
    range: Range,
    mode: u64,
    zeroed: i64,
}

const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_WAKE: u64 = 0x8010_aa02;
const UFFDIO_COPY: u64 = 0xc028_aa03;
const UFFDIO_ZEROPAGE: u64 = 0xc020_aa04;
const UFFDIO_CONTINUE: u64 = 0xc020_aa07;
const _: () = assert!(size_of::<Range>() == 0x10 && size_of::<Register>() == 0x20);
const _: () = assert!(size_of::<Copy>() == 0x28 && size_of::<Zeropage>() == 0x20);

/// What a read of the descriptor tells.
#[derive(Debug)]
pub enum Told {
    /// A thread waits for the page at this address.
    Fault(u64),
    /// The process has a child, with the same mappings and this descriptor for them.
    Forked(OwnedFd),
    /// Mappings move.
    Moved {
        /// From here,
        from: u64,
        /// to here,
        to: u64,
        /// so many bytes.
        len: u64,
    },
    /// Pages are dropped; the mapping stays.
    Removed(u64, u64),
    /// A range is unmapped.
    Unmapped(u64, u64),
    /// Something that was not asked for.
    Other(u8),
}

/// Size of `struct uffd_msg`.
const MESSAGE_BYTES: usize = 32;

fn ioctl<T>(fd: BorrowedFd<'_>, request: u64, argument: &mut T) -> Result<(), Error> {
    // SAFETY: `request` encodes the size of `T` (const-asserted above), `argument` is a live, exclusively borrowed
    // `repr(C)` value of it; what it points to is checked by the callers.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument as *mut T) }).map(drop)
}

/// `UFFDIO_REGISTER` for missing pages: every mapping in the range.
///
/// Errors: ENOMEM (the address space is gone), EINVAL (no mapping in the range, or one that cannot be), EBUSY (one that
/// belongs to another userfaultfd).
pub fn register(fd: BorrowedFd<'_>, start: u64, end: u64) -> Result<(), Error> {
    let range = Range { start, len: end - start };
    ioctl(fd, UFFDIO_REGISTER, &mut Register { range, mode: REGISTER_MODE_MISSING, ioctls: 0 })
}

/// `UFFDIO_COPY`: puts pages where none are, and wakes who waits for them. How many bytes are in place, and the error
/// that ended it, if it did not come to the end.
///
/// Errors: EEXIST (the page is there), ENOENT (no registered mapping), EAGAIN (an event has to be read first, or it
/// came to a part only), ESRCH (the address space is gone), ENOMEM.
pub fn copy(fd: BorrowedFd<'_>, to: u64, bytes: &[u8]) -> (u64, Option<Error>) {
    let mut argument = Copy { to, from: bytes.as_ptr() as u64, len: bytes.len() as u64, mode: 0, copied: 0 };
    let done = ioctl(fd, UFFDIO_COPY, &mut argument);
    (u64::try_from(argument.copied).unwrap_or(0), done.err())
}

/// `UFFDIO_ZEROPAGE`: puts a page of zeros where none is. Errors as for [`copy`].
pub fn zero(fd: BorrowedFd<'_>, start: u64, len: u64) -> Result<(), Error> {
    ioctl(fd, UFFDIO_ZEROPAGE, &mut Zeropage { range: Range { start, len }, mode: 0, zeroed: 0 })
}

/// `UFFDIO_CONTINUE`, which private anonymous memory does not take: how it is refused tells whether the page at an
/// address belongs to this userfaultfd. EINVAL: it does; ENOENT: it does not; EAGAIN: an event has to be read first, or
/// its task has not gone on yet. Nothing is changed.
pub fn belongs(fd: BorrowedFd<'_>, start: u64, len: u64) -> Error {
    let range = Range { start, len };
    let refused = ioctl(fd, UFFDIO_CONTINUE, &mut Zeropage { range, mode: 0, zeroed: 0 });
    refused.err().unwrap_or(Errno::EINVAL)
}

/// `UFFDIO_WAKE`: who waits for a page of the range looks again.
pub fn wake(fd: BorrowedFd<'_>, start: u64, len: u64) -> Result<(), Error> {
    ioctl(fd, UFFDIO_WAKE, &mut Range { start, len })
}

/// The next message. EAGAIN: there is none.
pub fn read(fd: BorrowedFd<'_>) -> Result<Told, Error> {
    let mut message = [0u8; MESSAGE_BYTES];
    let len = nix::unistd::read(fd, &mut message)?;
    if len != MESSAGE_BYTES {
        return Err(Errno::EIO);
    }
    let word = |at: usize| {
        let bytes = message.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        u64::from_ne_bytes(bytes.unwrap_or_default())
    };
    Ok(match message[0] {
        0x12 => Told::Fault(word(16)),
        0x13 => {
            let number = word(8) as u32 as i32;
            // SAFETY: the kernel has just installed this descriptor in this process for the reader of the message,
            // and nobody else knows its number.
            Told::Forked(unsafe { OwnedFd::from_raw_fd(number) })
        }
        0x14 => Told::Moved { from: word(8), to: word(16), len: word(24) },
        0x15 => Told::Removed(word(8), word(16)),
        0x16 => Told::Unmapped(word(8), word(16)),
        other => Told::Other(other),
    })
}
