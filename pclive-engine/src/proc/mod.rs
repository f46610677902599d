//! Bytes of `/proc` -> model. Parsers take bytes and never panic: a container chooses its names.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

pub mod auxv;
pub mod fdinfo;
pub mod inet_diag;
pub mod maps;
mod maps_line;
pub mod mountinfo;
pub mod multicast;
pub mod root;
pub mod smaps;
pub mod sock_diag;
pub mod stat;
pub mod status;
pub mod sysvipc;
pub mod task_ids;
pub mod timers;

/// What one read of a file of `/proc` asks for: most of them are shorter.
const FIRST_BYTES: usize = 4096;
/// Longer than the smaps of a million mappings.
const MOST_BYTES: u64 = 1 << 30;

/// Reads a file of `/proc` whole. Its size is not known before, and the kernel makes its text in one go where it is asked
/// for enough: two reads, where [`std::fs::read`] makes eight. Nothing is cut short: a file that
/// is too long is an error.
pub fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(FIRST_BYTES);
    File::open(path)?.take(MOST_BYTES).read_to_end(&mut text)?;
    if text.len() as u64 == MOST_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_any_length_are_read_whole() {
        let text = read("/proc/self/smaps").unwrap();
        assert!(text.ends_with(b"\n") && text.len() > FIRST_BYTES, "{}", text.len());
        assert_eq!(read("/proc/self/comm").unwrap(), std::fs::read("/proc/self/comm").unwrap());
        assert_eq!(read("/proc/self/nothing").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
