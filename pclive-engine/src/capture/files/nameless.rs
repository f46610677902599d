//! Files in memory that no path leads to: memfds, and deleted files of a tmpfs of the container.
//!
//! Their data travels as an object ([`Objects`](crate::memory::Objects)), by whose id the destination opens them. The
//! rounds find the objects; one that is younger than the last round is told to be in passing, so that the next stop
//! knows it.

use nix::sys::stat::{SFlag, major, minor};

use super::Mode;
use super::description::Description;
use super::path::file_type;
use super::refusal::{Refusal, lock, printable};
use super::scene::{Finding, Sample, Scene};
use crate::capture::vmas::{Obstacle, unfit_pages};
use crate::memory::huge;
use crate::memory::object::ObjectKey;
use crate::model::FileKind;

/// The link of a memfd begins so.
const MEMFD: &[u8] = b"/memfd:";

/// True for such a file.
pub(super) fn is_memory(scene: &Scene<'_>, sample: &Sample<'_>) -> bool {
    let regular = file_type(&sample.stat) == SFlag::S_IFREG && sample.stat.st_nlink == 0;
    regular && (sample.target.starts_with(MEMFD) || scene.objects.memory.contains_key(&device(sample)))
}

/// Captures it.
pub(super) fn capture(scene: &Scene<'_>, description: &Description, sample: &Sample<'_>) -> Finding {
    let name = printable(sample.target);
    let (size, blocks) = (sample.stat.st_size.cast_unsigned(), sample.stat.st_blocks.cast_unsigned());
    if let Some(unfit) = huge::page_size(sample).and_then(|page| huge::unfit(page, size, blocks)) {
        let Obstacle { what, hint } = unfit_pages(unfit);
        return Finding::Refused(Refusal::new(format!("{what} ({name})"), hint));
    }
    if sample.info.flags & libc::O_PATH != 0 {
        let hint = "let the application close it";
        return Finding::Refused(Refusal::new(format!("deleted file {name}, opened with O_PATH"), hint));
    }
    if let Some(line) = description.held.iter().find_map(|at| scene.entry(*at).info.lock.as_deref()) {
        return Finding::Refused(lock(line));
    }
    let offset = sample.info.pos;
    match scene.objects.find(ObjectKey::File(device(sample), sample.stat.st_ino)) {
        Some(object) => Finding::Carried(FileKind::Memory { object, offset }),
        None if scene.mode == Mode::Check => Finding::Carried(FileKind::Memory { object: 0, offset }),
        None => Finding::NotNow(Refusal::new(
            format!("{name}, which is younger than the last round"),
            "try again: the next round carries it",
        )),
    }
}

fn device(sample: &Sample<'_>) -> (u32, u32) {
    let number = |part: u64| u32::try_from(part).unwrap_or(u32::MAX);
    (number(major(sample.stat.st_dev)), number(minor(sample.stat.st_dev)))
}
