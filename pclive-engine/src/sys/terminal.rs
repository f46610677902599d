//! Terminals (ioctl_tty(2)). On the master of a pseudo-terminal, settings, window size, session and foreground group
//! are those of the slave. EIO: the terminal is hung up.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::model::terminal::{Settings, Size};

/// `TIOCSCTTY`, for a remote call: makes the terminal the caller's controlling one. The caller leads a session
/// without one, or EPERM.
pub const SET_CONTROLLING: u64 = libc::TIOCSCTTY;
/// `TIOCNOTTY`, for a remote call: gives the controlling terminal up. A session leader's whole session loses it,
/// and its foreground group gets SIGHUP and SIGCONT.
pub const GIVE_UP_CONTROLLING: u64 = libc::TIOCNOTTY;
/// `TIOCSPGRP`, for a remote call: sets the foreground group. The caller is in the terminal's session. From a
/// background process: SIGTTOU, unless blocked.
pub const SET_FOREGROUND: u64 = libc::TIOCSPGRP;

const _: () = assert!(size_of::<libc::termios2>() == 44);
const _: () = assert!(size_of::<libc::winsize>() == 8);

fn get<T: Copy>(terminal: impl AsFd, request: libc::c_ulong, mut value: T) -> nix::Result<T> {
    // SAFETY: every caller passes a request that stores just a `T` at the address, which is that of a live one.
    Errno::result(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), request, &raw mut value) })?;
    Ok(value)
}

fn set<T: Copy>(terminal: impl AsFd, request: libc::c_ulong, value: T) -> nix::Result<()> {
    // SAFETY: every caller passes a request that reads just a `T` from the address, which is that of a live one.
    Errno::result(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), request, &raw const value) }).map(drop)
}

/// `TIOCGPTN`: the N of `/dev/pts/N`. Master only: ENOTTY.
pub fn number(master: impl AsFd) -> nix::Result<u32> {
    get(master, libc::TIOCGPTN, 0_u32)
}

/// `TIOCGDEV` (Linux 2.6.38): device number of the terminal itself, also behind `/dev/tty`.
pub fn device(terminal: impl AsFd) -> nix::Result<u64> {
    get(terminal, libc::TIOCGDEV, 0_u32).map(u64::from)
}

/// `TIOCGPTPEER` (Linux 4.13): opens the slave without a path. `flags`: `O_*`. EIO: it is locked.
pub fn open_slave(master: impl AsFd, flags: i32) -> nix::Result<OwnedFd> {
    let flags = flags | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the request takes an integer and touches no memory of ours.
    let fd = unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTPEER, flags) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `TCGETS2`.
pub fn settings(terminal: impl AsFd) -> nix::Result<Settings> {
    // SAFETY: all zero is a valid value of this structure of numbers.
    let found = get(terminal, libc::TCGETS2, unsafe { std::mem::zeroed::<libc::termios2>() })?;
    Ok(Settings {
        input: found.c_iflag,
        output: found.c_oflag,
        control: found.c_cflag,
        local: found.c_lflag,
        discipline: found.c_line,
        characters: found.c_cc,
        input_speed: found.c_ispeed,
        output_speed: found.c_ospeed,
    })
}

/// `TCSETS2`: at once, without waiting for output.
pub fn set_settings(terminal: impl AsFd, wanted: &Settings) -> nix::Result<()> {
    let wanted = libc::termios2 {
        c_iflag: wanted.input,
        c_oflag: wanted.output,
        c_cflag: wanted.control,
        c_lflag: wanted.local,
        c_line: wanted.discipline,
        c_cc: wanted.characters,
        c_ispeed: wanted.input_speed,
        c_ospeed: wanted.output_speed,
    };
    set(terminal, libc::TCSETS2, wanted)
}

/// `TIOCGWINSZ`.
pub fn size(terminal: impl AsFd) -> nix::Result<Size> {
    let none = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    let found = get(terminal, libc::TIOCGWINSZ, none)?;
    Ok(Size { rows: found.ws_row, columns: found.ws_col, width: found.ws_xpixel, height: found.ws_ypixel })
}

/// `TIOCSWINSZ`: the foreground group gets SIGWINCH if it changes.
pub fn set_size(terminal: impl AsFd, size: Size) -> nix::Result<()> {
    let Size { rows: ws_row, columns: ws_col, width: ws_xpixel, height: ws_ypixel } = size;
    set(terminal, libc::TIOCSWINSZ, libc::winsize { ws_row, ws_col, ws_xpixel, ws_ypixel })
}

/// `TIOCGPTLCK` (Linux 3.8): the slave is locked. Master only.
pub fn is_locked(master: impl AsFd) -> nix::Result<bool> {
    get(master, libc::TIOCGPTLCK, 0_i32).map(|locked| locked != 0)
}

/// `TIOCSPTLCK`. Master only.
pub fn set_locked(master: impl AsFd, locked: bool) -> nix::Result<()> {
    set(master, libc::TIOCSPTLCK, i32::from(locked))
}

/// `TIOCGPKT` (Linux 3.8): packet mode. Master only.
pub fn is_packet(master: impl AsFd) -> nix::Result<bool> {
    get(master, libc::TIOCGPKT, 0_i32).map(|packet| packet != 0)
}

/// `TIOCPKT`. Master only.
pub fn set_packet(master: impl AsFd, packet: bool) -> nix::Result<()> {
    set(master, libc::TIOCPKT, i32::from(packet))
}

/// `TIOCGEXCL` (Linux 3.8): exclusive mode of this end.
pub fn is_exclusive(terminal: impl AsFd) -> nix::Result<bool> {
    get(terminal, libc::TIOCGEXCL, 0_i32).map(|exclusive| exclusive != 0)
}

/// `TIOCEXCL`: this end cannot be opened again without CAP_SYS_ADMIN.
pub fn set_exclusive(terminal: impl AsFd) -> nix::Result<()> {
    // SAFETY: the request takes no argument and touches no memory of ours.
    Errno::result(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCEXCL) }).map(drop)
}

/// `TIOCGETD`: line discipline of this end, `N_TTY` = 0.
pub fn discipline(terminal: impl AsFd) -> nix::Result<i32> {
    get(terminal, libc::TIOCGETD, 0_i32)
}

/// `TIOCINQ`: bytes that can be read from this end; in canonical mode those of complete lines only.
pub fn readable(terminal: impl AsFd) -> nix::Result<i32> {
    get(terminal, libc::FIONREAD, 0_i32)
}

/// `TIOCGSID` on a master: the session whose controlling terminal it is, in the caller's PID namespace (0: not
/// visible there). ENOTTY: none.
pub fn session(master: impl AsFd) -> nix::Result<i32> {
    get(master, libc::TIOCGSID, 0_i32)
}

/// `TIOCGPGRP` on a master: the foreground process group, in the caller's PID namespace; 0: none.
pub fn foreground(master: impl AsFd) -> nix::Result<i32> {
    get(master, libc::TIOCGPGRP, 0_i32)
}
