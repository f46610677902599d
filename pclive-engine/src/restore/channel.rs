//! Hands descriptors of the agent to a restorer: a unix socket pair whose one end the agent fetched.
//!
//! Kernel: pidfd_getfd(2), Linux 5.6. The restorer's own privileges are never needed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::RestoreError;
use crate::model::{RemoteAddr, Vpid};
use crate::remote::{Call, RemoteError, RemoteTask};
use crate::sys::{pidfd, scm};

/// Descriptors in one message; fewer than the kernel's limit.
const PER_MESSAGE: usize = 200;
/// Where the pieces of a `struct msghdr` go in the scratch memory.
const HEADER: u64 = 0;
const VECTOR: u64 = 64;
const DATA: u64 = 96;
const CONTROL: u64 = 128;
/// `CMSG_SPACE` of a full message.
const CONTROL_BYTES: usize = 16 + (PER_MESSAGE * 4).next_multiple_of(8);

/// A way to send descriptors to one restorer.
#[derive(Debug)]
pub(super) struct FdChannel {
    ours: OwnedFd,
    theirs: u64,
}

impl FdChannel {
    /// Makes the socket pair in the restorer.
    pub(super) fn open(task: &mut dyn RemoteTask) -> Result<Self, RestoreError> {
        let at = task.scratch().start;
        let kind = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as u64;
        let result = task.run(&[Call::new(libc::SYS_socketpair, &[libc::AF_UNIX as u64, kind, 0, at.0])])?;
        need(task.vpid(), result[0], "make a socket pair")?;
        let mut ends = [0; 8];
        task.read(at, &mut ends)?;
        let [a, b, c, d, e, f, g, h] = ends;
        let (first, second) = (i32::from_ne_bytes([a, b, c, d]), i32::from_ne_bytes([e, f, g, h]));
        let process = pidfd::open(task.pid()).map_err(|source| fetch_failed(task.vpid(), source))?;
        let ours = pidfd::getfd(process, first).map_err(|source| fetch_failed(task.vpid(), source))?;
        task.run(&[Call::new(libc::SYS_close, &[first as u64])])?;
        Ok(Self { ours, theirs: second as u64 })
    }

    /// Gives the restorer duplicates of `fds` (they close on exec); returns their numbers there, in order.
    pub(super) fn give(
        &self,
        task: &mut dyn RemoteTask,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Vec<u64>, RestoreError> {
        let mut numbers = Vec::with_capacity(fds.len());
        for part in fds.chunks(PER_MESSAGE) {
            scm::send(self.ours.as_fd(), part).map_err(|source| RestoreError::Give {
                vpid: task.vpid(),
                count: part.len(),
                source,
            })?;
            numbers.extend(self.receive(task, part.len())?);
        }
        Ok(numbers)
    }

    /// Closes the restorer's end.
    pub(super) fn close(self, task: &mut dyn RemoteTask) -> Result<(), RestoreError> {
        task.run(&[Call::new(libc::SYS_close, &[self.theirs])])?;
        Ok(())
    }

    fn receive(&self, task: &mut dyn RemoteTask, count: usize) -> Result<Vec<u64>, RestoreError> {
        let base = task.scratch().start.0;
        let mut bytes = vec![0u8; CONTROL as usize];
        let mut put = |at: u64, value: u64| {
            bytes[at as usize..at as usize + 8].copy_from_slice(&value.to_ne_bytes());
        };
        put(HEADER + 16, base + VECTOR);
        put(HEADER + 24, 1);
        put(HEADER + 32, base + CONTROL);
        put(HEADER + 40, CONTROL_BYTES as u64);
        put(VECTOR, base + DATA);
        put(VECTOR + 8, 1);
        task.write(RemoteAddr(base), &bytes)?;
        let flags = (libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) as u64;
        let result = task.run(&[Call::new(libc::SYS_recvmsg, &[self.theirs, base + HEADER, flags])])?;
        need(task.vpid(), result[0], "receive descriptors")?;
        let mut control = vec![0; 16 + count * 4];
        task.read(RemoteAddr(base + CONTROL), &mut control)?;
        let received = u64::from_ne_bytes(control[..8].try_into().unwrap_or_default());
        if received != control.len() as u64 {
            // The receiver's descriptor limit cuts the message short.
            let source = nix::Error::EMFILE;
            return Err(RestoreError::Give { vpid: task.vpid(), count, source });
        }
        let number = |bytes: &[u8]| u64::from(u32::from_ne_bytes(bytes.try_into().unwrap_or_default()));
        Ok(control[16..].chunks_exact(4).map(number).collect())
    }
}

/// A result that must not be an error.
pub(super) fn need(vpid: Vpid, result: i64, what: &str) -> Result<u64, RemoteError> {
    if (-4095..0).contains(&result) {
        return Err(RemoteError::Call {
            vpid,
            what: what.into(),
            source: nix::Error::from_raw(-result as i32),
        });
    }
    Ok(result as u64)
}

fn fetch_failed(vpid: Vpid, source: nix::Error) -> RestoreError {
    RestoreError::Remote(RemoteError::Call { vpid, what: "fetch a socket".into(), source })
}
