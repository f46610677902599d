//! Sockets that are built, and the step that brings their connections to life.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{Shutdown, shutdown};

use super::error::{Of, SocketsError};
use super::unix::BoundFile;
use super::{options, tcp};
use crate::model::FileId;
use crate::model::socket::Socket;
use crate::model::socket_options::Moment;
use crate::sys::socket::set_int;
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
    /// Ends the repair mode of every connection and sends what was not sent. The network must be open; the tasks
    /// do not run yet. A connection that fails does not keep the others from living: the first error is returned
    /// when all are done.
    pub fn go(self) -> Result<(), SocketsError> {
        let results: Vec<_> = self.connections.into_iter().map(Live::go).collect();
        for file in self.files {
            file.keep();
        }
        results.into_iter().collect()
    }

    /// How many connections [`Self::go`] will bring to life.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }
}

/// A connection in repair mode.
#[derive(Debug)]
pub(super) struct Live {
    file: FileId,
    fd: OwnedFd,
    /// Options and buffers that wait for the data.
    socket: Socket,
    finish: bool,
    to_send: Vec<u8>,
    busy: bool,
}

impl Live {
    /// `finish`: our FIN follows the data. `to_send` is what the kernel does not hold yet.
    pub(super) fn new(file: FileId, fd: OwnedFd, socket: &Socket, finish: bool, to_send: &[u8]) -> Self {
        let busy = matches!(&socket.kind, crate::model::socket::SocketKind::TcpConnection(c) if !c.send_queue.is_empty());
        let socket = Socket {
            uid: socket.uid,
            gid: socket.gid,
            reuse_address: socket.reuse_address,
            buffers: socket.buffers,
            options: socket.options.clone(),
            kind: crate::model::socket::SocketKind::TcpClosed { family: 0, bound: None, dead: false },
        };
        Self { file, fd, socket, finish, to_send: to_send.to_vec(), busy }
    }

    fn go(self) -> Result<(), SocketsError> {
        set_repair(self.fd.as_fd(), Repair::Off).of(self.file, "switch off the repair mode")?;
        tcp::write_all(&self.fd, &self.to_send).of(self.file, "send the rest of the send queue")?;
        if self.finish {
            self.send_fin().of(self.file, "shut the sending side")?;
        }
        if self.socket.reuse_address {
            options::reuse(self.fd.as_fd(), true).of(self.file, "set SO_REUSEADDR of the socket")?;
        }
        if self.busy {
            self.settle().of(self.file, "settle the state")?;
        }
        options::apply(self.file, &self.fd, &self.socket, Moment::AfterData)
    }

    /// ENOTCONN: the peer has answered with RST meanwhile, and the connection is over.
    fn send_fin(&self) -> Result<(), Errno> {
        match shutdown(self.fd.as_raw_fd(), Shutdown::Write) {
            Err(Errno::ENOTCONN) => Ok(()),
            result => result,
        }
    }

    fn settle(&self) -> Result<(), Errno> {
        options::settle(self.fd.as_fd(), &self.socket, options::Sizes { send: true, receive: false })?;
        set_int(self.fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 0)
    }
}
