//! `/proc/PID/maps`: the mappings of an address space.
//!
//! Kernel: proc_pid_maps(5). Names are bytes: a container chooses its file names, so they need not be UTF-8. The
//! kernel writes a line feed in a name as `\012` and leaves every other byte alone, so that a name which really
//! holds `\012` cannot be told apart; whoever opens a name must compare what it opened with [`MapsEntry::device`]
//! and [`MapsEntry::inode`]. Nothing here panics on any input.

use super::maps_line::Fields;
use crate::model::Protection;

/// One line of `/proc/PID/maps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapsEntry {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// Access.
    pub protection: Protection,
    /// `MAP_SHARED` (a mapping that may be or become writable and shared; `s`), else private.
    pub shared: bool,
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Device of the file: major and minor number; 0, 0 without a file.
    pub device: (u32, u32),
    /// Inode of the file, 0 without one.
    pub inode: u64,
    /// What the kernel says is behind it, with line feeds put back: a path, `[heap]`, or empty. A path of an
    /// unlinked file ends with ` (deleted)`.
    pub name: Vec<u8>,
}

/// A line that is not one of a `/proc/PID/maps`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot understand line {line} of the mappings: bad {field}")]
pub struct ParseError {
    /// Line number, from 1.
    pub line: usize,
    /// The part of the line.
    pub field: &'static str,
}

const DELETED: &[u8] = b" (deleted)";

impl MapsEntry {
    /// The name without the kernel's ` (deleted)`, and whether it was there. (The name of a file that is there may
    /// end the same way; only a comparison of inodes tells.)
    pub fn path(&self) -> (&[u8], bool) {
        match self.name.strip_suffix(DELETED) {
            Some(path) => (path, true),
            None => (&self.name, false),
        }
    }
}

/// Parses a whole `/proc/PID/maps`. The entries come in the kernel's order, which is ascending.
pub fn parse_maps(text: &[u8]) -> Result<Vec<MapsEntry>, ParseError> {
    let lines = text.split(|byte| *byte == b'\n').enumerate();
    let lines = lines.filter(|(_, line)| !line.is_empty());
    lines
        .map(|(index, line)| parse_line(line).map_err(|field| ParseError { line: index + 1, field }))
        .collect()
}

/// Parses one line without its line feed; the error names the field.
pub(super) fn parse_line(line: &[u8]) -> Result<MapsEntry, &'static str> {
    let mut fields = Fields::new(line);
    let start = fields.hex(b'-').ok_or("start address")?;
    let end = fields.hex(b' ').filter(|end| *end > start).ok_or("end address")?;
    let (protection, shared) = permissions(fields.token(b' ').ok_or("permissions")?).ok_or("permissions")?;
    let offset = fields.hex(b' ').ok_or("offset")?;
    let major = fields.hex(b':').and_then(|n| u32::try_from(n).ok()).ok_or("device")?;
    let minor = fields.hex(b' ').and_then(|n| u32::try_from(n).ok()).ok_or("device")?;
    let inode = fields.decimal().ok_or("inode")?;
    let name = unescape(fields.rest());
    Ok(MapsEntry { start, end, protection, shared, offset, device: (major, minor), inode, name })
}

/// `rwxp` -> access, shared.
fn permissions(text: &[u8]) -> Option<(Protection, bool)> {
    let [read, write, exec, sharing] = *text else { return None };
    let bit = |byte: u8, set: u8| match byte {
        b'-' => Some(false),
        byte if byte == set => Some(true),
        _ => None,
    };
    let protection = Protection { read: bit(read, b'r')?, write: bit(write, b'w')?, exec: bit(exec, b'x')? };
    match sharing {
        b's' => Some((protection, true)),
        b'p' => Some((protection, false)),
        _ => None,
    }
}

/// Puts line feeds back.
fn unescape(name: &[u8]) -> Vec<u8> {
    const LINE_FEED: &[u8] = b"\\012";
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, tail)) = rest.split_first() {
        match rest.strip_prefix(LINE_FEED) {
            Some(after) => {
                bytes.push(b'\n');
                rest = after;
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SAMPLE: &[u8] = b"\
55e0c8a00000-55e0c8a02000 r--p 00001000 fe:01 262146                     /usr/bin/redis server
55e0c9f3b000-55e0c9f5c000 rw-p 00000000 00:00 0                          [heap]
7f0e8c000000-7f0e8c021000 rw-p 00000000 00:00 0 
7f0e90000000-7f0e90001000 rw-s 00000000 00:01 1029                       /dev/zero (deleted)
7ffd4b1f8000-7ffd4b219000 rw-p 00000000 00:00 0                          [stack]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    #[test]
    fn a_captured_file_is_read_field_by_field() {
        let entries = parse_maps(SAMPLE).unwrap();
        assert_eq!(entries.len(), 6);
        let program = &entries[0];
        assert_eq!(
            (program.start, program.end, program.offset),
            (0x55e0_c8a0_0000, 0x55e0_c8a0_2000, 0x1000)
        );
        assert_eq!((program.device, program.inode), ((0xfe, 1), 262_146));
        assert_eq!(program.name, b"/usr/bin/redis server");
        assert_eq!(program.protection, Protection { read: true, write: false, exec: false });
        assert!(!program.shared);
        assert_eq!(entries[2].name, b"");
        assert_eq!(entries[3].path(), (b"/dev/zero".as_slice(), true));
        assert!(entries[3].shared);
        assert_eq!(entries[5].end, 0xffff_ffff_ff60_1000);
    }

    #[test]
    fn names_keep_bytes_that_are_not_utf8_and_get_their_line_feeds_back() {
        let line = b"1000-2000 r--p 00000000 fe:01 7                    /a\\012b \xff\xfe\\n\n";
        assert_eq!(parse_maps(line).unwrap()[0].name, b"/a\nb \xff\xfe\\n");
    }

    #[test]
    fn lines_that_are_not_mappings_are_named() {
        for (text, field) in [
            (b"zz".as_slice(), "start address"),
            (b"2000-1000 r--p 0 0:0 0", "end address"),
            (b"1000-2000 r--q 0 0:0 0", "permissions"),
            (b"1000-2000 r--p 0 0", "device"),
            (b"1000-2000 r--p 0 0:0 x", "inode"),
            (b"1000-11111111111111111111 r--p 0 0:0 0", "end address"),
        ] {
            assert_eq!(parse_maps(text), Err(ParseError { line: 1, field }));
        }
    }

    #[test]
    fn this_process_is_read() {
        let entries = parse_maps(&std::fs::read("/proc/self/maps").unwrap()).unwrap();
        assert!(entries.windows(2).all(|pair| pair[0].end <= pair[1].start));
        assert!(entries.iter().any(|entry| entry.name == b"[stack]"));
    }

    proptest! {
        #[test]
        fn no_input_panics(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_maps(&text);
        }

        #[test]
        fn no_mutation_of_a_real_file_panics(at in 0..SAMPLE.len(), byte in any::<u8>()) {
            let mut text = SAMPLE.to_vec();
            text[at] = byte;
            let _ = parse_maps(&text);
        }
    }
}
