//! Builds a batch of remote calls and keeps track of what they write.
//!
//! Each kind of state adds its calls to a batch and remembers tickets for the results; after one [`Batch::run`]
//! it takes its answers. So a whole thread costs one round trip, however many kinds there are.
//!
//! Invariants: scratch memory of a batch starts as zeros, so that nothing stale is read after a failed call; it
//! holds only what was reserved.

use nix::Error;

use super::{Call, RemoteError, RemoteTask, ScratchArea};
use crate::model::RemoteAddr;

/// Scratch bytes of a batch; every piece is aligned to this.
const ALIGN: usize = 16;

/// Calls that are collected before they run together.
#[derive(Debug)]
pub struct Batch {
    area: ScratchArea,
    bytes: Vec<u8>,
    calls: Vec<Call>,
}

/// A piece of scratch memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    offset: usize,
    len: usize,
    address: RemoteAddr,
}

impl Piece {
    /// Its address in the task, as an argument of a call.
    pub fn address(self) -> u64 {
        self.address.0
    }
}

/// Stands for the result of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(usize);

impl Batch {
    /// An empty batch for a task.
    pub fn new(task: &dyn RemoteTask) -> Self {
        Self { area: task.scratch(), bytes: Vec::new(), calls: Vec::new() }
    }

    /// Reserves zeroed memory for a call to write to.
    pub fn reserve(&mut self, len: usize) -> Result<Piece, RemoteError> {
        let offset = self.bytes.len();
        let end = offset.saturating_add(len).next_multiple_of(ALIGN);
        if end > self.area.len {
            return Err(RemoteError::TooLarge { bytes: end, limit: self.area.len });
        }
        self.bytes.resize(end, 0);
        Ok(Piece { offset, len, address: RemoteAddr(self.area.start.0 + offset as u64) })
    }

    /// Places bytes for a call to read.
    pub fn place(&mut self, bytes: &[u8]) -> Result<Piece, RemoteError> {
        let piece = self.reserve(bytes.len())?;
        self.bytes[piece.offset..piece.offset + piece.len].copy_from_slice(bytes);
        Ok(piece)
    }

    /// The address of [`ScratchArea::spare_page`].
    pub fn spare_page(&self) -> u64 {
        self.area.spare_page.0
    }

    /// Adds a call (`libc::SYS_*`).
    pub fn call(&mut self, number: i64, arguments: &[u64]) -> Ticket {
        self.calls.push(Call::new(number, arguments));
        Ticket(self.calls.len() - 1)
    }

    /// True if there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Runs the calls; an empty batch does not touch the task.
    pub fn run(self, task: &mut dyn RemoteTask) -> Result<Answers, RemoteError> {
        self.run_beside(task, &mut || {})
    }

    /// The same; `meanwhile` is done once while the task makes its calls. It must not touch the task.
    pub fn run_beside(
        mut self,
        task: &mut dyn RemoteTask,
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Answers, RemoteError> {
        if self.calls.is_empty() {
            meanwhile();
            return Ok(Answers { results: Vec::new(), bytes: self.bytes });
        }
        if !self.bytes.is_empty() {
            task.write(self.area.start, &self.bytes)?;
        }
        let results = task.run_beside(&self.calls, meanwhile)?;
        if !self.bytes.is_empty() {
            task.read(self.area.start, &mut self.bytes)?;
        }
        Ok(Answers { results, bytes: self.bytes })
    }
}

/// Results and memory of a batch that has run.
#[derive(Debug)]
pub struct Answers {
    results: Vec<i64>,
    bytes: Vec<u8>,
}

impl Answers {
    /// A call's result, or its errno.
    pub fn result(&self, ticket: Ticket) -> Result<u64, Error> {
        match self.results.get(ticket.0) {
            Some(result @ -4095..=-1) => Err(Error::from_raw(-*result as i32)),
            Some(result) => Ok(*result as u64),
            None => Err(Error::ENODATA),
        }
    }

    /// What is in a piece of memory now.
    pub fn bytes(&self, piece: Piece) -> &[u8] {
        self.bytes.get(piece.offset..piece.offset + piece.len).unwrap_or_default()
    }

    /// The 32-bit word at a piece's start.
    pub fn u32(&self, piece: Piece) -> u32 {
        self.u32s(piece).next().unwrap_or_default()
    }

    /// The 64-bit word at a piece's start.
    pub fn u64(&self, piece: Piece) -> u64 {
        self.u64s(piece).next().unwrap_or_default()
    }

    /// A piece as 32-bit words.
    pub fn u32s(&self, piece: Piece) -> impl Iterator<Item = u32> {
        self.bytes(piece).as_chunks().0.iter().map(|word| u32::from_ne_bytes(*word))
    }

    /// A piece as 64-bit words.
    pub fn u64s(&self, piece: Piece) -> impl Iterator<Item = u64> {
        self.bytes(piece).as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Pid, Vpid};

    /// Memory in a vector; every call adds its first argument to what is at its second.
    struct Adder(Vec<u8>);

    impl RemoteTask for Adder {
        fn pid(&self) -> Pid {
            Pid(1)
        }

        fn vpid(&self) -> Vpid {
            Vpid(1)
        }

        fn scratch(&self) -> ScratchArea {
            ScratchArea { start: RemoteAddr(0x1000), len: self.0.len(), spare_page: RemoteAddr(0) }
        }

        fn run(&mut self, calls: &[Call]) -> Result<Vec<i64>, RemoteError> {
            let result = |call: &Call| {
                let at = call.args[1] as usize - 0x1000;
                self.0[at] += call.args[0] as u8;
                call.number
            };
            Ok(calls.iter().map(result).collect())
        }

        fn write(&mut self, to: RemoteAddr, bytes: &[u8]) -> Result<(), RemoteError> {
            let at = to.0 as usize - 0x1000;
            self.0[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        }

        fn read(&mut self, from: RemoteAddr, bytes: &mut [u8]) -> Result<(), RemoteError> {
            let at = from.0 as usize - 0x1000;
            bytes.copy_from_slice(&self.0[at..at + bytes.len()]);
            Ok(())
        }
    }

    #[test]
    fn answers_belong_to_their_pieces_and_tickets() {
        let mut task = Adder(vec![0xff; 64]);
        let mut batch = Batch::new(&task);
        let first = batch.reserve(4).unwrap();
        let second = batch.place(&5u64.to_ne_bytes()).unwrap();
        let good = batch.call(7, &[1, first.address()]);
        let bad = batch.call(-9, &[2, second.address()]);
        let answers = batch.run(&mut task).unwrap();
        assert_eq!((answers.u32(first), answers.u64(second)), (1, 7));
        assert_eq!(answers.result(good), Ok(7));
        assert_eq!(answers.result(bad), Err(Error::EBADF));
    }

    #[test]
    fn more_than_the_scratch_memory_is_refused() {
        let task = Adder(vec![0; 32]);
        let mut batch = Batch::new(&task);
        batch.reserve(17).unwrap();
        assert!(matches!(batch.reserve(1), Err(RemoteError::TooLarge { bytes: 48, limit: 32 })));
        assert!(matches!(batch.reserve(usize::MAX - 64), Err(RemoteError::TooLarge { .. })));
    }
}
