//! What tells that the contents of a shared object may have changed unseen by every tracker of page tables.
//!
//! * The time of change (`ctime`): write(2), truncation, a hole, and the first store into a page of a mapping.
//! * The time of access (`atime`), of a tmpfs and what is built on it (memfds, shared anonymous memory, System V
//!   segments): mmap(2) sets it. A process that maps such an object, reads a page and then stores into it changes no
//!   other time, because the page is writable at once; and when it has unmapped the object before the next round,
//!   nothing else is left of it. (On other file systems every first store sets the time of change.)
//!
//! On a `relatime` mount the kernel sets the time of access only while it is not later than the time of change. A file
//! that was accessed since it was changed therefore gets a new time of change here (futimens(2)): the one thing that a
//! migration does to the container's files. Kernel: `touch_atime` and `relatime_need_update` in fs/inode.c,
//! `shmem_mmap` in mm/shmem.c, `fault_dirty_shared_page` in mm/memory.c.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use nix::sys::stat::futimens;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::sys::statvfs::FsFlags;
use nix::sys::time::TimeSpec;

use crate::sys::fcntl;

/// Seconds and nanoseconds since 1970.
type Time = (i64, i64);

/// What is known of one object's times.
#[derive(Debug)]
pub(super) struct Witness {
    /// Size and time of change when the contents were last taken to be known.
    changed: Option<(u64, Time)>,
    /// Time of access when the mappings were last listed; `None`: a mapping made since then may have left it as it is.
    accessed: Option<Time>,
    keeper: Keeper,
}

/// When the kernel sets the time of access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeper {
    /// At every access: the kernel's own mount of memfds, shared memory and System V segments.
    Strict,
    /// At the first access after a change.
    Relative,
    /// At no access, or it is not known when.
    Nobody,
    /// It does not matter: every first store into a page sets the time of change.
    Needless,
}

impl Witness {
    /// Begins to watch a file that was opened for this alone. `begun`: when the listing of mappings began; the file
    /// was found in the course of it.
    pub(super) fn new(file: &File, begun: SystemTime) -> Self {
        // Reading it here is to leave no trace.
        let quiet = fcntl::set_status(file, libc::O_NOATIME).is_ok();
        let keeper = if quiet { Keeper::of(file) } else { Keeper::Nobody };
        let about = file.metadata().ok().filter(|about| keeper.tells(about));
        let accessed = about.as_ref().map(access).filter(|time| is_past(*time, begun));
        Self { changed: None, accessed, keeper }
    }

    /// To be asked before the contents are read: true if they may have been changed by other than a watched mapping
    /// since this was last asked.
    pub(super) fn sees_change(&mut self, file: &File) -> bool {
        // Not the time of modification, which programs can put back.
        let now = file.metadata().ok().map(|about| (about.len(), change(&about)));
        let seen = now.is_none() || now != self.changed;
        // A change in the same tick of the clock as the last one would leave the same time behind.
        self.changed = now.filter(|(_, time)| is_past(*time, SystemTime::now()));
        seen
    }

    /// To be asked before mappings are listed: true if the object may have been mapped since this was last asked, by
    /// somebody who has unmapped it already.
    pub(super) fn sees_access(&mut self, file: &File) -> bool {
        if self.keeper == Keeper::Needless {
            return false;
        }
        let about = file.metadata().ok();
        let now = about.as_ref().map(access);
        let seen = now.is_none() || now != self.accessed;
        let told = about.is_some_and(|about| self.keeper.tells(&about) || self.keeper.prepare(file, &about));
        self.accessed = now.filter(|time| told && is_past(*time, SystemTime::now()));
        seen
    }
}

impl Keeper {
    fn of(file: &File) -> Self {
        let Ok(about) = fstatfs(file) else { return Self::Nobody };
        if about.filesystem_type() != TMPFS_MAGIC {
            return Self::Needless;
        }
        let flags = about.flags();
        if flags.intersects(FsFlags::ST_NOATIME | FsFlags::ST_RDONLY) {
            Self::Nobody
        } else if flags.contains(FsFlags::ST_RELATIME) {
            Self::Relative
        } else {
            Self::Strict
        }
    }

    /// Whether the next access sets the time of access of a file that has these times.
    fn tells(self, about: &Metadata) -> bool {
        match self {
            Self::Strict => true,
            Self::Relative => access(about) <= change(about),
            Self::Nobody | Self::Needless => false,
        }
    }

    /// Sees to it that the next access sets it. False if that cannot be done.
    fn prepare(self, file: &File, about: &Metadata) -> bool {
        let (seconds, nanoseconds) = access(about);
        self == Self::Relative
            && futimens(file, &TimeSpec::new(seconds, nanoseconds), &TimeSpec::UTIME_OMIT).is_ok()
    }
}

fn access(about: &Metadata) -> Time {
    (about.atime(), about.atime_nsec())
}

fn change(about: &Metadata) -> Time {
    (about.ctime(), about.ctime_nsec())
}

/// True if a time of the file system is so long before `moment` that its clock had moved on by then.
fn is_past((seconds, nanoseconds): Time, moment: SystemTime) -> bool {
    const TICK: Duration = Duration::from_millis(50);
    let since = Duration::new(seconds.try_into().unwrap_or(0), nanoseconds.try_into().unwrap_or(0));
    let age = moment.duration_since(SystemTime::UNIX_EPOCH + since);
    age.is_ok_and(|age| age > TICK)
}
