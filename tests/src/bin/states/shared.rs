//! Memory with a name or a descriptor: files of a tmpfs, memfds, System V segments.

use std::ffi::CString;
use std::fs::{File, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};

use pclive_tests::wait::until;

use crate::{Check, State, calls, same};

pub(crate) const STATES: &[State] = &[
    ("tmpfs-files", tmpfs_files),
    ("tmpfs-mapped", tmpfs_mapped),
    ("tmpfs-unlinked", tmpfs_unlinked),
    ("memfd", memfd),
    ("memfd-sealed", memfd_sealed),
    ("segments", segments),
];

const PAGE: usize = 4096;
/// Bytes of the mapped files; not whole pages.
const LENGTH: usize = 9 * PAGE + 100;

/// The whole pages of a file, mapped for ever.
fn map(fd: RawFd, protection: i32, flags: i32) -> Result<*mut u8> {
    // SAFETY: without MAP_FIXED the kernel takes addresses that nothing uses.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), LENGTH, protection, flags, fd, 0) };
    ensure!(address != libc::MAP_FAILED, "cannot map: {}", std::io::Error::last_os_error());
    Ok(address.cast())
}

fn peek(memory: *const u8, at: usize) -> u8 {
    assert!(at < LENGTH);
    // SAFETY: `memory` is a mapping of LENGTH bytes that is never taken away.
    unsafe { memory.add(at).read_volatile() }
}

fn poke(memory: *mut u8, at: usize, byte: u8) {
    assert!(at < LENGTH);
    // SAFETY: as for `peek`; the callers have mapped it writable.
    unsafe { memory.add(at).write_volatile(byte) }
}

/// For what another process does within moments.
const PATIENCE: Duration = Duration::from_secs(10);

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// A tree of everything that a tmpfs can hold; each check changes it.
fn tmpfs_files() -> Result<Check> {
    let top = "/dev/shm/tree";
    let at = |name: &str| format!("{top}/{name}");
    std::fs::create_dir_all(at("deep/deeper"))?;
    std::fs::set_permissions(at("deep"), Permissions::from_mode(0o1750))?;
    let sparse = File::create(at("deep/sparse"))?;
    sparse.set_len(64 << 20)?;
    sparse.write_all_at(b"far", 32 << 20)?;
    std::fs::write(at("one"), "one")?;
    std::fs::write(at("two"), "two")?;
    std::fs::hard_link(at("one"), at("deep/deeper/same"))?;
    symlink("../one", at("deep/link"))?;
    let fifo = CString::new(at("fifo"))?;
    // SAFETY: the path is a C string.
    ensure!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o640) } == 0, "cannot make a FIFO");
    std::fs::write(at("log"), "")?;
    std::fs::set_permissions(at("log"), Permissions::from_mode(0o4711))?;
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    File::options().write(true).open(at("two"))?.set_modified(then)?;
    File::open(at("deep/deeper"))?.set_modified(then)?;
    let mut lines = 0;
    Ok(Box::new(move || {
        let at = |name: &str| format!("/dev/shm/tree/{name}");
        same("mode of a directory", &0o41750, &std::fs::metadata(at("deep"))?.mode())?;
        let sparse = File::open(at("deep/sparse"))?;
        same("size of the sparse file", &(64 << 20), &sparse.metadata()?.len())?;
        ensure!(sparse.metadata()?.blocks() < 1000, "its holes are filled");
        let mut far = [0; 4];
        sparse.read_exact_at(&mut far, 32 << 20)?;
        same("data of the sparse file", b"far\0", &far)?;
        let names = [at("one"), at("two")];
        let (first, second) = (&names[lines % 2], &names[(lines + 1) % 2]);
        let one = std::fs::metadata(first)?;
        same("links", &(2, one.ino()), &(one.nlink(), std::fs::metadata(at("deep/deeper/same"))?.ino()))?;
        same("link", &"../one".into(), &std::fs::read_link(at("deep/link"))?)?;
        let fifo = std::fs::symlink_metadata(at("fifo"))?;
        ensure!(fifo.file_type().is_fifo(), "the FIFO is something else");
        same("mode of the log", &0o104_711, &std::fs::metadata(at("log"))?.mode())?;
        same("time of a directory", &then, &std::fs::metadata(at("deep/deeper"))?.modified()?)?;
        same("second file", &"two".to_owned(), &std::fs::read_to_string(second)?)?;
        same("its time", &then, &std::fs::metadata(second)?.modified()?)?;
        same("log", &"line\n".repeat(lines), &std::fs::read_to_string(at("log"))?)?;
        same("new file", &(lines > 0), &std::fs::exists(at(&format!("new{lines}")))?)?;
        // Two files change places, one goes, one comes, one grows.
        std::fs::rename(at("one"), at("passing"))?;
        std::fs::rename(at("two"), at("one"))?;
        std::fs::rename(at("passing"), at("two"))?;
        let _ = std::fs::remove_file(at(&format!("new{lines}")));
        lines += 1;
        std::fs::write(at(&format!("new{lines}")), "new")?;
        File::options().append(true).open(at("log"))?.write_all(b"line\n")?;
        std::fs::set_permissions(at("log"), Permissions::from_mode(0o4711))?;
        Ok(())
    }))
}

/// A file of a tmpfs that is mapped, written and open.
fn tmpfs_mapped() -> Result<Check> {
    let path = "/dev/shm/mapped";
    let mut file = File::options().read(true).write(true).create_new(true).open(path)?;
    file.set_len(LENGTH as u64)?;
    file.seek(SeekFrom::Start(7))?;
    let memory = map(file.as_raw_fd(), READ_WRITE, libc::MAP_SHARED)? as usize;
    let private = map(file.as_raw_fd(), READ_WRITE, libc::MAP_PRIVATE)? as usize;
    poke(private as *mut u8, 3 * PAGE, b'p');
    let mut turn = 1_u8;
    poke(memory as *mut u8, 2 * PAGE, turn);
    file.write_all_at(&[turn], LENGTH as u64 - 1)?;
    Ok(Box::new(move || {
        let (memory, private) = (memory as *mut u8, private as *mut u8);
        same("byte of the mapping", &turn, &peek(memory, 2 * PAGE))?;
        same("byte that was written", &turn, &peek(memory, LENGTH - 1))?;
        same("byte of the private mapping", &turn, &peek(private, 2 * PAGE))?;
        same("private byte", &b'p', &peek(private, 3 * PAGE))?;
        same("byte below it", &0, &peek(memory, 3 * PAGE))?;
        same("offset", &7, &file.stream_position()?)?;
        same("size", &(LENGTH as u64), &std::fs::metadata("/dev/shm/mapped")?.len())?;
        turn += 1;
        poke(memory, 2 * PAGE, turn);
        File::options().write(true).open("/dev/shm/mapped")?.write_all_at(&[turn], LENGTH as u64 - 1)?;
        Ok(())
    }))
}

/// Two deleted files: one is open, one only mapped.
fn tmpfs_unlinked() -> Result<Check> {
    let make = |path: &str| -> Result<File> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        std::fs::remove_file(path)?;
        file.set_len(LENGTH as u64)?;
        Ok(file)
    };
    let (mut open, mapped) = (make("/dev/shm/open")?, make("/dev/shm/gone")?);
    open.write_all(b"open")?;
    let memory = map(mapped.as_raw_fd(), READ_WRITE, libc::MAP_SHARED)? as usize;
    drop(mapped);
    let mut turn = 1_u8;
    poke(memory as *mut u8, 0, turn);
    Ok(Box::new(move || {
        same("offset", &(4 * u64::from(turn)), &open.stream_position()?)?;
        let mut bytes = [0; 4];
        open.read_exact_at(&mut bytes, 4 * u64::from(turn - 1))?;
        same("data", b"open", &bytes)?;
        same("links and size", &(0, LENGTH as u64), &(open.metadata()?.nlink(), open.metadata()?.len()))?;
        same("mapped byte", &turn, &peek(memory as *const u8, 0))?;
        turn += 1;
        open.write_all(b"open")?;
        poke(memory as *mut u8, 0, turn);
        Ok(())
    }))
}

fn new_memfd(name: &str) -> Result<File> {
    let name = CString::new(name)?;
    // SAFETY: the name is a C string; the descriptor is new and nobody else's.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC) };
    ensure!(fd >= 0, "cannot make a memfd: {}", std::io::Error::last_os_error());
    // SAFETY: as above.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// A memfd that grows, mapped by two processes and privately.
fn memfd() -> Result<Check> {
    let mut file = new_memfd("states (deleted)")?;
    file.set_len(LENGTH as u64)?;
    file.set_permissions(Permissions::from_mode(0o640))?;
    let memory = map(file.as_raw_fd(), READ_WRITE, libc::MAP_SHARED)? as usize;
    let private = map(file.as_raw_fd(), READ_WRITE, libc::MAP_PRIVATE)? as usize;
    poke(private as *mut u8, 0, b'p');
    // SAFETY: the child makes system calls and touches shared memory only; it ends with this process.
    if unsafe { libc::fork() } == 0 {
        // SAFETY: as above.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        loop {
            // The child echoes what it reads.
            poke(memory as *mut u8, 5 * PAGE, peek(memory as *const u8, 4 * PAGE));
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let unmapped = new_memfd("unmapped")?;
    unmapped.write_all_at(b"unmapped", 1 << 20)?;
    let mut turn = 1_u8;
    poke(memory as *mut u8, 4 * PAGE, turn);
    file.seek(SeekFrom::End(0))?;
    Ok(Box::new(move || {
        let (memory, private) = (memory as *mut u8, private as *mut u8);
        same("byte", &turn, &peek(memory, 4 * PAGE))?;
        same("byte in the private mapping", &turn, &peek(private, 4 * PAGE))?;
        same("private byte", &b'p', &peek(private, 0))?;
        let name = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        same("name", &"/memfd:states (deleted) (deleted)".into(), &name)?;
        same("mode", &0o100_640, &file.metadata()?.mode())?;
        same("size", &(LENGTH as u64 + u64::from(turn) - 1), &file.metadata()?.len())?;
        let mut tail = vec![0; usize::from(turn) - 1];
        file.read_exact_at(&mut tail, LENGTH as u64)?;
        ensure!(tail.iter().all(|byte| *byte == b'x'), "its end has changed");
        let mut data = [0; 8];
        unmapped.read_exact_at(&mut data, 1 << 20)?;
        same("data of the other", b"unmapped", &data)?;
        turn += 1;
        file.write_all(b"x")?;
        poke(memory, 4 * PAGE, turn);
        until("the other process sees it", PATIENCE, || Ok(peek(memory, 5 * PAGE) == turn))
    }))
}

/// Seals of two memfds; one of them is mapped for reading.
fn memfd_sealed() -> Result<Check> {
    const SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_SEAL;
    let mut file = new_memfd("sealed")?;
    file.write_all(&[b's'; LENGTH])?;
    calls::fcntl(file.as_fd(), libc::F_ADD_SEALS, SEALS)?;
    let memory = map(file.as_raw_fd(), libc::PROT_READ, libc::MAP_SHARED)? as usize;
    let growing = new_memfd("growing")?;
    growing.set_len(LENGTH as u64)?;
    calls::fcntl(growing.as_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK)?;
    let mut reader = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    Ok(Box::new(move || {
        same("seals", &SEALS, &calls::fcntl(file.as_fd(), libc::F_GET_SEALS, 0)?)?;
        same("seals", &libc::F_SEAL_SHRINK, &calls::fcntl(growing.as_fd(), libc::F_GET_SEALS, 0)?)?;
        same("byte", &b's', &peek(memory as *const u8, LENGTH - 1))?;
        ensure!(file.write_all_at(b"x", 0).is_err(), "a sealed memfd can be written");
        ensure!(growing.set_len(0).is_err(), "a sealed memfd can be cut");
        let mut byte = [0];
        reader.read_exact(&mut byte)?;
        same("byte by another descriptor", b"s", &byte)
    }))
}

/// A System V segment.
#[derive(Debug, PartialEq, Eq)]
struct About {
    key: i32,
    mode: u32,
    size: usize,
    attached: u64,
    id: i32,
}

fn about(id: i32) -> Result<About> {
    // SAFETY: all zeros are a valid shmid_ds; IPC_STAT stores one at the address of a live one.
    let mut found: libc::shmid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let result = unsafe { libc::shmctl(id, libc::IPC_STAT, &raw mut found) };
    ensure!(result == 0, "cannot look at segment {id}: {}", std::io::Error::last_os_error());
    let mode = u32::from(found.shm_perm.mode);
    Ok(About { key: found.shm_perm.__key, mode, size: found.shm_segsz, attached: found.shm_nattch, id })
}

fn attach(id: i32, flags: i32) -> Result<usize> {
    // SAFETY: the kernel takes addresses that nothing uses.
    let address = unsafe { libc::shmat(id, std::ptr::null(), flags) };
    ensure!(address.addr() != usize::MAX, "cannot attach: {}", std::io::Error::last_os_error());
    Ok(address.addr())
}

fn segment(key: i32) -> Result<i32> {
    // SAFETY: shmget takes numbers only.
    let id = unsafe { libc::shmget(key, LENGTH, libc::IPC_CREAT | libc::IPC_EXCL | 0o640) };
    ensure!(id >= 0, "cannot make a segment: {}", std::io::Error::last_os_error());
    Ok(id)
}

/// A segment with a key, one that was removed, one that nobody has attached; the first also read-only and in part.
fn segments() -> Result<Check> {
    let (keyed, removed, idle) = (segment(0x5043_4c56)?, segment(libc::IPC_PRIVATE)?, segment(77)?);
    let memory = attach(keyed, 0)?;
    let readable = attach(keyed, libc::SHM_RDONLY)?;
    let part = attach(keyed, 0)?;
    // SAFETY: the pages were attached above, and nothing refers to them.
    ensure!(unsafe { libc::munmap(part as *mut libc::c_void, 2 * PAGE) } == 0, "cannot unmap");
    let gone = attach(removed, 0)?;
    // SAFETY: IPC_RMID takes no buffer.
    ensure!(unsafe { libc::shmctl(removed, libc::IPC_RMID, std::ptr::null_mut()) } == 0, "cannot remove");
    let passing = attach(idle, 0)?;
    poke(passing as *mut u8, PAGE, b'i');
    // SAFETY: it was attached above, and nothing refers to it.
    ensure!(unsafe { libc::shmdt(passing as *const libc::c_void) } == 0, "cannot detach");
    let mut turn = 1_u8;
    poke(memory as *mut u8, 3 * PAGE, turn);
    poke(gone as *mut u8, PAGE, turn);
    let before = [about(keyed)?, about(removed)?, about(idle)?];
    ensure!(before[0].attached == 3 && before[2].attached == 0, "{before:?}");
    Ok(Box::new(move || {
        same("segments", &before, &[about(keyed)?, about(removed)?, about(idle)?])?;
        same("byte", &turn, &peek(memory as *const u8, 3 * PAGE))?;
        same("byte by the second mapping", &turn, &peek(readable as *const u8, 3 * PAGE))?;
        same("byte by the part", &turn, &peek(part as *const u8, 3 * PAGE))?;
        same("byte of the removed one", &turn, &peek(gone as *const u8, PAGE))?;
        // SAFETY: shmget takes numbers only.
        same("id of the key", &keyed, &unsafe { libc::shmget(0x5043_4c56, 0, 0) })?;
        let passing = attach(idle, 0)?;
        same("byte of the idle one", &b'i', &peek(passing as *const u8, PAGE))?;
        // SAFETY: it was attached above, and nothing refers to it.
        ensure!(unsafe { libc::shmdt(passing as *const libc::c_void) } == 0, "cannot detach");
        turn += 1;
        poke(memory as *mut u8, 3 * PAGE, turn);
        poke(gone as *mut u8, PAGE, turn);
        Ok(())
    }))
}
