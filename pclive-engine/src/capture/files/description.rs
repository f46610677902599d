//! Which descriptors share an open file description.
//!
//! Descriptors of one description agree in link, inode, mount, offset, flags and eventfd id; only within such a
//! group is the kernel asked (kcmp(2)). Its answers order descriptions, so that a group is searched by halves. A
//! socket has one description ever: its inode decides.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::os::fd::RawFd;

use super::holder::{Entry, Holder};
use super::{FilesError, Mode};
use crate::model::Pid;
use crate::proc::fdinfo::Detail;
use crate::sys::kcmp;

/// An open file description: who holds it, as (index of the holder, index of its entry). Never empty.
#[derive(Debug)]
pub(super) struct Description {
    pub(super) held: Vec<(usize, usize)>,
}

impl Description {
    /// The first descriptor that refers to it.
    pub(super) fn first<'a>(&self, holders: &'a [Holder]) -> (&'a Holder, &'a Entry) {
        let (holder, entry) = self.held[0];
        (&holders[holder], &holders[holder].entries[entry])
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key<'a> {
    target: &'a [u8],
    inode: u64,
    mount: i32,
    pos: i64,
    status: i32,
    event: u64,
}

impl<'a> Key<'a> {
    fn of(entry: &'a Entry) -> Self {
        let (pos, status) =
            if is_socket(&entry.target) { (0, 0) } else { (entry.info.pos, entry.info.status()) };
        let event = match entry.info.detail {
            Detail::Event { id, .. } => id,
            Detail::Plain | Detail::Timer(_) | Detail::Signal(_) | Detail::Epoll(_) | Detail::Terminal(_) => {
                0
            }
        };
        Self { target: &entry.target, inode: entry.info.inode, mount: entry.info.mount, pos, status, event }
    }
}

/// True for the link of a socket.
pub(super) fn is_socket(target: &[u8]) -> bool {
    target.starts_with(b"socket:[")
}

/// Finds the descriptions and sets [`Entry::file`] to the index of each entry's own.
pub(super) fn group(holders: &mut [Holder], mode: Mode) -> Result<Vec<Description>, FilesError> {
    let (descriptions, indices) = find(holders, mode)?;
    let entries = holders.iter_mut().flat_map(|holder| &mut holder.entries);
    for (entry, index) in entries.zip(indices) {
        entry.file = index;
    }
    Ok(descriptions)
}

fn find(holders: &[Holder], mode: Mode) -> Result<(Vec<Description>, Vec<usize>), FilesError> {
    let mut groups: HashMap<Key<'_>, Vec<usize>> = HashMap::new();
    let mut descriptions: Vec<Description> = Vec::new();
    let mut indices = Vec::new();
    for (h, holder) in holders.iter().enumerate() {
        for (e, entry) in holder.entries.iter().enumerate() {
            let group = groups.entry(Key::of(entry)).or_default();
            let place = search(group, (holder.pid, entry), |index| {
                let (holder, entry) = descriptions[index].first(holders);
                (holder.pid, entry.fd)
            });
            // A descriptor that a running container closes meanwhile belongs to nobody else.
            let place = mode.forgive(place)?.unwrap_or(Err(group.len()));
            match place {
                Ok(at) => {
                    let index = group[at];
                    descriptions[index].held.push((h, e));
                    indices.push(index);
                }
                Err(at) => {
                    group.insert(at, descriptions.len());
                    indices.push(descriptions.len());
                    descriptions.push(Description { held: vec![(h, e)] });
                }
            }
        }
    }
    Ok((descriptions, indices))
}

/// Where `entry` is in the ordered group, or where it belongs.
fn search(
    group: &[usize],
    (pid, entry): (Pid, &Entry),
    descriptor: impl Fn(usize) -> (Pid, RawFd),
) -> Result<Result<usize, usize>, FilesError> {
    if is_socket(&entry.target) {
        return Ok(if group.is_empty() { Err(0) } else { Ok(0) });
    }
    let (mut low, mut high) = (0, group.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let order = kcmp::file(descriptor(group[middle]), (pid, entry.fd));
        let order = order.map_err(|source| FilesError::Descriptor {
            verb: "compare (kcmp)",
            pid,
            fd: entry.fd,
            source,
        })?;
        match order {
            Ordering::Equal => return Ok(Ok(middle)),
            Ordering::Less => low = middle + 1,
            Ordering::Greater => high = middle,
        }
    }
    Ok(Err(low))
}
