//! Memory in huge pages: of hugetlbfs, of every kind, and transparent ones.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use anyhow::{Context, Result, ensure};

use crate::{Check, State, same};

/// All but the last need pages that most hosts do not have, and a hugetlbfs at `/dev/hugepages`.
pub(crate) const STATES: &[State] = &[
    ("huge-private", private),
    ("huge-shared", shared),
    ("huge-memfd", memfd),
    ("huge-segment", segment),
    ("huge-files", files),
    ("huge-transparent", transparent),
];

const HUGE: usize = 2 << 20;
/// Bytes of each piece of memory.
const LENGTH: usize = 2 * HUGE;

/// Memory of this program that stays for ever.
#[derive(Debug, Clone, Copy)]
struct Memory(usize);

impl Memory {
    fn map(flags: i32, file: Option<&File>) -> Result<Self> {
        let (fd, flags) = file
            .map_or((-1, flags | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB), |file| (file.as_raw_fd(), flags));
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: without MAP_FIXED the kernel takes addresses that nothing uses.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), LENGTH, protection, flags, fd, 0) };
        ensure!(address != libc::MAP_FAILED, "cannot map: {}", std::io::Error::last_os_error());
        Ok(Self(address.addr()))
    }

    /// In ordinary pages, or in huge ones if the kernel likes: it begins where one can.
    fn ordinary() -> Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: without MAP_FIXED the kernel takes addresses that nothing uses.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), LENGTH + HUGE, protection, flags, -1, 0) };
        ensure!(address != libc::MAP_FAILED, "cannot map: {}", std::io::Error::last_os_error());
        let address = address.addr().next_multiple_of(HUGE);
        // SAFETY: the range is inside of what was just mapped.
        let result = unsafe { libc::madvise(address as *mut libc::c_void, LENGTH, libc::MADV_HUGEPAGE) };
        ensure!(result == 0, "cannot ask for huge pages: {}", std::io::Error::last_os_error());
        Ok(Self(address))
    }

    fn attach(id: i32) -> Result<Self> {
        // SAFETY: the kernel takes addresses that nothing uses.
        let address = unsafe { libc::shmat(id, std::ptr::null(), 0) };
        ensure!(address.addr() != usize::MAX, "cannot attach: {}", std::io::Error::last_os_error());
        Ok(Self(address.addr()))
    }

    fn peek(self, at: usize) -> u8 {
        assert!(at < LENGTH);
        // SAFETY: LENGTH bytes are mapped there and are never taken away.
        unsafe { (self.0 as *const u8).add(at).read_volatile() }
    }

    fn poke(self, at: usize, byte: u8) {
        assert!(at < LENGTH);
        // SAFETY: as for `peek`, and writable.
        unsafe { (self.0 as *mut u8).add(at).write_volatile(byte) }
    }

    /// Gives the first huge page back.
    fn discard(self) -> Result<()> {
        // SAFETY: the pages are this program's, and nothing refers to them.
        let result = unsafe { libc::madvise(self.0 as *mut libc::c_void, HUGE, libc::MADV_DONTNEED) };
        ensure!(result == 0, "cannot discard: {}", std::io::Error::last_os_error());
        Ok(())
    }

    /// Every mapping is in huge pages still.
    fn is_huge(self) -> Result<()> {
        let text = std::fs::read_to_string("/proc/self/smaps")?;
        let begin = text.find(&format!("{:x}-", self.0)).context("a mapping is gone")?;
        let size = text[begin..].lines().find_map(|line| line.strip_prefix("KernelPageSize:"));
        same("size of its pages", &"2048 kB", &size.unwrap_or_default().trim())
    }
}

fn private() -> Result<Check> {
    let (kept, discarded) = (Memory::map(libc::MAP_PRIVATE, None)?, Memory::map(libc::MAP_PRIVATE, None)?);
    let mut turn = 1_u8;
    kept.poke(HUGE + 4097, turn);
    discarded.poke(5, turn);
    discarded.poke(HUGE, turn);
    Ok(Box::new(move || {
        [kept, discarded].into_iter().try_for_each(Memory::is_huge)?;
        same("byte", &turn, &kept.peek(HUGE + 4097))?;
        same("byte behind the discarded ones", &turn, &discarded.peek(HUGE))?;
        same("byte, discarded after every second check", &(turn % 2), &discarded.peek(5))?;
        turn += 1;
        kept.poke(HUGE + 4097, turn);
        discarded.poke(HUGE, turn);
        if turn.is_multiple_of(2) {
            return discarded.discard();
        }
        discarded.poke(5, 1);
        Ok(())
    }))
}

/// Ordinary memory that the kernel was asked to put in huge pages: as many of them as it did at the beginning.
fn transparent() -> Result<Check> {
    let pieces = [(); 8].map(|()| Memory::ordinary()).into_iter().collect::<Result<Vec<_>>>()?;
    let mut turn = 1_u8;
    let write = {
        let pieces = pieces.clone();
        move |turn| {
            pieces.iter().for_each(|memory| (0..LENGTH).step_by(4096).for_each(|at| memory.poke(at, turn)))
        }
    };
    write(turn);
    let huge = || pieces_in_huge_pages(&pieces);
    let had = huge()?;
    ensure!(had > 0, "this kernel makes no transparent huge pages");
    Ok(Box::new(move || {
        for memory in &pieces {
            let wrong = (0..LENGTH).step_by(4096).find(|&at| memory.peek(at) != turn);
            same("page with another byte", &None, &wrong)?;
        }
        let has = pieces_in_huge_pages(&pieces)?;
        ensure!(has >= had, "{has} KiB are in huge pages, of {had}");
        turn = turn.wrapping_add(1);
        write(turn);
        Ok(())
    }))
}

/// Of these pieces, KiB.
fn pieces_in_huge_pages(pieces: &[Memory]) -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/smaps")?;
    let mut inside = false;
    let mut sum = 0;
    for line in text.lines() {
        if let Some((begin, end)) = line.split_once(' ').and_then(|(range, _)| range.split_once('-'))
            && let (Ok(begin), Ok(end)) = (usize::from_str_radix(begin, 16), usize::from_str_radix(end, 16))
        {
            // Neighbours may be one mapping.
            inside = pieces.iter().any(|memory| (begin..end).contains(&memory.0));
        } else if inside && let Some(size) = line.strip_prefix("AnonHugePages:") {
            sum += size.trim().trim_end_matches(" kB").parse::<u64>()?;
        }
    }
    Ok(sum)
}

/// Anonymous memory that a child shares, and answers in.
fn shared() -> Result<Check> {
    let memory = Memory::map(libc::MAP_SHARED, None)?;
    // SAFETY: the child makes system calls and touches shared memory only; it ends with this process.
    if unsafe { libc::fork() } == 0 {
        // SAFETY: as above.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        loop {
            memory.poke(HUGE, memory.peek(0));
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    let mut turn = 1_u8;
    memory.poke(0, turn);
    Ok(Box::new(move || {
        memory.is_huge()?;
        same("byte", &turn, &memory.peek(0))?;
        turn += 1;
        memory.poke(0, turn);
        let answer = || Ok(memory.peek(HUGE) == turn);
        pclive_tests::wait::until("the other process sees it", std::time::Duration::from_secs(10), answer)
    }))
}

fn new_memfd() -> Result<File> {
    let flags = libc::MFD_HUGETLB | libc::MFD_HUGE_2MB | libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string; the descriptor is new and nobody else's.
    let fd = unsafe { libc::memfd_create(c"huge".as_ptr(), flags) };
    ensure!(fd >= 0, "cannot make a memfd: {}", std::io::Error::last_os_error());
    // SAFETY: as above.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(LENGTH as u64)?;
    Ok(file)
}

/// Writes into a file of huge pages that nobody maps afterwards.
fn write(file: &File, at: usize, byte: u8) -> Result<()> {
    let passing = Memory::map(libc::MAP_SHARED, Some(file))?;
    passing.poke(at, byte);
    // SAFETY: it was mapped above, and nothing refers to it.
    let result = unsafe { libc::munmap(passing.0 as *mut libc::c_void, LENGTH) };
    ensure!(result == 0, "cannot unmap: {}", std::io::Error::last_os_error());
    Ok(())
}

fn read(file: &File, at: usize) -> Result<u8> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64)?;
    Ok(byte[0])
}

/// One that is mapped, and one that is only open.
fn memfd() -> Result<Check> {
    let (mapped, open) = (new_memfd()?, new_memfd()?);
    let memory = Memory::map(libc::MAP_SHARED, Some(&mapped))?;
    let mut turn = 1_u8;
    memory.poke(7, turn);
    write(&open, HUGE + 9, turn)?;
    Ok(Box::new(move || {
        memory.is_huge()?;
        same("byte", &turn, &memory.peek(7))?;
        same("byte of the one that is open", &turn, &read(&open, HUGE + 9)?)?;
        turn += 1;
        memory.poke(7, turn);
        write(&open, HUGE + 9, turn)
    }))
}

/// A System V segment of an odd size.
fn segment() -> Result<Check> {
    let size = LENGTH - 100;
    let flags = libc::IPC_CREAT | libc::SHM_HUGETLB | 0o600;
    // SAFETY: shmget takes numbers only.
    let id = unsafe { libc::shmget(0x4855_4745, size, flags) };
    ensure!(id >= 0, "cannot make a segment: {}", std::io::Error::last_os_error());
    let memory = Memory::attach(id)?;
    let mut turn = 1_u8;
    memory.poke(HUGE + 1, turn);
    Ok(Box::new(move || {
        memory.is_huge()?;
        // SAFETY: all zeros are a valid shmid_ds; IPC_STAT stores one at the address of a live one.
        let mut about: libc::shmid_ds = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        ensure!(unsafe { libc::shmctl(id, libc::IPC_STAT, &raw mut about) } == 0, "the segment is gone");
        same("size as it was asked for", &size, &about.shm_segsz)?;
        same("byte", &turn, &memory.peek(HUGE + 1))?;
        turn += 1;
        memory.poke(HUGE + 1, turn);
        Ok(())
    }))
}

/// Files of the container's own hugetlbfs: one that is mapped, one that is there, one that is mapped and deleted.
fn files() -> Result<Check> {
    let make = |name: &str| -> Result<File> {
        let path = format!("/dev/hugepages/{name}");
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.set_len(LENGTH as u64)?;
        Ok(file)
    };
    let (mapped, there, gone) = (make("mapped")?, make("there")?, make("gone")?);
    std::fs::remove_file("/dev/hugepages/gone")?;
    let (memory, nameless) =
        (Memory::map(libc::MAP_SHARED, Some(&mapped))?, Memory::map(libc::MAP_SHARED, Some(&gone))?);
    drop(gone);
    let mut turn = 1_u8;
    memory.poke(HUGE, turn);
    nameless.poke(1, turn);
    write(&there, 3, turn)?;
    drop(there);
    Ok(Box::new(move || {
        [memory, nameless].into_iter().try_for_each(Memory::is_huge)?;
        let there = File::options().read(true).write(true).open("/dev/hugepages/there")?;
        let bytes = (memory.peek(HUGE), nameless.peek(1), read(&there, 3)?);
        same("bytes of the mapped, the deleted and the other file", &(turn, turn, turn), &bytes)?;
        same("byte of the mapped file", &turn, &read(&mapped, HUGE)?)?;
        same("size", &(LENGTH as u64), &there.metadata()?.size())?;
        turn += 1;
        memory.poke(HUGE, turn);
        nameless.poke(1, turn);
        write(&there, 3, turn)
    }))
}
