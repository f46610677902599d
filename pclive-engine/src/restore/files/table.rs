//! A process's descriptor table, filled from outside.
//!
//! The table is emptied first (what the runtime left behind goes away), then the files are sent over a socket
//! pair, the highest numbers first, at most [`PER_MESSAGE`] at a time. recvmsg(2) hands out the lowest free
//! numbers, ascending; of descriptors in ascending order the n-th therefore arrives at or below its own number, and
//! moving them in descending order never meets one that still has to move:
//!
//! ```text
//!     wanted      0   2   5   6          socket at 7 (above the highest)
//!     received    0   1   2   3          moves: 3 -> 6, 2 -> 5, 1 -> 2; then 1 and 3 are closed
//! ```
//!
//! Kernel: close_range(2), Linux 5.9. Nothing needs a privilege of the process.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::error::FilesError;
use crate::model::{Descriptor, FileId, Pid, Vpid};
use crate::remote::{Answers, Batch, Piece, RemoteTask, Ticket};
use crate::sys::{pidfd, scm};

/// Descriptors in one message; below the kernel's limit, and few enough for one batch of calls.
const PER_MESSAGE: usize = 200;
const _: () = assert!(PER_MESSAGE < scm::MAX_FDS);
/// `struct cmsghdr`.
const HEADER_BYTES: usize = 16;
const MESSAGE_BYTES: usize = 56;
const LIMIT: u64 = libc::RLIMIT_NOFILE as u64;

/// A table that is being filled.
struct Table<'a> {
    task: &'a mut dyn RemoteTask,
    vpid: Vpid,
    /// Our end of the socket pair.
    ours: OwnedFd,
    /// Their end, its final number.
    theirs: i32,
    /// Their end as the kernel numbered it.
    born_as: i32,
    limit: Limit,
}

/// `RLIMIT_NOFILE`.
#[derive(Clone, Copy)]
struct Limit {
    soft: u64,
    hard: u64,
    /// What the soft limit must be for as long as the table is filled.
    needed: u64,
}

/// Replaces all descriptors of `task` by `wanted`.
pub(super) fn fill(
    task: &mut dyn RemoteTask,
    (pid, vpid): (Pid, Vpid),
    wanted: &[Descriptor],
    opened: &HashMap<FileId, BorrowedFd<'_>>,
) -> Result<(), FilesError> {
    let mut wanted = wanted.to_vec();
    wanted.sort_unstable_by_key(|descriptor| descriptor.fd);
    let mut table = Table::empty(task, (pid, vpid), &wanted)?;
    let chunks: Vec<&[Descriptor]> = wanted.chunks(PER_MESSAGE).rev().collect();
    for (index, chunk) in chunks.iter().enumerate() {
        table.send(chunk, opened)?;
        table.receive(chunk, index == 0, index + 1 == chunks.len())?;
    }
    if chunks.is_empty() {
        table.receive(&[], true, true)?;
    }
    Ok(())
}

impl<'a> Table<'a> {
    /// Empties the table and makes the socket pair.
    fn empty(
        task: &'a mut dyn RemoteTask,
        (pid, vpid): (Pid, Vpid),
        wanted: &[Descriptor],
    ) -> Result<Self, FilesError> {
        let failed = |verb| move |source| FilesError::Hand { verb, vpid, source };
        let mut batch = Batch::new(task);
        let limit = batch.reserve(16)?;
        let pair = batch.reserve(8)?;
        let kind = (libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC) as u64;
        let calls = [
            (batch.call(libc::SYS_prlimit64, &[0, LIMIT, 0, limit.address()]), "read the limits of"),
            (batch.call(libc::SYS_close_range, &[0, u64::from(u32::MAX), 0]), "close the descriptors of"),
            (
                batch.call(libc::SYS_socketpair, &[libc::AF_UNIX as u64, kind, 0, pair.address()]),
                "make a socket pair in",
            ),
        ];
        let answers = batch.run(task)?;
        for (ticket, verb) in calls {
            answers.result(ticket).map_err(failed(verb))?;
        }
        let mut ends = answers.u32s(pair).map(|end| end as i32);
        let (first, born_as) = (ends.next().unwrap_or(-1), ends.next().unwrap_or(-1));
        if (first, born_as) != (0, 1) {
            return Err(FilesError::Numbers { vpid, received: 2 });
        }
        let mut values = answers.u64s(limit);
        let (soft, hard) = (values.next().unwrap_or(0), values.next().unwrap_or(0));
        let (theirs, needed) = socket_number(wanted, vpid, hard)?;
        let process = pidfd::open(pid).map_err(failed("open a pidfd of"))?;
        let ours = pidfd::getfd(process, first).map_err(failed("fetch a socket of"))?;
        Ok(Self { task, vpid, ours, theirs, born_as, limit: Limit { soft, hard, needed } })
    }

    fn send(&self, chunk: &[Descriptor], opened: &HashMap<FileId, BorrowedFd<'_>>) -> Result<(), FilesError> {
        let mut files = Vec::with_capacity(chunk.len());
        for descriptor in chunk {
            files.push(*opened.get(&descriptor.file).ok_or_else(|| FilesError::Invalid {
                what: format!("descriptor {} of process {}, which was not opened", descriptor.fd, self.vpid),
            })?);
        }
        scm::send(self.ours.as_fd(), &files).map_err(|source| FilesError::Hand {
            verb: "send descriptors to",
            vpid: self.vpid,
            source,
        })
    }

    /// Receives a message (if the chunk is not empty) and moves what it brings to its place, in one batch.
    fn receive(&mut self, chunk: &[Descriptor], first: bool, last: bool) -> Result<(), FilesError> {
        let mut steps = Steps { batch: Batch::new(self.task), checks: Vec::new() };
        if first {
            self.place_socket(&mut steps)?;
        }
        let temporary: Vec<i32> = (0..).filter(|n| *n != self.theirs).take(chunk.len()).collect();
        let control = if chunk.is_empty() { None } else { Some(self.message(&mut steps, chunk.len())?) };
        steps.place(chunk, &temporary);
        if last {
            steps.add("close the socket at", self.theirs, libc::SYS_close, &[self.theirs as u64]);
            if self.limit.soft < self.limit.needed {
                self.set_limit(&mut steps, self.limit.soft)?;
            }
        }
        let Steps { batch, checks } = steps;
        let answers = batch.run(self.task)?;
        for (ticket, verb, fd) in checks {
            let failed = |source| FilesError::Descriptor { verb, vpid: self.vpid, fd, source };
            answers.result(ticket).map_err(failed)?;
        }
        match control {
            Some(control) if received(&answers, control) != temporary => {
                Err(FilesError::Numbers { vpid: self.vpid, received: chunk.len() })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Moves the socket out of the way; the table holds nothing else than the pair (0 and 1).
    fn place_socket(&self, steps: &mut Steps) -> Result<(), FilesError> {
        if self.limit.soft < self.limit.needed {
            self.set_limit(steps, self.limit.needed)?;
        }
        let cloexec = libc::O_CLOEXEC as u64;
        if self.theirs != self.born_as {
            let move_it = [self.born_as as u64, self.theirs as u64, cloexec];
            steps.add("move the socket to", self.theirs, libc::SYS_dup3, &move_it);
        }
        for number in [0, 1].into_iter().filter(|number| *number != self.theirs) {
            steps.add("close", number, libc::SYS_close, &[number as u64]);
        }
        Ok(())
    }

    fn set_limit(&self, steps: &mut Steps, soft: u64) -> Result<(), FilesError> {
        let bytes = [soft.to_ne_bytes(), self.limit.hard.to_ne_bytes()].concat();
        let new = steps.batch.place(&bytes)?.address();
        steps.add("set the limit for", self.theirs, libc::SYS_prlimit64, &[0, LIMIT, new, 0]);
        Ok(())
    }

    /// A recvmsg(2) for `count` descriptors; returns where their numbers will be.
    fn message(&self, steps: &mut Steps, count: usize) -> Result<Piece, FilesError> {
        let control = steps.batch.reserve(HEADER_BYTES + count * 4)?;
        let data = steps.batch.reserve(1)?;
        let vector =
            steps.batch.place(&[data.address().to_ne_bytes(), 1_u64.to_ne_bytes()].concat())?.address();
        let space = (HEADER_BYTES + count * 4).next_multiple_of(8) as u64;
        let words = [0, 0, vector, 1, control.address(), space, 0];
        let header: Vec<u8> = words.iter().flat_map(|word: &u64| word.to_ne_bytes()).collect();
        debug_assert_eq!(header.len(), MESSAGE_BYTES);
        let header = steps.batch.place(&header)?.address();
        let flags = (libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) as u64;
        let arguments = [self.theirs as u64, header, flags];
        steps.add("receive from", self.theirs, libc::SYS_recvmsg, &arguments);
        Ok(control)
    }
}

/// Calls that must all succeed.
struct Steps {
    batch: Batch,
    checks: Vec<(Ticket, &'static str, i32)>,
}

impl Steps {
    fn add(&mut self, verb: &'static str, fd: i32, number: i64, arguments: &[u64]) {
        let ticket = self.batch.call(number, arguments);
        self.checks.push((ticket, verb, fd));
    }

    /// Moves received descriptors to their numbers, the highest first, and closes what they leave behind.
    fn place(&mut self, chunk: &[Descriptor], temporary: &[i32]) {
        for (descriptor, temporary) in chunk.iter().zip(temporary).rev() {
            let fd = descriptor.fd;
            if fd != *temporary {
                let flag = if descriptor.close_on_exec { libc::O_CLOEXEC } else { 0 };
                self.add("install", fd, libc::SYS_dup3, &[*temporary as u64, fd as u64, flag as u64]);
            } else if !descriptor.close_on_exec {
                self.add("set the flags of", fd, libc::SYS_fcntl, &[fd as u64, libc::F_SETFD as u64, 0]);
            }
        }
        for (from, to) in gaps(chunk, temporary) {
            self.add("close", from, libc::SYS_close_range, &[from as u64, to as u64, 0]);
        }
    }
}

/// Ranges (both ends included) of temporary numbers that are nobody's final number.
fn gaps(chunk: &[Descriptor], temporary: &[i32]) -> Vec<(i32, i32)> {
    let mut gaps: Vec<(i32, i32)> = Vec::new();
    let is_final = |fd: i32| chunk.binary_search_by_key(&fd, |descriptor| descriptor.fd).is_ok();
    for fd in temporary.iter().copied().filter(|fd| !is_final(*fd)) {
        match gaps.last_mut() {
            Some((_, to)) if *to + 1 == fd => *to = fd,
            Some(_) | None => gaps.push((fd, fd)),
        }
    }
    gaps
}

/// The number for the socket, and the limit that it takes: above all, or, where the limit is met, the lowest
/// unused one.
fn socket_number(wanted: &[Descriptor], vpid: Vpid, hard: u64) -> Result<(i32, u64), FilesError> {
    let Some(highest) = wanted.last().map(|descriptor| descriptor.fd) else { return Ok((1, 2)) };
    let above = highest as u64 + 1;
    if above < hard {
        return Ok((highest + 1, above + 1));
    }
    let unused = (0..).zip(wanted).find(|(number, descriptor)| *number != descriptor.fd);
    match unused {
        Some((number, _)) if above <= hard => Ok((number, above)),
        Some(_) | None => Err(FilesError::Limit { vpid, fd: highest, limit: hard }),
    }
}

/// The numbers in a control message; none if it was cut short.
fn received(answers: &Answers, control: Piece) -> Vec<i32> {
    let bytes = answers.bytes(control);
    let length = bytes.first_chunk().map(|length| u64::from_ne_bytes(*length));
    if length != Some(bytes.len() as u64) {
        return Vec::new();
    }
    answers.u32s(control).skip(HEADER_BYTES / 4).map(|number| number as i32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptors(numbers: &[i32]) -> Vec<Descriptor> {
        numbers.iter().map(|fd| Descriptor { fd: *fd, file: FileId(0), close_on_exec: false }).collect()
    }

    #[test]
    fn socket_stays_out_of_the_way() {
        let number = |numbers: &[i32], hard| socket_number(&descriptors(numbers), Vpid(1), hard).ok();
        assert_eq!(number(&[], 100), Some((1, 2)));
        assert_eq!(number(&[0, 1, 2, 9], 100), Some((10, 11)));
        assert_eq!(number(&[0, 1, 3, 9], 10), Some((2, 10)));
        assert_eq!(number(&[0, 1, 2], 3), None);
        assert_eq!(number(&[0, 200], 100), None);
    }

    #[test]
    fn only_temporary_numbers_are_closed() {
        assert_eq!(gaps(&descriptors(&[0, 2, 5, 6]), &[0, 1, 2, 3]), [(1, 1), (3, 3)]);
        assert_eq!(gaps(&descriptors(&[700, 701]), &[0, 1]), [(0, 1)]);
        assert_eq!(gaps(&descriptors(&[0, 1]), &[0, 1]), []);
    }
}
