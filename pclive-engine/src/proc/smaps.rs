//! `/proc/PID/smaps`: the mappings with their `VmFlags` lines. The counters are skipped.
//!
//! Kernel: proc_pid_smaps(5); producing the file walks every page table of the process, so it costs milliseconds a
//! GiB. The list of flags is `show_smap_vma_flags` in the kernel's `fs/proc/task_mmu.c`.

use super::maps::{MapsEntry, ParseError, parse_line};
use crate::model::VmaFlags;

/// A mapping and its `VmFlags`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmapsEntry {
    /// The line that `/proc/PID/maps` has too.
    pub map: MapsEntry,
    /// Properties that a copy of the mapping must have.
    pub flags: VmaFlags,
    /// What else the kernel says about it.
    pub kind: VmaKind,
}

/// Properties that decide whether and how a mapping can be copied at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VmaKind {
    /// `mw`: may be made writable.
    pub may_write: bool,
    /// `io` or `pf`: memory of a device or page frames without page structures.
    pub device: bool,
    /// `um`, `uw` or `ui`: registered with a userfaultfd (also with the engine's own, once it tracks).
    pub userfault: bool,
    /// `ss`: shadow stack.
    pub shadow_stack: bool,
    /// `sl`: sealed against changes (mseal(2)).
    pub sealed: bool,
    /// `dp`: pages may be dropped by the kernel at any time (MAP_DROPPABLE).
    pub droppable: bool,
}

/// Parses a whole `/proc/PID/smaps`; the entries come ascending.
pub fn parse_smaps(text: &[u8]) -> Result<Vec<SmapsEntry>, ParseError> {
    let mut entries: Vec<SmapsEntry> = Vec::new();
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        if let Some(words) = line.strip_prefix(b"VmFlags:") {
            let entry = entries.last_mut().ok_or(ParseError { line: index + 1, field: "first line" })?;
            (entry.flags, entry.kind) = flags(words);
        } else if is_mapping(line) {
            let map = parse_line(line).map_err(|field| ParseError { line: index + 1, field })?;
            entries.push(SmapsEntry { map, flags: VmaFlags::default(), kind: VmaKind::default() });
        }
    }
    Ok(entries)
}

/// A counter is `Name: value`, names start with a capital; a mapping starts with a hexadecimal digit in lower case.
fn is_mapping(line: &[u8]) -> bool {
    matches!(line.first(), Some(b'0'..=b'9' | b'a'..=b'f'))
}

/// The two-letter words of a `VmFlags` line; words that a copy need not know are skipped.
fn flags(words: &[u8]) -> (VmaFlags, VmaKind) {
    let (mut flags, mut kind) = (VmaFlags::default(), VmaKind::default());
    for word in words.split(|byte| *byte == b' ') {
        match word {
            b"gd" => flags.grows_down = true,
            b"nr" => flags.no_reserve = true,
            b"lo" => flags.locked = true,
            b"lf" => flags.lock_on_fault = true,
            b"hg" => flags.huge_page = true,
            b"nh" => flags.no_huge_page = true,
            b"dc" => flags.dont_fork = true,
            b"dd" => flags.dont_dump = true,
            b"wf" => flags.wipe_on_fork = true,
            b"sr" => flags.sequential = true,
            b"rr" => flags.random = true,
            b"mg" => flags.mergeable = true,
            b"mw" => kind.may_write = true,
            b"io" | b"pf" => kind.device = true,
            b"um" | b"uw" | b"ui" => kind.userfault = true,
            b"ss" => kind.shadow_stack = true,
            b"sl" => kind.sealed = true,
            b"dp" => kind.droppable = true,
            _ => {}
        }
    }
    (flags, kind)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SAMPLE: &[u8] = b"\
7f0e8c000000-7f0e8c021000 rw-p 00000000 00:00 0 
Size:                132 kB
Rss:                   4 kB
THPeligible:           0
VmFlags: rd wr mr mw me ac nr lo lf hg sd 
7ffd4b1f8000-7ffd4b219000 rw-p 00000000 00:00 0                          [stack]
Size:                132 kB
VmFlags: rd wr mr mw me gd ac wf dc uw 
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
VmFlags: ex 
";

    #[test]
    fn flags_belong_to_the_mapping_above_them() {
        let entries = parse_smaps(SAMPLE).unwrap();
        assert_eq!(entries.len(), 3);
        let heap = VmaFlags {
            no_reserve: true,
            locked: true,
            lock_on_fault: true,
            huge_page: true,
            ..VmaFlags::default()
        };
        assert_eq!(entries[0].flags, heap);
        assert!(entries[0].kind.may_write && !entries[0].kind.userfault);
        let stack = VmaFlags { grows_down: true, wipe_on_fork: true, dont_fork: true, ..VmaFlags::default() };
        assert_eq!(entries[1].flags, stack);
        assert!(entries[1].kind.userfault);
        assert_eq!(entries[2].kind, VmaKind::default());
    }

    #[test]
    fn flags_without_a_mapping_are_refused() {
        let expected = ParseError { line: 1, field: "first line" };
        assert_eq!(parse_smaps(b"VmFlags: rd\n"), Err(expected));
    }

    #[test]
    fn this_process_has_a_stack_that_grows_down() {
        let entries = parse_smaps(&std::fs::read("/proc/self/smaps").unwrap()).unwrap();
        let stack = entries.iter().find(|entry| entry.map.name == b"[stack]").unwrap();
        assert!(stack.flags.grows_down && stack.kind.may_write);
    }

    proptest! {
        #[test]
        fn no_mutation_of_a_real_file_panics(at in 0..SAMPLE.len(), byte in any::<u8>()) {
            let mut text = SAMPLE.to_vec();
            text[at] = byte;
            let _ = parse_smaps(&text);
        }
    }
}
