//! Pieces of memory that one thread reads at a time.

use std::fs::File;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use bytes::BytesMut;
use nix::errno::Errno;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::{Contents, Unwanted};
use crate::memory::error::{MemoryError, errno};
use crate::model::layout::{ObjectKind, ObjectLayout};
use crate::model::{PAGE_SIZE, Pid};
use crate::sys::process_vm::{self, RemoteRange};

const PAGE: usize = PAGE_SIZE as usize;
const ZEROS: [u8; PAGE] = [0; PAGE];
/// The most that a piece holds, bytes: small enough for a CPU's cache, and as many runs as one call takes at most.
const PIECE_BYTES: u64 = 1 << 20;
const _: () = assert!(PIECE_BYTES / PAGE_SIZE <= process_vm::MAX_RANGES as u64);

/// Runs of pages of one place.
pub(super) struct Piece<'a> {
    /// Which place.
    index: usize,
    of: Of<'a>,
    /// Ascending; at most [`PIECE_BYTES`].
    runs: Vec<(u64, u64)>,
}

enum Of<'a> {
    Process { pid: Pid, behind: Behind, masked: Arc<[(u64, u64)]> },
    Object { file: &'a File, kind: &'a ObjectKind, size: u64 },
}

/// What is there without a page of one's own.
#[derive(Debug, Clone)]
pub(super) enum Behind {
    Zeros,
    /// The file, `offset` of it at the address `start`.
    File {
        file: Arc<File>,
        start: u64,
        offset: u64,
    },
}

/// What a thread has read: a sum of digests and a number of pages for each piece.
type Read = Vec<(usize, u128, u64)>;

/// Cuts runs into pieces.
pub(super) fn cut(runs: impl Iterator<Item = (u64, u64)>, mut piece: impl FnMut(Vec<(u64, u64)>)) {
    let (mut taken, mut room) = (Vec::new(), PIECE_BYTES);
    for (start, end) in runs {
        let mut at = start;
        while at < end {
            let next = end.min(at + room);
            taken.push((at, next));
            room -= next - at;
            at = next;
            if room == 0 {
                piece(std::mem::take(&mut taken));
                room = PIECE_BYTES;
            }
        }
    }
    if !taken.is_empty() {
        piece(taken);
    }
}

/// Reads every piece, by a thread for each CPU, as long as somebody waits; the digests of `places` places.
pub(super) fn read_all(
    pieces: &[Piece<'_>],
    places: usize,
    unwanted: Unwanted<'_>,
) -> Result<Contents, MemoryError> {
    let next = AtomicUsize::new(0);
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(pieces.len());
    let read = thread::scope(|scope| {
        // A thread that cannot be started is one less: this one reads as well.
        let start = |_| {
            thread::Builder::new()
                .name("contents".into())
                .spawn_scoped(scope, || read(pieces, &next, unwanted))
                .ok()
        };
        let others: Vec<_> = (1..threads).filter_map(start).collect();
        let mut all = vec![read(pieces, &next, unwanted)];
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        all.extend(others.into_iter().map(join));
        all
    });
    let mut contents = Contents { digests: vec![0; places], pages: 0 };
    for part in read {
        for (index, sum, pages) in part? {
            if let Some(digest) = contents.digests.get_mut(index) {
                *digest = digest.wrapping_add(sum);
            }
            contents.pages += pages;
        }
    }
    Ok(contents)
}

fn read(pieces: &[Piece<'_>], next: &AtomicUsize, unwanted: Unwanted<'_>) -> Result<Read, MemoryError> {
    let mut buffer = BytesMut::with_capacity(PIECE_BYTES as usize);
    let mut done = Vec::new();
    while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
        if unwanted() {
            return Err(MemoryError::Unwanted);
        }
        buffer.clear();
        let (sum, pages) = piece.digest(&mut buffer)?;
        done.push((piece.index, sum, pages));
    }
    Ok(done)
}

impl<'a> Piece<'a> {
    pub(super) fn of_process(
        index: usize,
        pid: Pid,
        behind: Behind,
        masked: Arc<[(u64, u64)]>,
        runs: Vec<(u64, u64)>,
    ) -> Self {
        Self { index, of: Of::Process { pid, behind, masked }, runs }
    }

    pub(super) fn of_object(
        index: usize,
        object: &'a ObjectLayout,
        file: &'a File,
        runs: Vec<(u64, u64)>,
    ) -> Self {
        Self { index, of: Of::Object { file, kind: &object.kind, size: object.size }, runs }
    }

    /// The sum of the digests of the pages that count, and their number.
    fn digest(&self, buffer: &mut BytesMut) -> Result<(u128, u64), MemoryError> {
        match &self.of {
            Of::Process { pid, .. } => read_process(*pid, &self.runs, buffer)?,
            Of::Object { file, kind, size } => read_object(file, kind, *size, &self.runs, buffer)?,
        }
        let places = self.runs.iter().flat_map(|(start, end)| (*start..*end).step_by(PAGE));
        let (mut sum, mut pages) = (0u128, 0);
        for (at, page) in places.zip(buffer.chunks_exact_mut(PAGE)) {
            self.mask(at, page);
            if !self.is_behind(at, page)? {
                sum = sum.wrapping_add(xxh3_128_with_seed(page, at));
                pages += 1;
            }
        }
        Ok((sum, pages))
    }

    /// Clears what is not compared.
    fn mask(&self, at: u64, page: &mut [u8]) {
        let Of::Process { masked, .. } = &self.of else { return };
        for (start, end) in masked.iter() {
            let within =
                |address: u64| usize::try_from(address.clamp(at, at + PAGE_SIZE) - at).unwrap_or(PAGE);
            page.get_mut(within(*start)..within(*end)).unwrap_or_default().fill(0);
        }
    }

    /// True for a page with the contents that would be there without it.
    fn is_behind(&self, at: u64, page: &[u8]) -> Result<bool, MemoryError> {
        let Of::Process { pid, behind: Behind::File { file, start, offset }, .. } = &self.of else {
            return Ok(page == ZEROS);
        };
        let mut shown = ZEROS;
        let mut done = 0;
        while let Some(rest) = shown.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let place = offset + (at - start) + done as u64;
            match file.read_at(rest, place) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) => {
                    let name = "the file that a mapping shows".to_owned();
                    return Err(MemoryError::Proc { pid: *pid, name, source: errno(&error) });
                }
            }
        }
        Ok(page == shown)
    }
}

/// Reads runs of a process, also where it may not read itself.
fn read_process(pid: Pid, runs: &[(u64, u64)], buffer: &mut BytesMut) -> Result<(), MemoryError> {
    let ranges: Vec<_> =
        runs.iter().map(|(start, end)| RemoteRange { start: *start, len: end - start }).collect();
    let wanted: u64 = ranges.iter().map(|range| range.len).sum();
    if process_vm::read_append(pid, &ranges, buffer).is_ok_and(|read| read as u64 == wanted) {
        return Ok(());
    }
    buffer.clear();
    let open = File::open(format!("/proc/{pid}/mem"));
    let mem = open.map_err(|error| MemoryError::Proc { pid, name: "mem".into(), source: errno(&error) })?;
    for (start, end) in runs {
        let mut at = *start;
        while at < *end {
            let len = usize::try_from(end - at).unwrap_or(0);
            match process_vm::pread_append(mem.as_fd(), at, len, buffer) {
                Ok(0) => return Err(MemoryError::Read { pid, start: at, source: Errno::EIO }),
                Ok(read) => at += read as u64,
                Err(source) => return Err(MemoryError::Read { pid, start: at, source }),
            }
        }
    }
    Ok(())
}

/// Reads runs of an object of `size` bytes; behind its end are zeros, whatever is in the file there.
fn read_object(
    file: &File,
    kind: &ObjectKind,
    size: u64,
    runs: &[(u64, u64)],
    buffer: &mut BytesMut,
) -> Result<(), MemoryError> {
    for (start, end) in runs {
        let whole = buffer.len() + usize::try_from(end - start).unwrap_or(0);
        let mut at = *start;
        while at < size.min(*end) {
            let len = usize::try_from(size.min(*end) - at).unwrap_or(0);
            match process_vm::pread_append(file.as_fd(), at, len, buffer) {
                Ok(0) => break,
                Ok(read) => at += read as u64,
                Err(source) => return Err(MemoryError::Object { kind: kind.clone(), offset: at, source }),
            }
        }
        buffer.resize(whole, 0);
    }
    Ok(())
}
