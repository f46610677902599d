//! Sockets beyond what nix has: options by number, queue lengths.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use libc::{c_int, c_void, socklen_t};

/// getsockopt(2): the value into `value`; returns its length. ENOPROTOOPT or EOPNOTSUPP: this socket or kernel
/// does not have the option.
pub fn get_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: &mut [u8]) -> nix::Result<usize> {
    let mut length = socklen_t::try_from(value.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: `value` is writable for `length` bytes and `length` is a valid socklen_t, both for the whole call.
    let result = unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast::<c_void>(), &raw mut length)
    };
    Errno::result(result)?;
    Ok((length as usize).min(value.len()))
}

/// getsockopt(2) of an `int`.
pub fn get_int(fd: BorrowedFd<'_>, level: i32, name: i32) -> nix::Result<i32> {
    let mut value = [0; 4];
    get_option(fd, level, name, &mut value)?;
    Ok(i32::from_ne_bytes(value))
}

/// setsockopt(2) of raw bytes.
pub fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> nix::Result<()> {
    let length = socklen_t::try_from(value.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: `value` is readable for `length` bytes for the whole call; the options that the engine sets hold no
    // pointers.
    let result =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast::<c_void>(), length) };
    Errno::result(result).map(drop)
}

/// setsockopt(2) of an `int`.
pub fn set_int(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> nix::Result<()> {
    set_option(fd, level, name, &value.to_ne_bytes())
}

/// setsockopt(2) `SO_MAX_PACING_RATE` (net/core/sock.c; 64 bits on every kernel that has an asynchronous userfaultfd): at
/// most so many bytes a second; `None`: not limited. TCP paces by itself, without a queueing discipline, since Linux 4.13.
/// No errno is to be expected of a TCP socket.
pub fn set_max_pacing_rate(fd: BorrowedFd<'_>, bytes_per_second: Option<u64>) -> nix::Result<()> {
    let rate = bytes_per_second.unwrap_or(u64::MAX);
    set_option(fd, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, &rate.to_ne_bytes())
}

/// ioctls that fill in one `int`: a count of bytes in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// `SIOCINQ`: received and not read (a datagram socket: the next datagram).
    Unread,
    /// `SIOCOUTQ`: TCP: not acknowledged.
    Unacknowledged,
    /// `SIOCOUTQNSD`: TCP: not sent.
    Unsent,
}

/// Bytes in a queue of a socket (tcp(7), ioctls).
pub fn queue_length(fd: BorrowedFd<'_>, queue: Queue) -> nix::Result<i32> {
    let request = match queue {
        Queue::Unread => libc::FIONREAD,
        Queue::Unacknowledged => libc::TIOCOUTQ,
        Queue::Unsent => 0x894b,
    };
    let mut length: c_int = 0;
    // SAFETY: each of the three requests writes one int through the pointer, which is valid for the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut length) };
    Errno::result(result)?;
    Ok(length)
}

/// socket(2) with protocol numbers and types that nix does not name; close-on-exec, non-blocking.
pub fn socket(family: i32, socket_type: i32, protocol: i32) -> nix::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: no pointers.
    let fd =
        unsafe { libc::socket(family, socket_type | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, protocol) };
    Errno::result(fd)?;
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What poll(2) tells about a socket at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    /// Something can be read (`POLLIN`).
    pub readable: bool,
    /// An error waits to be fetched (`POLLERR`).
    pub error: bool,
    /// Nothing more will be received (`POLLRDHUP`).
    pub receive_shut: bool,
}

/// poll(2) of one socket, waiting at most `timeout_ms`.
pub fn readiness(fd: BorrowedFd<'_>, timeout_ms: u16) -> nix::Result<Readiness> {
    let mut polled = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN | libc::POLLRDHUP, revents: 0 };
    // SAFETY: `polled` is one valid pollfd for the whole call.
    let result = unsafe { libc::poll(&raw mut polled, 1, i32::from(timeout_ms)) };
    Errno::result(result)?;
    let has = |event| polled.revents & event != 0;
    Ok(Readiness {
        readable: has(libc::POLLIN),
        error: has(libc::POLLERR),
        receive_shut: has(libc::POLLRDHUP),
    })
}

/// listen(2); the kernel cuts the backlog to net.core.somaxconn.
pub fn listen(fd: BorrowedFd<'_>, backlog: u32) -> nix::Result<()> {
    // SAFETY: no pointers.
    let result = unsafe { libc::listen(fd.as_raw_fd(), c_int::try_from(backlog).unwrap_or(c_int::MAX)) };
    Errno::result(result).map(drop)
}

/// connect(2) with `AF_UNSPEC`: ends a TCP connection at once. A peer gets a RST, but for one in repair mode, of which the
/// program gets ECONNABORTED. The address that the socket was bound to by the kernel is free again.
pub fn disconnect(fd: BorrowedFd<'_>) -> nix::Result<()> {
    let nobody =
        libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: Default::default() };
    let length = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the address lives for the call, and its length is its own.
    Errno::result(unsafe { libc::connect(fd.as_raw_fd(), &raw const nobody, length) }).map(drop)
}
