//! A process's descriptor table, filled from outside.
//!
//! What is in its place already stays; the rest is closed first (also what the runtime left behind), then the missing
//! files are sent over a socket pair, the highest numbers first, at most [`PER_MESSAGE`] at a time. recvmsg(2) hands out
//! the lowest free numbers, ascending; of descriptors in ascending order the n-th therefore arrives at or below its own
//! number, and moving them in descending order never meets one that still has to move:
//!
//! ```text
//!     wanted      0   2   5   6          socket at 7 (above the highest)
//!     received    0   1   2   3          moves: 3 -> 6, 2 -> 5, 1 -> 2; then 1 and 3 are closed
//! ```
//!
//! Kernel: close_range(2), Linux 5.9. Nothing needs a privilege of the process.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::ahead::{Claims, Installed};
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
    /// Both ends as the kernel numbered them; theirs is the second.
    born_as: (i32, i32),
    /// Numbers in use that stay.
    kept: BTreeSet<i32>,
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

/// Makes `wanted` the descriptors of `task`, and nothing else. `present` is what it is known to have, of which that stays
/// which `claims` says is right; `None` if nobody knows.
pub(super) fn fill(
    task: &mut dyn RemoteTask,
    (pid, vpid): (Pid, Vpid),
    wanted: &[Descriptor],
    opened: &HashMap<FileId, BorrowedFd<'_>>,
    (present, claims): (Option<&Installed>, &Claims),
) -> Result<(), FilesError> {
    let mut wanted = wanted.to_vec();
    wanted.sort_unstable_by_key(|descriptor| descriptor.fd);
    let Plan { close, flags, kept, missing } = Plan::of(&wanted, present, claims);
    let close = close.into_iter().map(|(from, to)| Step::close(from, to));
    let tidy: Vec<Step> = close.chain(flags.into_iter().map(|(fd, on)| Step::flag(fd, on))).collect();
    let (whole, rest) = tidy.split_at(tidy.len() / PER_MESSAGE * PER_MESSAGE);
    for part in whole.chunks(PER_MESSAGE) {
        Steps::new(task, part).run(task, vpid)?;
    }
    if missing.is_empty() {
        return Steps::new(task, rest).run(task, vpid).map(drop);
    }
    let mut table = Table::open(task, (pid, vpid), &wanted, kept, rest)?;
    let chunks: Vec<&[Descriptor]> = missing.chunks(PER_MESSAGE).rev().collect();
    for (index, chunk) in chunks.iter().enumerate() {
        table.send(chunk, opened)?;
        table.receive(chunk, index == 0, index + 1 == chunks.len())?;
    }
    Ok(())
}

/// What is to be done with a table.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Ranges of numbers (both ends included) to close.
    close: Vec<(u32, u32)>,
    /// Numbers that stay.
    kept: BTreeSet<i32>,
    /// Those of them whose close-on-exec flag becomes this.
    flags: Vec<(i32, bool)>,
    /// What has to be put in its place, ascending.
    missing: Vec<Descriptor>,
}

impl Plan {
    /// `wanted` is ascending.
    fn of(wanted: &[Descriptor], present: Option<&Installed>, claims: &Claims) -> Self {
        let Some(present) = present else {
            return Self { close: complement(&BTreeSet::new()), missing: wanted.to_vec(), ..Self::default() };
        };
        let mut plan = Self::default();
        for descriptor in wanted {
            let place = present.get(&descriptor.fd);
            match place.filter(|place| claims.get(&descriptor.file) == Some(&place.early)) {
                Some(place) => {
                    plan.kept.insert(descriptor.fd);
                    if place.close_on_exec != descriptor.close_on_exec {
                        plan.flags.push((descriptor.fd, descriptor.close_on_exec));
                    }
                }
                None => plan.missing.push(*descriptor),
            }
        }
        plan.close = complement(&plan.kept);
        plan
    }
}

/// The ranges of numbers (both ends included) that are not kept: whatever is there is closed, known or not.
fn complement(kept: &BTreeSet<i32>) -> Vec<(u32, u32)> {
    let mut ranges = Vec::new();
    let mut from = 0;
    for fd in kept.iter().map(|fd| *fd as u32) {
        if from < fd {
            ranges.push((from, fd - 1));
        }
        from = fd + 1;
    }
    ranges.push((from, u32::MAX));
    ranges
}

/// Ranges of consecutive numbers, both ends included.
fn runs(ascending: impl Iterator<Item = i32>) -> impl Iterator<Item = (i32, i32)> {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for fd in ascending {
        match runs.last_mut() {
            Some((_, to)) if *to + 1 == fd => *to = fd,
            Some(_) | None => runs.push((fd, fd)),
        }
    }
    runs.into_iter()
}

impl<'a> Table<'a> {
    /// Takes the first steps, and makes the socket pair.
    fn open(
        task: &'a mut dyn RemoteTask,
        (pid, vpid): (Pid, Vpid),
        wanted: &[Descriptor],
        kept: BTreeSet<i32>,
        first: &[Step],
    ) -> Result<Self, FilesError> {
        let failed = |verb| move |source| FilesError::Hand { verb, vpid, source };
        let mut steps = Steps::new(task, first);
        let limit = steps.batch.reserve(16)?;
        let pair = steps.batch.reserve(8)?;
        let kind = (libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC) as u64;
        let calls = [
            (steps.batch.call(libc::SYS_prlimit64, &[0, LIMIT, 0, limit.address()]), "read the limits of"),
            (
                steps.batch.call(libc::SYS_socketpair, &[libc::AF_UNIX as u64, kind, 0, pair.address()]),
                "make a socket pair in",
            ),
        ];
        let answers = steps.run(task, vpid)?;
        for (ticket, verb) in calls {
            answers.result(ticket).map_err(failed(verb))?;
        }
        let mut ends = answers.u32s(pair).map(|end| end as i32);
        let born_as = (ends.next().unwrap_or(-1), ends.next().unwrap_or(-1));
        let expected: Vec<i32> = free(&kept).take(2).collect();
        if [born_as.0, born_as.1] != expected[..] {
            return Err(FilesError::Numbers { vpid, received: vec![born_as.0, born_as.1], expected });
        }
        let mut values = answers.u64s(limit);
        let (soft, hard) = (values.next().unwrap_or(0), values.next().unwrap_or(0));
        let (theirs, needed) = socket_number(wanted, vpid, hard)?;
        let process = pidfd::open(pid).map_err(failed("open a pidfd of"))?;
        let ours = pidfd::getfd(process, born_as.0).map_err(failed("fetch a socket of"))?;
        Ok(Self { task, vpid, ours, theirs, born_as, kept, limit: Limit { soft, hard, needed } })
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

    /// Receives a message and moves what it brings to its place, in one batch.
    fn receive(&mut self, chunk: &[Descriptor], first: bool, last: bool) -> Result<(), FilesError> {
        let mut steps = Steps::new(self.task, &[]);
        if first {
            self.place_socket(&mut steps)?;
        }
        let temporary: Vec<i32> = free(&self.kept).filter(|n| *n != self.theirs).take(chunk.len()).collect();
        let control = self.message(&mut steps, chunk.len())?;
        steps.place(chunk, &temporary);
        if last {
            steps.add("close the socket at", self.theirs, libc::SYS_close, &[self.theirs as u64]);
            if self.limit.soft < self.limit.needed {
                self.set_limit(&mut steps, self.limit.soft)?;
            }
        }
        let answers = steps.run(self.task, self.vpid)?;
        match received(&answers, control) {
            received if received == temporary => Ok(()),
            received => Err(FilesError::Numbers { vpid: self.vpid, received, expected: temporary }),
        }
    }

    /// Moves the socket out of the way; the table holds nothing else than what is kept and the pair.
    fn place_socket(&self, steps: &mut Steps) -> Result<(), FilesError> {
        if self.limit.soft < self.limit.needed {
            self.set_limit(steps, self.limit.needed)?;
        }
        let (ours, theirs) = self.born_as;
        let cloexec = libc::O_CLOEXEC as u64;
        if self.theirs != theirs {
            let move_it = [theirs as u64, self.theirs as u64, cloexec];
            steps.add("move the socket to", self.theirs, libc::SYS_dup3, &move_it);
        }
        for number in [ours, theirs].into_iter().filter(|number| *number != self.theirs) {
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

/// A call about one descriptor.
#[derive(Debug, Clone, Copy)]
struct Step {
    verb: &'static str,
    fd: i32,
    number: i64,
    arguments: [u64; 3],
}

impl Step {
    fn close(from: u32, to: u32) -> Self {
        let arguments = [u64::from(from), u64::from(to), 0];
        Self { verb: "close", fd: from as i32, number: libc::SYS_close_range, arguments }
    }

    fn flag(fd: i32, close_on_exec: bool) -> Self {
        let flag = if close_on_exec { libc::FD_CLOEXEC } else { 0 };
        let arguments = [fd as u64, libc::F_SETFD as u64, flag as u64];
        Self { verb: "set the flags of", fd, number: libc::SYS_fcntl, arguments }
    }
}

/// Calls that must all succeed.
struct Steps {
    batch: Batch,
    checks: Vec<(Ticket, &'static str, i32)>,
}

impl Steps {
    fn new(task: &dyn RemoteTask, first: &[Step]) -> Self {
        let mut steps = Self { batch: Batch::new(task), checks: Vec::new() };
        for step in first {
            steps.add(step.verb, step.fd, step.number, &step.arguments);
        }
        steps
    }

    fn add(&mut self, verb: &'static str, fd: i32, number: i64, arguments: &[u64]) {
        let ticket = self.batch.call(number, arguments);
        self.checks.push((ticket, verb, fd));
    }

    fn run(self, task: &mut dyn RemoteTask, vpid: Vpid) -> Result<Answers, FilesError> {
        let answers = self.batch.run(task)?;
        for (ticket, verb, fd) in self.checks {
            let failed = |source| FilesError::Descriptor { verb, vpid, fd, source };
            answers.result(ticket).map_err(failed)?;
        }
        Ok(answers)
    }

    /// Moves received descriptors to their numbers, the highest first, and closes what they leave behind.
    fn place(&mut self, chunk: &[Descriptor], temporary: &[i32]) {
        for (descriptor, temporary) in chunk.iter().zip(temporary).rev() {
            let fd = descriptor.fd;
            if fd != *temporary {
                let flag = if descriptor.close_on_exec { libc::O_CLOEXEC } else { 0 };
                self.add("install", fd, libc::SYS_dup3, &[*temporary as u64, fd as u64, flag as u64]);
            } else if !descriptor.close_on_exec {
                let Step { verb, number, arguments, .. } = Step::flag(fd, false);
                self.add(verb, fd, number, &arguments);
            }
        }
        for (from, to) in gaps(chunk, temporary) {
            self.add("close", from, libc::SYS_close_range, &[from as u64, to as u64, 0]);
        }
    }
}

/// Ranges (both ends included) of temporary numbers that are nobody's final number.
fn gaps(chunk: &[Descriptor], temporary: &[i32]) -> impl Iterator<Item = (i32, i32)> {
    let is_final = |fd: &i32| chunk.binary_search_by_key(fd, |descriptor| descriptor.fd).is_ok();
    runs(temporary.iter().copied().filter(move |fd| !is_final(fd)))
}

/// The numbers that are not in use, ascending.
fn free(kept: &BTreeSet<i32>) -> impl Iterator<Item = i32> {
    (0..).filter(|number| !kept.contains(number))
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
    use crate::restore::files::ahead::Occupant;

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
        let gaps = |wanted: &[i32], temporary: &[i32]| -> Vec<(i32, i32)> {
            super::gaps(&descriptors(wanted), temporary).collect()
        };
        assert_eq!(gaps(&[0, 2, 5, 6], &[0, 1, 2, 3]), [(1, 1), (3, 3)]);
        assert_eq!(gaps(&[700, 701], &[0, 1]), [(0, 1)]);
        assert_eq!(gaps(&[0, 1], &[0, 1]), []);
    }

    #[test]
    fn what_is_right_stays_and_the_rest_goes() {
        let place = |early, close_on_exec| Occupant { early, close_on_exec };
        let present: Installed =
            [(0, place(1, false)), (3, place(2, false)), (4, place(3, true)), (5, place(4, true))].into();
        let claims: Claims = [(FileId(10), 1), (FileId(12), 3)].into();
        let wanted = |fd, file| Descriptor { fd, file: FileId(file), close_on_exec: false };
        let plan =
            Plan::of(&[wanted(0, 10), wanted(3, 11), wanted(4, 12), wanted(7, 13)], Some(&present), &claims);
        assert_eq!(plan.kept, [0, 4].into());
        assert_eq!(plan.flags, [(4, false)]);
        assert_eq!(plan.missing, [wanted(3, 11), wanted(7, 13)]);
        assert_eq!(plan.close, [(1, 3), (5, u32::MAX)]);
        let unknown = Plan::of(&[wanted(0, 10)], None, &claims);
        assert_eq!((unknown.close, unknown.missing), (vec![(0, u32::MAX)], vec![wanted(0, 10)]));
    }
}
