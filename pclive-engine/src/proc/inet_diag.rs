//! sock_diag(7): the request for the TCP connections of a namespace in given states, and the answer's bytes ->
//! [`Connection`]s.
//!
//! Pure. An answer that is cut off or contradicts itself is an error, never a panic. Integers are in the host's byte
//! order, ports in the network's. The request is the one of Linux 2.6 (`TCPDIAG_GETSOCK`): it alone asks for both
//! address families in one pass over the kernel's table, which is as large as the machine and not as the container.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::sock_diag::{DiagError, Message, Progress, half, messages, word};

/// A state of a connection: `TCP_*` number.
pub type State = u8;
/// A handshake of a client that has not answered yet.
pub const SYN_RECV: State = 3;
/// Closed here; the peer has not acknowledged it.
pub const FIN_WAIT1: State = 4;
/// Closed at both ends, here last; not acknowledged.
pub const LAST_ACK: State = 9;
/// A listener.
pub const LISTEN: State = 10;
/// Closed at both ends at once; not acknowledged.
pub const CLOSING: State = 11;
/// How the kernel keeps handshakes in its table; they are told as [`SYN_RECV`].
const NEW_SYN_RECV: State = 12;

const REQUEST_BYTES: usize = 76;
/// `sizeof(struct inet_diag_msg)`.
const MESSAGE_BYTES: usize = 72;
const TYPE_TCP: u16 = 18;
const FAMILY_INET6: u8 = 10;

/// What the kernel tells about one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Its state.
    pub state: State,
    /// How often what waits was sent again without an answer.
    pub retransmits: u8,
    /// The container's end.
    pub local: SocketAddr,
    /// The peer.
    pub remote: SocketAddr,
    /// Bytes that the program has not read; of a listener, connections that it has not accepted.
    pub receive_queue: u32,
    /// Bytes that the peer has not acknowledged, a FIN counted as one.
    pub send_queue: u32,
    /// Inode of its socket; 0: no descriptor leads to it, or not yet.
    pub inode: u32,
}

/// The request for every TCP connection of the namespace in one of `states`.
pub fn request(states: &[State]) -> [u8; REQUEST_BYTES] {
    let mut request = [0; REQUEST_BYTES];
    let mut put = |at: usize, bytes: &[u8]| {
        for (slot, byte) in request.iter_mut().skip(at).zip(bytes) {
            *slot = *byte;
        }
    };
    let mut bits: u32 = states.iter().fold(0, |bits, state| bits | 1 << state);
    if states.contains(&SYN_RECV) {
        bits |= 1 << NEW_SYN_RECV;
    }
    put(0, &(REQUEST_BYTES as u32).to_ne_bytes());
    put(4, &TYPE_TCP.to_ne_bytes());
    // NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH; then struct inet_diag_req: no address, any family.
    put(6, &0x301_u16.to_ne_bytes());
    put(68, &bits.to_ne_bytes());
    request
}

/// Appends the connections of one received buffer (one or more messages) to `found`.
pub fn parse(bytes: &[u8], found: &mut Vec<Connection>) -> Result<Progress, DiagError> {
    for message in messages(bytes) {
        match message? {
            Message::Done => return Ok(Progress::Done),
            Message::Other(TYPE_TCP | super::sock_diag::TYPE_BY_FAMILY, body) => {
                found.push(connection(body).ok_or(DiagError::Truncated)?);
            }
            Message::Other(..) => {}
        }
    }
    Ok(Progress::More)
}

/// `struct inet_diag_msg`.
fn connection(body: &[u8]) -> Option<Connection> {
    let body = body.get(..MESSAGE_BYTES)?;
    let address = |port: usize, at: usize| -> Option<SocketAddr> {
        let port = u16::from_be(half(body, port)?);
        let ip = if body[0] == FAMILY_INET6 {
            let bytes: [u8; 16] = body.get(at..at + 16)?.try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(bytes))
        } else {
            let bytes: [u8; 4] = body.get(at..at + 4)?.try_into().ok()?;
            IpAddr::V4(Ipv4Addr::from(bytes))
        };
        Some(SocketAddr::new(ip.to_canonical(), port))
    };
    Some(Connection {
        state: body[1],
        retransmits: body[3],
        local: address(4, 8)?,
        remote: address(6, 24)?,
        receive_queue: word(body, 56)?,
        send_queue: word(body, 60)?,
        inode: word(body, 68)?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(16 + body.len()).unwrap().to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(16, 0);
        bytes.extend(body);
        bytes
    }

    fn orphan(family: u8) -> Vec<u8> {
        let mut body = vec![0; MESSAGE_BYTES];
        body[..4].copy_from_slice(&[family, FIN_WAIT1, 1, 2]);
        body[4..6].copy_from_slice(&80_u16.to_be_bytes());
        body[6..8].copy_from_slice(&5000_u16.to_be_bytes());
        body[8..12].copy_from_slice(&[10, 0, 0, 1]);
        body[24..28].copy_from_slice(&[10, 0, 0, 2]);
        body[56..60].copy_from_slice(&3_u32.to_ne_bytes());
        body[60..64].copy_from_slice(&1001_u32.to_ne_bytes());
        body
    }

    #[test]
    fn a_connection_and_the_end_are_read() {
        let mut bytes = message(TYPE_TCP, &orphan(2));
        bytes.extend(message(3, &[0; 4]));
        let mut found = Vec::new();
        assert_eq!(parse(&bytes, &mut found), Ok(Progress::Done));
        let expected = Connection {
            state: FIN_WAIT1,
            retransmits: 2,
            local: "10.0.0.1:80".parse().unwrap(),
            remote: "10.0.0.2:5000".parse().unwrap(),
            receive_queue: 3,
            send_queue: 1001,
            inode: 0,
        };
        assert_eq!(found, [expected]);
    }

    #[test]
    fn a_cut_message_is_an_error() {
        let bytes = message(TYPE_TCP, &orphan(10));
        for length in 1..bytes.len() {
            assert_eq!(parse(&bytes[..length], &mut Vec::new()), Err(DiagError::Truncated), "{length}");
        }
    }

    #[test]
    fn handshakes_are_asked_for_by_both_of_their_states() {
        let request = request(&[SYN_RECV, LAST_ACK]);
        assert_eq!(request[68..72], (1_u32 << 3 | 1 << 9 | 1 << 12).to_ne_bytes());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic_or_hang(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, &mut Vec::new());
        }
    }
}
