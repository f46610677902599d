//! Repair mode as a guard.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use crate::sys::socket::set_int;
use crate::sys::tcp::{Repair, set_repair};

/// A TCP connection of the container that was put into repair mode. Dropping the guard ends the mode: nothing is sent,
/// and the option that the kernel resets with it (`SO_REUSEADDR`) is put back, so that the connection goes on as it was.
#[derive(Debug)]
#[must_use = "dropping the guard ends the repair mode"]
pub struct RepairGuard {
    fd: OwnedFd,
    reuse_address: bool,
    armed: bool,
}

impl RepairGuard {
    /// Switches repair mode on. On `Err` it is off.
    pub(super) fn engage(fd: OwnedFd, reuse_address: bool) -> Result<Self, Errno> {
        set_repair(fd.as_fd(), Repair::On)?;
        Ok(Self { fd, reuse_address, armed: true })
    }

    /// The socket.
    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Ends repair mode until [`Self::silence`]. The agent may die while the tasks are merely stopped: they run on then,
    /// and must not find their connections mute.
    pub(super) fn rest(&self) -> Result<(), Errno> {
        self.release()
    }

    /// Switches repair mode on again. On `Err` it is off.
    pub fn silence(&self) -> Result<(), Errno> {
        set_repair(self.fd.as_fd(), Repair::On)
    }

    /// Leaves the connection as it is: after [`Self::silence`], the last close of the socket sends neither FIN nor RST. For
    /// the time after commit.
    pub fn leave(mut self) {
        self.armed = false;
    }

    fn release(&self) -> Result<(), Errno> {
        set_repair(self.fd.as_fd(), Repair::OffSilently)?;
        if self.reuse_address {
            set_int(self.fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        }
        Ok(())
    }
}

impl Drop for RepairGuard {
    fn drop(&mut self) {
        if self.armed
            && let Err(errno) = self.release()
        {
            tracing::error!(%errno, "cannot end the repair mode of a TCP connection: it stays mute");
        }
    }
}
