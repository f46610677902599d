//! The system calls on memory, one a function. This program's subject is memory below the language: the model in
//! `region` is what makes each access valid, and a wrong model is a test failure like any other.

use std::fs::File;
use std::os::fd::AsRawFd;

use super::page::{BYTES, Words};

/// A page-aligned address of memory that a region owns.
pub(crate) type Address = usize;

/// What backs new memory.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Backing<'a> {
    /// Private and anonymous.
    Private,
    /// The same in huge pages of hugetlbfs.
    Huge,
    /// Shared with children.
    Shared,
    /// A private view of the file, from this page on.
    File(&'a File, usize),
    /// A shared view of all of a file in memory.
    Object(&'a File),
}

/// What may be done with pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protection {
    Nothing,
    Read,
    Write,
}

impl Protection {
    fn bits(self) -> libc::c_int {
        match self {
            Self::Nothing => libc::PROT_NONE,
            Self::Read => libc::PROT_READ,
            Self::Write => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

/// Whether something is mapped at a page, whatever may be done with it.
pub(crate) fn is_mapped(page: Address) -> bool {
    let mut resident = 0;
    // SAFETY: the kernel looks the address up and does not follow it; it writes one byte, of one page.
    unsafe { libc::mincore(page as *mut libc::c_void, BYTES, &raw mut resident) == 0 }
}

/// Maps new memory where the kernel likes.
pub(crate) fn map(pages: usize, protection: Protection, backing: Backing) -> std::io::Result<Address> {
    let (flags, fd, offset) = match backing {
        Backing::Private => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0),
        Backing::Huge => {
            (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB, -1, 0)
        }
        Backing::Shared => (libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0),
        Backing::File(file, page) => (libc::MAP_PRIVATE, file.as_raw_fd(), page * BYTES),
        Backing::Object(file) => (libc::MAP_SHARED, file.as_raw_fd(), 0),
    };
    let offset = libc::off_t::try_from(offset).unwrap_or(libc::off_t::MAX);
    // SAFETY: without MAP_FIXED the kernel takes addresses that nothing uses.
    let address =
        unsafe { libc::mmap(std::ptr::null_mut(), pages * BYTES, protection.bits(), flags, fd, offset) };
    if address == libc::MAP_FAILED { Err(std::io::Error::last_os_error()) } else { Ok(address as Address) }
}

/// A System V segment that is removed as soon as it is attached: it is there as long as something of it is mapped.
pub(crate) fn attach_new_segment(pages: usize) -> std::io::Result<Address> {
    // SAFETY: numbers only.
    let id = unsafe { libc::shmget(libc::IPC_PRIVATE, pages * BYTES, 0o600) };
    done(id.min(0))?;
    // SAFETY: the kernel takes addresses that nothing uses.
    let address = unsafe { libc::shmat(id, std::ptr::null(), 0) };
    let attached = if address as isize == -1 { Err(std::io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: no pointer is followed by this command.
    done(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) })?;
    attached.map(|()| address as Address)
}

/// # Safety
/// The pages belong to a region of the caller, which forgets them.
pub(crate) unsafe fn unmap(address: Address, pages: usize) -> std::io::Result<()> {
    // SAFETY: nothing refers to the pages any more, as the caller says.
    done(unsafe { libc::munmap(address as *mut libc::c_void, pages * BYTES) })
}

/// Resizes memory, moving it if it must; with `to`, moves it there, over what is mapped there.
///
/// # Safety
/// The pages, and those at `to`, belong to the caller, which from then on uses the address that comes back.
pub(crate) unsafe fn remap(
    address: Address,
    pages: usize,
    new_pages: usize,
    to: Option<Address>,
) -> std::io::Result<Address> {
    let flags = libc::MREMAP_MAYMOVE | to.map_or(0, |_| libc::MREMAP_FIXED);
    let target = to.unwrap_or(0) as *mut libc::c_void;
    let (old, new) = (pages * BYTES, new_pages * BYTES);
    // SAFETY: both ranges are the caller's.
    let moved = unsafe { libc::mremap(address as *mut libc::c_void, old, new, flags, target) };
    if moved == libc::MAP_FAILED { Err(std::io::Error::last_os_error()) } else { Ok(moved as Address) }
}

/// # Safety
/// The pages belong to the caller, which knows what the advice does to their contents.
pub(crate) unsafe fn advise(address: Address, pages: usize, advice: libc::c_int) -> std::io::Result<()> {
    // SAFETY: the range is the caller's.
    done(unsafe { libc::madvise(address as *mut libc::c_void, pages * BYTES, advice) })
}

/// # Safety
/// The pages belong to the caller, which does not access them beyond `protection` afterwards.
pub(crate) unsafe fn protect(address: Address, pages: usize, protection: Protection) -> std::io::Result<()> {
    // SAFETY: the range is the caller's.
    done(unsafe { libc::mprotect(address as *mut libc::c_void, pages * BYTES, protection.bits()) })
}

/// # Safety
/// The page is the caller's and may be read.
pub(crate) unsafe fn read(page: Address, words: &mut Words) {
    // SAFETY: a page is as large as `Words`, aligned to it, and readable; `words` is not part of it.
    unsafe { std::ptr::copy_nonoverlapping(page as *const u64, words.as_mut_ptr(), words.len()) }
}

/// # Safety
/// The page is the caller's and may be written.
pub(crate) unsafe fn write(page: Address, words: &Words) {
    // SAFETY: as for `read`, and writable.
    unsafe { std::ptr::copy_nonoverlapping(words.as_ptr(), page as *mut u64, words.len()) }
}

/// # Safety
/// The page is the caller's and may be written; `index` is below the words of a page.
pub(crate) unsafe fn poke(page: Address, index: usize, word: u64) {
    // SAFETY: the word is inside the page.
    unsafe { (page as *mut u64).add(index).write_volatile(word) }
}

fn done(result: libc::c_int) -> std::io::Result<()> {
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
