//! Extended attributes of what a path leads to; a symbolic link at its end is not followed (llistxattr(2), lgetxattr(2),
//! lsetxattr(2), lremovexattr(2)).

use std::ffi::{CStr, CString};

use nix::errno::Errno;

/// `XATTR_LIST_MAX`, `XATTR_SIZE_MAX`.
const MOST_BYTES: usize = 65_536;

/// The names. A file system without attributes has none.
pub fn list(path: &CStr) -> nix::Result<Vec<CString>> {
    // SAFETY: the path is a C string; with length 0 nothing is written.
    let len = unsafe { libc::llistxattr(path.as_ptr(), std::ptr::null_mut(), 0) };
    match Errno::result(len) {
        Ok(0) | Err(Errno::EOPNOTSUPP) => return Ok(Vec::new()),
        Ok(_) => {}
        Err(error) => return Err(error),
    }
    let mut names = vec![0_u8; MOST_BYTES];
    // SAFETY: the kernel writes at most as many bytes as the buffer has.
    let len = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(Errno::result(len)?).unwrap_or(0));
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.filter_map(|name| CString::new(name).ok()).collect())
}

/// A value. ENODATA: it has gone.
pub fn get(path: &CStr, name: &CStr) -> nix::Result<Vec<u8>> {
    let mut value = vec![0_u8; MOST_BYTES];
    // SAFETY: both are C strings; the kernel writes at most as many bytes as the buffer has.
    let len =
        unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(Errno::result(len)?).unwrap_or(0));
    Ok(value)
}

/// Takes an attribute away. ENODATA: there is none.
pub fn remove(path: &CStr, name: &CStr) -> nix::Result<()> {
    // SAFETY: both are C strings; nothing else is read or written.
    let result = unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) };
    Errno::result(result).map(drop)
}

/// Sets a value.
pub fn set(path: &CStr, name: &CStr, value: &[u8]) -> nix::Result<()> {
    // SAFETY: both are C strings; the kernel reads the bytes of the slice.
    let result =
        unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(result).map(drop)
}
