//! What the next round of a running container would send, counted and not sent.
//!
//! Nothing is stopped, protected or changed. Kernel: `PAGEMAP_SCAN` (Linux 6.7), `/proc/PID/maps`. A process that ends
//! while it is looked at counts nothing.

use super::mapping_kind;
use super::source::{Source, resident_bytes};
use super::{CaptureError, tree};
use crate::memory::SharedWrites;
use crate::model::{PAGE_SIZE, Pid};
use crate::proc::maps::{MapsEntry, parse_maps};
use crate::tail::Later;

impl Source {
    /// Pages that have been written since the last round began, or are new: what the final dump would send if the
    /// container were stopped now. A process that no round has seen yet counts with everything that it has.
    pub fn pending_pages(&mut self) -> Result<u64, CaptureError> {
        let (mut pages, mut shared) = (0u64, SharedWrites::new());
        for process in tree::read(self.init)?.iter().filter(|process| process.zombie.is_none()) {
            let Some(tracked) = self.tracked.get(&process.pid) else {
                pages = pages.saturating_add(resident_bytes(process.pid) / PAGE_SIZE);
                continue;
            };
            let own = tracked.slot.range();
            match tracked.space.pending(&anonymous(process.pid, own), &mut self.objects, &mut shared) {
                Ok(found) => pages = pages.saturating_add(found),
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(pages + shared.values().map(|written| written.pages()).sum::<u64>())
    }

    /// Pages that the destination has and that are of no use to it any more, as far as this has not told them since the
    /// last round: dropping them takes time, which a stop that leaves them for later ([`LastPages::Later`](super::LastPages::Later)) need not
    /// wait for. The container runs.
    pub fn outdated_pages(&mut self) -> Result<Vec<Later>, CaptureError> {
        let mut all = Vec::new();
        for tracked in self.tracked.values_mut() {
            match tracked.space.outdated() {
                Ok(outdated) => all.push(outdated),
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error.into()),
            }
        }
        all.retain(|outdated| !outdated.runs.is_empty());
        Ok(all)
    }
}

/// The private anonymous mappings of a process, those that touch as one; none of a process that has ended.
fn anonymous(pid: Pid, own: (u64, u64)) -> Vec<(u64, u64)> {
    let maps = crate::proc::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    let mut spans: Vec<(u64, u64)> = Vec::new();
    for entry in parse_maps(&maps).unwrap_or_default().iter().filter(|entry| is_memory(entry)) {
        if entry.start >= own.0 && entry.end <= own.1 {
            continue;
        }
        match spans.last_mut() {
            Some(last) if last.1 == entry.start => last.1 = entry.end,
            _ => spans.push((entry.start, entry.end)),
        }
    }
    spans
}

/// Anonymous, private, and not one of the kernel's own mappings.
fn is_memory(entry: &MapsEntry) -> bool {
    let ordinary = entry.inode == 0 && !entry.name.starts_with(b"[v");
    !entry.shared && (ordinary || mapping_kind::is_huge(entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_of_the_kernel_and_of_files_are_left_out() {
        let maps = b"1000-2000 rw-p 0 00:00 0 [heap]\n2000-3000 r-xp 0 00:00 0 [vdso]\n\
                     3000-4000 r--p 0 00:00 0 [vvar]\n4000-5000 rw-p 0 08:01 7 /lib/x\n5000-6000 rw-s 0 00:00 0\n";
        let entries = parse_maps(maps).unwrap();
        let kept: Vec<u64> =
            entries.iter().filter(|entry| is_memory(entry)).map(|entry| entry.start).collect();
        assert_eq!(kept, [0x1000]);
    }
}
