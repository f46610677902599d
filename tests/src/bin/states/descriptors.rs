//! Descriptors that are no files and no sockets: pipes, epoll, eventfd, signalfd.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Result, ensure};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::{Check, State, calls, same};

pub(crate) const STATES: &[State] = &[
    ("pipe", pipe),
    ("packet-pipe", packet_pipe),
    ("pipe-without-writer", pipe_without_writer),
    ("fifo", fifo),
    ("epoll", epoll),
    ("eventfd", eventfd),
    ("signalfd", signalfd),
];

/// Whether a read would not block.
pub(crate) fn readable(fd: BorrowedFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO) == Ok(1)
}

/// Bytes that are easy to tell apart.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

/// Contents beyond the default size, a size of its own, and flags that differ between the ends.
fn pipe() -> Result<Check> {
    let (mut reader, mut writer) = std::io::pipe()?;
    let size = calls::fcntl(writer.as_fd(), libc::F_SETPIPE_SZ, 1 << 20)?;
    calls::fcntl(reader.as_fd(), libc::F_SETFL, libc::O_NONBLOCK)?;
    let contents = pattern(100_000);
    writer.write_all(&contents)?;
    Ok(Box::new(move || {
        same("size", &size, &calls::fcntl(reader.as_fd(), libc::F_GETPIPE_SZ, 0)?)?;
        let flags = |fd: BorrowedFd| calls::fcntl(fd, libc::F_GETFL, 0).map(|flags| flags & libc::O_NONBLOCK);
        same("flags of the ends", &(libc::O_NONBLOCK, 0), &(flags(reader.as_fd())?, flags(writer.as_fd())?))?;
        same("bytes that wait", &100_000, &calls::waiting(reader.as_fd())?)?;
        let mut found = vec![0; contents.len()];
        reader.read_exact(&mut found)?;
        ensure!(found == contents, "the contents differ");
        ensure!(!readable(reader.as_fd()), "there is more in it than was written");
        Ok(writer.write_all(&contents)?)
    }))
}

/// A pipe that still keeps the borders of packets. It is empty between checks: unread packets are refused.
fn packet_pipe() -> Result<Check> {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_DIRECT | OFlag::O_CLOEXEC)?;
    Ok(Box::new(move || {
        nix::unistd::write(&writer, b"one")?;
        nix::unistd::write(&writer, b"three")?;
        let mut buffer = [0; 64];
        for packet in [&b"one"[..], b"three"] {
            ensure!(readable(reader.as_fd()), "a packet is missing");
            let length = nix::unistd::read(&reader, &mut buffer)?;
            same("packet", &packet, &&buffer[..length])?;
        }
        Ok(())
    }))
}

/// What was written before the last writer closed can be read, then the end.
fn pipe_without_writer() -> Result<Check> {
    let fill = || -> Result<std::io::PipeReader> {
        let (reader, mut writer) = std::io::pipe()?;
        writer.write_all(b"last words")?;
        Ok(reader)
    };
    let mut reader = fill()?;
    Ok(Box::new(move || {
        let mut found = String::new();
        reader.read_to_string(&mut found)?;
        same("contents", &"last words".to_owned(), &found)?;
        reader = fill()?;
        Ok(())
    }))
}

fn fifo() -> Result<Check> {
    let path = "/tmp/fifo";
    let mut both = std::fs::File::options().read(true).write(true).open(path)?;
    both.write_all(b"through a name")?;
    Ok(Box::new(move || {
        ensure!(readable(both.as_fd()), "the contents are gone");
        let mut found = [0; 14];
        both.read_exact(&mut found)?;
        same("contents", b"through a name", &found)?;
        Ok(both.write_all(b"through a name")?)
    }))
}

/// Watches with their data: one that is ready, one that becomes ready, one that fired and is disarmed.
fn epoll() -> Result<Check> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let ready = EventFd::from_value_and_flags(1, EfdFlags::EFD_NONBLOCK)?;
    let later = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK)?;
    let once = EventFd::from_value_and_flags(1, EfdFlags::EFD_NONBLOCK)?;
    epoll.add(&once, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, 3))?;
    epoll.wait(&mut [EpollEvent::empty(); 4], EpollTimeout::ZERO)?;
    epoll.add(&ready, EpollEvent::new(EpollFlags::EPOLLIN, 0x1122_3344_5566_7788))?;
    epoll.add(&later, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, u64::MAX))?;
    let events = move || -> Result<Vec<u64>> {
        let mut events = [EpollEvent::empty(); 4];
        let count = epoll.wait(&mut events, EpollTimeout::ZERO)?;
        let mut data: Vec<u64> = events[..count].iter().map(EpollEvent::data).collect();
        data.sort_unstable();
        Ok(data)
    };
    Ok(Box::new(move || {
        let _alive = &once;
        same("ready", &vec![0x1122_3344_5566_7788], &events()?)?;
        later.write(1)?;
        same("ready with the second", &vec![0x1122_3344_5566_7788, u64::MAX], &events()?)?;
        same("value of the first", &1, &ready.read()?)?;
        same("ready with nothing", &vec![], &events()?)?;
        ready.write(1)?;
        later.read()?;
        Ok(())
    }))
}

fn eventfd() -> Result<Check> {
    let plain = EventFd::from_value_and_flags(7, EfdFlags::EFD_NONBLOCK)?;
    let semaphore = EventFd::from_value_and_flags(2, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_SEMAPHORE)?;
    Ok(Box::new(move || {
        same("value", &7, &plain.read()?)?;
        plain.write(7)?;
        let tokens = [semaphore.read().ok(), semaphore.read().ok(), semaphore.read().ok()];
        same("tokens", &[Some(1), Some(1), None], &tokens)?;
        semaphore.write(2)?;
        Ok(())
    }))
}

fn signalfd() -> Result<Check> {
    let set = SigSet::from(Signal::SIGURG);
    set.thread_block()?;
    let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK)?;
    raise(Signal::SIGURG)?;
    Ok(Box::new(move || {
        let found = fd.read_signal()?.map(|info| info.ssi_signo);
        same("signal", &u32::try_from(libc::SIGURG).ok(), &found)?;
        Ok(raise(Signal::SIGURG)?)
    }))
}
