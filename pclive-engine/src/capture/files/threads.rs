//! Descriptor tables: one a process, which its threads share and nobody else.

use std::cmp::Ordering;

use super::holder::Holder;
use super::owner::inner_id;
use super::refusal::Refusal;
use super::{FilesError, Mode};
use crate::model::{Pid, Place};
use crate::sys::kcmp;

/// Tables that are shared or split otherwise: index of the holder, place, reason.
pub(super) fn check(holders: &[Holder], mode: Mode) -> Result<Vec<(usize, Place, Refusal)>, FilesError> {
    let mut found = shared(holders, mode)?;
    for (h, holder) in holders.iter().enumerate() {
        for thread in mode.forgive(threads(holder.pid))?.unwrap_or_default() {
            let order = mode.forgive(compare(holder.pid, thread))?;
            if order.is_some_and(|order| order != Ordering::Equal) {
                let place = inner_id(thread, "NSpid:").map_or(Place::Process, Place::Thread);
                let what = "thread with descriptors of its own (unshare(CLONE_FILES))";
                found.push((
                    h,
                    place,
                    Refusal::new(what, "not supported; stop the program before the migration"),
                ));
            }
        }
    }
    Ok(found)
}

/// Processes that share a table: sorted by the kernel's order, equal ones meet.
fn shared(holders: &[Holder], mode: Mode) -> Result<Vec<(usize, Place, Refusal)>, FilesError> {
    let mut sorted: Vec<usize> = Vec::with_capacity(holders.len());
    let mut found = Vec::new();
    for (h, holder) in holders.iter().enumerate() {
        let (mut low, mut high) = (0, sorted.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let other = &holders[sorted[middle]];
            match mode.forgive(compare(other.pid, holder.pid))? {
                Some(Ordering::Equal) => {
                    let what = format!("descriptor table shared with process {} (CLONE_FILES)", other.pid);
                    let hint = "not supported; stop the program before the migration";
                    found.push((h, Place::Process, Refusal::new(what, hint)));
                    break;
                }
                Some(Ordering::Less) => low = middle + 1,
                Some(Ordering::Greater) => high = middle,
                None => break,
            }
        }
        if low == high {
            sorted.insert(low, h);
        }
    }
    Ok(found)
}

fn compare(a: Pid, b: Pid) -> Result<Ordering, FilesError> {
    kcmp::files(a, b).map_err(|source| FilesError::Process {
        verb: "compare the descriptor table (kcmp) of",
        pid: b,
        source,
    })
}

/// Threads of a process but its leader.
fn threads(pid: Pid) -> Result<Vec<Pid>, FilesError> {
    let path = format!("/proc/{pid}/task");
    let failed = |source| FilesError::Read { path: path.clone(), source };
    let mut threads = Vec::new();
    for entry in std::fs::read_dir(&path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        threads.extend(name.to_str().and_then(|name| name.parse().ok()).map(Pid));
    }
    threads.retain(|thread| *thread != pid);
    Ok(threads)
}
