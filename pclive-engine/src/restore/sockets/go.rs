//! Sockets that are built, and the step that brings their connections to life.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, shutdown};

use super::error::{Of, SocketsError};
use super::unix::BoundFile;
use super::{options, tcp};
use crate::model::FileId;
use crate::model::socket::{Buffers, SocketOption};
use crate::model::socket_options::Moment;
use crate::sys::socket::{get_int, set_int};
use crate::sys::tcp::{Repair, set_repair};

/// Every socket of the container. Dropping it before [`Self::go`] undoes it: connections end without a packet (once
/// the descriptors that were handed on are closed too), files that unix sockets were bound to are put back.
#[derive(Debug, Default)]
pub struct BuiltSockets {
    /// The descriptors; the caller hands them to the restorers.
    pub fds: HashMap<FileId, OwnedFd>,
    pub(super) connections: Vec<Live>,
    pub(super) files: Vec<BoundFile>,
}

impl BuiltSockets {
    /// [`Self::wake`] with a network that is open.
    pub fn go(self) -> Result<(), SocketsError> {
        let (awake, woken) = self.wake();
        awake.push();
        woken
    }

    /// Ends the repair mode of every connection and hands the kernel what was not sent. The tasks do not run yet. A
    /// connection that fails does not keep the others from living: the first error is returned when all are done.
    /// What a network that is still locked has dropped goes out by [`Awake::push`].
    pub fn wake(self) -> (Awake, Result<(), SocketsError>) {
        let (mut awake, mut first) = (Awake::default(), Ok(()));
        for connection in self.connections {
            match connection.go() {
                Ok(speaking) => awake.speaking.extend(speaking),
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "a TCP connection is lost");
                    first = first.and(Err(error));
                }
            }
        }
        self.files.into_iter().for_each(BoundFile::keep);
        (awake, first)
    }

    /// How many connections [`Self::go`] will bring to life.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }
}

/// Connections that live and have something to say.
#[derive(Debug, Default)]
pub struct Awake {
    speaking: Vec<Speaking>,
}

impl Awake {
    /// The network is open: says at once what was dropped before. Without it, that waits for TCP's timer.
    pub fn push(self) {
        for speaking in self.speaking {
            if let Err(errno) = speaking.push() {
                // A connection that is over has nothing to say.
                tracing::debug!(%errno, file = ?speaking.file, "a TCP connection waits for its timer");
            }
        }
    }
}

/// A connection with something to say.
#[derive(Debug)]
struct Speaking {
    file: FileId,
    fd: OwnedFd,
    reuse_address: bool,
    ask: bool,
}

impl Speaking {
    fn push(&self) -> Result<(), Errno> {
        let fd = self.fd.as_fd();
        if self.ask {
            // It is off already, so that no task finds a mute socket if this agent dies: this sends the window probe.
            set_repair(fd, Repair::Off)?;
            if self.reuse_address {
                options::reuse(fd, true)?;
            }
        }
        let before = get_int(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY)?;
        // Setting it sends what waits.
        set_int(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
        if before == 0 {
            set_int(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 0)?;
        }
        Ok(())
    }
}

/// A connection in repair mode, and what it is told when the network is open.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) file: FileId,
    pub(super) fd: OwnedFd,
    /// `SO_REUSEADDR`, which the end of the repair mode resets.
    pub(super) reuse_address: bool,
    /// Those of [`Moment::AfterData`] are still to be set.
    pub(super) options: Vec<SocketOption>,
    /// The sizes to go back to; `None` if the send queue was empty, and nothing was changed for it.
    pub(super) buffers: Option<Buffers>,
    /// Sent by the original, and not held by the kernel yet.
    pub(super) again: Bytes,
    /// What follows it, and was never sent.
    pub(super) unsent: Bytes,
    /// Nothing of the queue need leave by itself: the peer is to be asked how much it has, and takes.
    pub(super) ask: bool,
    /// Our FIN follows the data.
    pub(super) finish: bool,
}

impl Live {
    /// The connection again, if it has something to say.
    fn go(self) -> Result<Option<Speaking>, SocketsError> {
        // A probe would be dropped with everything else, and the kernel would take that for congestion.
        set_repair(self.fd.as_fd(), Repair::OffSilently).of(self.file, "switch off the repair mode")?;
        tcp::write_all(&self.fd, &self.again, MsgFlags::MSG_EOR)
            .and_then(|()| tcp::write_all(&self.fd, &self.unsent, MsgFlags::empty()))
            .of(self.file, "send the rest of the send queue")?;
        if self.finish {
            self.send_fin().of(self.file, "shut the sending side")?;
        }
        if self.reuse_address {
            options::reuse(self.fd.as_fd(), true).of(self.file, "set SO_REUSEADDR of the socket")?;
        }
        if let Some(buffers) = self.buffers {
            self.settle(buffers).of(self.file, "settle the state")?;
        }
        options::apply(self.file, &self.fd, &self.options, Moment::AfterData)?;
        let speaks = self.ask || self.finish || !(self.again.is_empty() && self.unsent.is_empty());
        let Self { file, fd, reuse_address, ask, .. } = self;
        Ok(speaks.then_some(Speaking { file, fd, reuse_address, ask }))
    }

    /// ENOTCONN: the peer has answered with RST meanwhile, and the connection is over.
    fn send_fin(&self) -> Result<(), Errno> {
        match shutdown(self.fd.as_raw_fd(), Shutdown::Write) {
            Err(Errno::ENOTCONN) => Ok(()),
            result => result,
        }
    }

    fn settle(&self, buffers: Buffers) -> Result<(), Errno> {
        options::settle(self.fd.as_fd(), buffers, options::Sizes { send: true, receive: false })?;
        set_int(self.fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 0)
    }
}
