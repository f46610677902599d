//! sock_diag(7): the request for all unix sockets, and the answer's bytes -> [`UnixSocket`]; the question whether one
//! TCP socket has an MD5 key, and its answer.
//!
//! Pure. An answer that is cut off or contradicts itself is an error, never a panic. Integers are in the host's
//! byte order.

use std::net::{IpAddr, SocketAddr};

/// What the kernel tells about one unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnixSocket {
    /// Inode on sockfs (`st_ino` of a descriptor).
    pub inode: u32,
    /// `SOCK_STREAM`, `SOCK_DGRAM` or `SOCK_SEQPACKET`.
    pub socket_type: u8,
    /// `TCP_*` number: 1 connected, 7 not, 10 listening.
    pub state: u8,
    /// Address as in `sun_path`: a path (with its NUL) or NUL and an abstract name; empty if unbound.
    pub name: Vec<u8>,
    /// Inode and device (kernel encoding) of the file that it is bound to.
    pub file: Option<(u32, u32)>,
    /// Inode of the peer, 0 if that is closed; `None` without a peer.
    pub peer: Option<u32>,
    /// Bytes to read; a listener: connections to accept.
    pub receive_queue: u32,
    /// Bytes sent and not read by the peer; a listener: backlog.
    pub send_queue: u32,
    /// `SHUT_*`: bit 0 receive, bit 1 send.
    pub shutdown: u8,
}

/// Why an answer cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DiagError {
    /// A length leads past the end of the message.
    #[error("a sock_diag message is cut off")]
    Truncated,
    /// The kernel refused the request.
    #[error("sock_diag refused the request with errno {0}")]
    Refused(i32),
}

/// More messages follow, or the dump is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Receive again.
    More,
    /// `NLMSG_DONE`.
    Done,
}

const HEADER: usize = 16;
const MESSAGE: usize = 16;
/// `sizeof(struct inet_diag_msg)`.
const INET_MESSAGE: usize = 72;
/// `INET_DIAG_MD5SIG`.
const ATTRIBUTE_MD5: u16 = 18;
const TYPE_ERROR: u16 = 2;
const TYPE_DONE: u16 = 3;
pub(super) const TYPE_BY_FAMILY: u16 = 20;

/// The request for every unix socket of the namespace: name, file, peer, queue lengths (and always shutdown).
pub fn unix_dump_request() -> [u8; 40] {
    let mut request = [0; 40];
    let mut put = |at: usize, bytes: &[u8]| {
        for (slot, byte) in request.iter_mut().skip(at).zip(bytes) {
            *slot = *byte;
        }
    };
    put(0, &40_u32.to_ne_bytes());
    put(4, &TYPE_BY_FAMILY.to_ne_bytes());
    // NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH
    put(6, &0x301_u16.to_ne_bytes());
    // struct unix_diag_req: family AF_UNIX, all states, UDIAG_SHOW_{NAME,VFS,PEER,RQLEN}, no cookie.
    put(16, &[1]);
    put(20, &u32::MAX.to_ne_bytes());
    put(28, &0x17_u32.to_ne_bytes());
    put(32, &[0xff; 8]);
    request
}

/// The request for one TCP socket (`struct inet_diag_req_v2`).
pub fn tcp_request(local: SocketAddr, remote: Option<SocketAddr>) -> [u8; 72] {
    let mut request = [0; 72];
    let mut put = |at: usize, bytes: &[u8]| {
        for (slot, byte) in request.iter_mut().skip(at).zip(bytes) {
            *slot = *byte;
        }
    };
    put(0, &72_u32.to_ne_bytes());
    put(4, &TYPE_BY_FAMILY.to_ne_bytes());
    // NLM_F_REQUEST; then the family, IPPROTO_TCP, INET_DIAG_INFO (which brings the keys along), all states.
    put(6, &1_u16.to_ne_bytes());
    put(16, &[if local.is_ipv4() { 2 } else { 10 }, 6, 2]);
    put(20, &u32::MAX.to_ne_bytes());
    put(24, &local.port().to_be_bytes());
    put(26, &remote.map_or(0, |remote| remote.port()).to_be_bytes());
    for (at, address) in [(28, Some(local)), (44, remote)] {
        match address.map(|address| address.ip()) {
            Some(IpAddr::V4(ip)) => put(at, &ip.octets()),
            Some(IpAddr::V6(ip)) => put(at, &ip.octets()),
            None => {}
        }
    }
    // No interface, no cookie.
    put(64, &[0xff; 8]);
    request
}

/// Whether the answer to [`tcp_request`] tells of MD5 keys (Linux 4.14; only with CAP_NET_ADMIN). ENOENT inside
/// [`DiagError::Refused`]: there is no such socket.
pub fn parse_md5(bytes: &[u8]) -> Result<bool, DiagError> {
    let length = word(bytes, 0).ok_or(DiagError::Truncated)? as usize;
    let body = bytes.get(HEADER..length).ok_or(DiagError::Truncated)?;
    if half(bytes, 4) == Some(TYPE_ERROR) {
        let errno = word(body, 0).ok_or(DiagError::Truncated)?.cast_signed();
        return Err(DiagError::Refused(errno.wrapping_neg()));
    }
    let mut attributes = body.get(INET_MESSAGE..).ok_or(DiagError::Truncated)?;
    while !attributes.is_empty() {
        let length = usize::from(half(attributes, 0).ok_or(DiagError::Truncated)?);
        if half(attributes, 2) == Some(ATTRIBUTE_MD5) {
            return Ok(true);
        }
        attributes.get(4..length).ok_or(DiagError::Truncated)?;
        attributes = attributes.get(aligned(length)..).unwrap_or_default();
    }
    Ok(false)
}

/// Appends the sockets of one received buffer (one or more messages) to `sockets`.
pub fn parse_unix(bytes: &[u8], sockets: &mut Vec<UnixSocket>) -> Result<Progress, DiagError> {
    for message in messages(bytes) {
        match message? {
            Message::Done => return Ok(Progress::Done),
            Message::Other(TYPE_BY_FAMILY, body) => sockets.push(parse_socket(body)?),
            Message::Other(..) => {}
        }
    }
    Ok(Progress::More)
}

/// A netlink message of an answer that is not a refusal.
pub(super) enum Message<'a> {
    /// `NLMSG_DONE`.
    Done,
    /// Its type and its body.
    Other(u16, &'a [u8]),
}

/// The messages of a received buffer, one after the other; the last one is an error if there is one.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Result<Message<'_>, DiagError>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let first = first_message(bytes);
        bytes = first.as_ref().map_or(&[], |(_, rest)| *rest);
        Some(first.map(|(message, _)| message))
    })
}

/// The first message of a buffer, and the bytes behind it.
fn first_message(bytes: &[u8]) -> Result<(Message<'_>, &[u8]), DiagError> {
    let length = word(bytes, 0).ok_or(DiagError::Truncated)? as usize;
    let kind = half(bytes, 4).ok_or(DiagError::Truncated)?;
    let body = bytes.get(HEADER..length).ok_or(DiagError::Truncated)?;
    let message = match kind {
        TYPE_DONE => Message::Done,
        TYPE_ERROR => {
            let errno = word(body, 0).ok_or(DiagError::Truncated)?.cast_signed();
            return Err(DiagError::Refused(errno.wrapping_neg()));
        }
        kind => Message::Other(kind, body),
    };
    Ok((message, bytes.get(aligned(length)..).unwrap_or_default()))
}

/// `struct unix_diag_msg` and its attributes.
fn parse_socket(body: &[u8]) -> Result<UnixSocket, DiagError> {
    let mut attributes = body.get(MESSAGE..).ok_or(DiagError::Truncated)?;
    let mut socket = UnixSocket {
        inode: word(body, 4).ok_or(DiagError::Truncated)?,
        socket_type: body.get(1).copied().unwrap_or_default(),
        state: body.get(2).copied().unwrap_or_default(),
        ..UnixSocket::default()
    };
    while !attributes.is_empty() {
        let length = usize::from(half(attributes, 0).ok_or(DiagError::Truncated)?);
        let kind = half(attributes, 2).ok_or(DiagError::Truncated)?;
        let value = attributes.get(4..length).ok_or(DiagError::Truncated)?;
        take_attribute(&mut socket, kind, value)?;
        attributes = attributes.get(aligned(length)..).unwrap_or_default();
    }
    Ok(socket)
}

fn take_attribute(socket: &mut UnixSocket, kind: u16, value: &[u8]) -> Result<(), DiagError> {
    let number = |at| word(value, at).ok_or(DiagError::Truncated);
    match kind {
        0 => socket.name = value.to_vec(),
        1 => socket.file = Some((number(0)?, number(4)?)),
        2 => socket.peer = Some(number(0)?),
        4 => (socket.receive_queue, socket.send_queue) = (number(0)?, number(4)?),
        6 => socket.shutdown = *value.first().ok_or(DiagError::Truncated)?,
        _ => {}
    }
    Ok(())
}

/// Messages and attributes are padded to four bytes.
fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

pub(super) fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(body);
        bytes
    }

    fn one_socket() -> Vec<u8> {
        let mut body = vec![1, 5, 1, 0];
        body.extend(77_u32.to_ne_bytes());
        body.extend([0; 8]);
        body.extend(attribute(0, b"\0name"));
        body.extend(attribute(2, &78_u32.to_ne_bytes()));
        body.extend(attribute(4, &[3, 0, 0, 0, 9, 0, 0, 0]));
        body.extend(attribute(6, &[2]));
        body
    }

    #[test]
    fn a_socket_and_the_end_are_read() {
        let mut bytes = message(TYPE_BY_FAMILY, &one_socket());
        bytes.extend(message(TYPE_DONE, &[0; 4]));
        let mut sockets = Vec::new();
        assert_eq!(parse_unix(&bytes, &mut sockets), Ok(Progress::Done));
        let expected = UnixSocket {
            inode: 77,
            socket_type: 5,
            state: 1,
            name: b"\0name".to_vec(),
            file: None,
            peer: Some(78),
            receive_queue: 3,
            send_queue: 9,
            shutdown: 2,
        };
        assert_eq!(sockets, [expected]);
    }

    #[test]
    fn a_refusal_tells_its_errno() {
        let bytes = message(TYPE_ERROR, &(-2_i32).to_ne_bytes());
        assert_eq!(parse_unix(&bytes, &mut Vec::new()), Err(DiagError::Refused(2)));
    }

    #[test]
    fn a_cut_message_is_an_error() {
        let bytes = message(TYPE_BY_FAMILY, &one_socket());
        for length in 1..bytes.len() {
            assert_eq!(parse_unix(&bytes[..length], &mut Vec::new()), Err(DiagError::Truncated), "{length}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic_or_hang(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_unix(&bytes, &mut Vec::new());
            let _ = parse_md5(&bytes);
        }
    }
}
