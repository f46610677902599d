//! Pseudo-terminals (pty(7)) that live inside the container: a master, and slaves below `/dev/pts`.

use serde::{Deserialize, Serialize};

use super::ids::Vpid;

/// Numbers of pseudo-terminals end here: the destination has to open every lower one first to get one.
pub const MOST_TERMINALS: u32 = 1024;

/// Major number of the slaves.
const SLAVE_MAJOR: u64 = 136;

/// The number of the pseudo-terminal whose slave has this device number (as `/proc/PID/stat`, `TIOCGDEV` and
/// `st_rdev` tell it); `None` for any other device.
pub fn number_of_device(device: u64) -> Option<u32> {
    let (major, low, high) = (device >> 8 & 0xfff, device & 0xff, device >> 12 & 0xf_ff00);
    (major == SLAVE_MAJOR).then_some((high | low) as u32)
}

/// A pseudo-terminal, as its master tells of it. Nothing waits to be read at either end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// N of `/dev/pts/N`.
    pub number: u32,
    /// Modes and characters.
    pub settings: Settings,
    /// Window size.
    pub size: Size,
    /// The slave cannot be opened (`TIOCSPTLCK`).
    pub locked: bool,
    /// Reads of the master begin with a control byte (`TIOCPKT`).
    pub packet: bool,
    /// The master is in exclusive mode (`TIOCEXCL`).
    pub exclusive: bool,
    /// Owner of the slave's node: user and group as the agent sees them.
    pub owner: (u32, u32),
    /// Permissions of the slave's node.
    pub mode: u32,
    /// Session whose controlling terminal it is.
    pub session: Option<Session>,
}

/// A session that a terminal controls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The session leader, which lives.
    pub leader: Vpid,
    /// The foreground process group, which has members.
    pub foreground: Vpid,
}

/// `struct termios2` (ioctl_tty(2), `TCGETS2`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// `c_iflag`.
    pub input: u32,
    /// `c_oflag`.
    pub output: u32,
    /// `c_cflag`.
    pub control: u32,
    /// `c_lflag`.
    pub local: u32,
    /// Line discipline; only `N_TTY` (0) is carried.
    pub discipline: u8,
    /// `c_cc`.
    pub characters: [u8; 19],
    /// Baud.
    pub input_speed: u32,
    /// Baud.
    pub output_speed: u32,
}

/// `struct winsize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Size {
    /// Characters.
    pub rows: u16,
    /// Characters.
    pub columns: u16,
    /// Pixels; not used by the kernel.
    pub width: u16,
    /// Pixels; not used by the kernel.
    pub height: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_beyond_a_byte_are_in_the_upper_bits() {
        assert_eq!(number_of_device(0x8800), Some(0));
        assert_eq!(number_of_device(0x88ff), Some(255));
        assert_eq!(number_of_device(0x10_8803), Some(0x103));
        assert_eq!(number_of_device(0), None);
        assert_eq!(number_of_device(0x0441), None, "a serial line");
    }
}
