//! A blocking netlink socket: requests with an acknowledgement, and dumps.
//!
//! Why not the `rtnetlink` crate: it needs a runtime and a connection task per namespace, and its futures run
//! on workers. Here a call is one send and one receive on a socket that was opened inside the namespace, from
//! whatever thread the caller is on; the message types are those of the same project.
//!
//! Every receive has a deadline ([`DEADLINE`]); the kernel answers a request before the send returns.

use std::io;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    Parseable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::error::{Error, Result};
use super::namespace::Namespace;
use super::nftables;

/// How long an answer of the kernel may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// The kernel fills at most 32 KiB in one datagram of a dump.
const DATAGRAM_BYTES: usize = 64 * 1024;
/// A dump that a change interrupted is started again at most so often.
const DUMP_ATTEMPTS: usize = 8;
/// NLM_F_DUMP_INTR: the tables changed while they were listed.
const DUMP_INTERRUPTED: u16 = netlink_packet_core::NLM_F_DUMP_INTR;
/// More entries than any container has; a dump that is longer is refused.
const DUMP_LIMIT: usize = 100_000;

fn open(namespace: &Namespace, protocol: isize, kind: &'static str) -> Result<Socket> {
    let opened = namespace.run(|| {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(DEADLINE.as_secs() as i64, 0))?;
        Ok(socket)
    })?;
    opened.map_err(|source| Error::Socket { kind, namespace: namespace.to_string(), source })
}

fn receive(socket: &Socket) -> io::Result<Vec<u8>> {
    let mut buffer = Vec::with_capacity(DATAGRAM_BYTES);
    loop {
        match socket.recv(&mut buffer, 0) {
            Ok(_) => return Ok(buffer),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn malformed(reason: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_string())
}

/// Links, addresses, routes and neighbours of one namespace (NETLINK_ROUTE).
pub(super) struct RouteSocket {
    socket: Socket,
    sequence: u32,
}

impl RouteSocket {
    /// A socket inside `namespace`.
    pub(super) fn open(namespace: &Namespace) -> Result<Self> {
        Ok(Self { socket: open(namespace, NETLINK_ROUTE, "rtnetlink")?, sequence: 0 })
    }

    /// Makes a change and waits for the kernel's verdict, which is the error. `flags` are added to NLM_F_REQUEST
    /// and NLM_F_ACK.
    pub(super) fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.request(message, flags).map(drop)
    }

    /// Asks for one thing; what the kernel says before its verdict.
    pub(super) fn ask(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.request(message, 0)
    }

    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let sequence = self.send(message, NLM_F_ACK | flags)?;
        let mut said = Vec::new();
        loop {
            for answer in self.answers()? {
                if answer.header.sequence_number != sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Error(error) => return verdict(error.raw_code()).map(|()| said),
                    NetlinkPayload::InnerMessage(message) => said.push(message),
                    _ => {}
                }
            }
        }
    }

    /// Everything that a GET message matches.
    pub(super) fn dump(&mut self, message: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(entries) = self.dump_once(message.clone())? {
                return Ok(entries);
            }
        }
        Err(io::Error::new(io::ErrorKind::WouldBlock, "the tables keep changing"))
    }

    /// None if the tables changed meanwhile.
    fn dump_once(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<Vec<RouteNetlinkMessage>>> {
        let sequence = self.send(message, NLM_F_DUMP)?;
        let (mut entries, mut whole) = (Vec::new(), true);
        loop {
            for answer in self.answers()? {
                if answer.header.sequence_number != sequence {
                    continue;
                }
                whole &= answer.header.flags & DUMP_INTERRUPTED == 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(entry) => entries.push(entry),
                    NetlinkPayload::Error(error) => {
                        verdict(error.raw_code())?;
                        return Ok(whole.then_some(entries));
                    }
                    NetlinkPayload::Done(_) => return Ok(whole.then_some(entries)),
                    _ => {}
                }
            }
            if entries.len() > DUMP_LIMIT {
                return Err(malformed("too many entries"));
            }
        }
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        packet.finalize();
        let mut bytes = vec![0; packet.header.length as usize];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        Ok(self.sequence)
    }

    /// The messages of one datagram.
    fn answers(&self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        let datagram = receive(&self.socket)?;
        let mut answers = Vec::new();
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let buffer = NetlinkBuffer::new_checked(&rest).map_err(malformed)?;
            let length = buffer.length() as usize;
            answers.push(NetlinkMessage::parse(&buffer).map_err(malformed)?);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(answers)
    }
}

/// The packet filter of one namespace (NETLINK_NETFILTER).
pub(super) struct FilterSocket {
    socket: Socket,
}

impl FilterSocket {
    /// A socket inside `namespace`.
    pub(super) fn open(namespace: &Namespace) -> Result<Self> {
        Ok(Self { socket: open(namespace, NETLINK_NETFILTER, "nfnetlink")? })
    }

    /// Sends a whole batch and waits for the acknowledgement of the message `last`. The first error that the
    /// kernel reports, for whichever message, is the error; then nothing of the batch has happened.
    pub(super) fn transact(&self, batch: &[u8], last: u32) -> io::Result<()> {
        self.discard_late_answers()?;
        self.socket.send(batch, 0)?;
        loop {
            let datagram = receive(&self.socket)?;
            for (sequence, code) in errors(&datagram)? {
                verdict(code)?;
                if sequence == last {
                    return Ok(());
                }
            }
        }
    }

    /// The names of all tables.
    pub(super) fn tables(&self) -> io::Result<Vec<String>> {
        self.discard_late_answers()?;
        self.socket.send(&nftables::list_tables(), 0)?;
        let mut names = Vec::new();
        loop {
            let datagram = receive(&self.socket)?;
            errors(&datagram)?.into_iter().try_for_each(|(_, code)| verdict(code))?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let buffer = NetlinkBuffer::new_checked(&rest).map_err(malformed)?;
                match buffer.message_type() {
                    netlink_packet_core::NLMSG_DONE => return Ok(names),
                    nftables::NEW_TABLE => names.extend(nftables::table_name(buffer.payload())),
                    _ => {}
                }
                rest = rest.get((buffer.length() as usize).next_multiple_of(4)..).unwrap_or_default();
            }
            if names.len() > DUMP_LIMIT {
                return Err(malformed("too many tables"));
            }
        }
    }

    /// What an earlier, failed batch left unread.
    fn discard_late_answers(&self) -> io::Result<()> {
        loop {
            let mut buffer = Vec::with_capacity(DATAGRAM_BYTES);
            match self.socket.recv(&mut buffer, nix::libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Sequence number and code of every NLMSG_ERROR in a datagram.
fn errors(datagram: &[u8]) -> io::Result<Vec<(u32, i32)>> {
    let mut found = Vec::new();
    let mut rest = datagram;
    while !rest.is_empty() {
        let buffer = NetlinkBuffer::new_checked(&rest).map_err(malformed)?;
        if buffer.message_type() == netlink_packet_core::NLMSG_ERROR {
            let code = buffer.payload().first_chunk::<4>().ok_or_else(|| malformed("short NLMSG_ERROR"))?;
            found.push((buffer.sequence_number(), i32::from_ne_bytes(*code)));
        }
        rest = rest.get((buffer.length() as usize).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(found)
}

/// The kernel's code: 0, or a negative errno.
fn verdict(code: i32) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) }
}
