//! TCP connections that no descriptor leads to, and that are not over: no copy of the container can have them.
//!
//! A handshake whose client has not answered yet: the client may have the answer to its SYN already, and would meet a
//! RST at the copy. And what a program has closed while the peer had not taken it all: the kernel sends it to the end by
//! itself, or tries to. Both last as long as a packet and its answer take, unless a peer does not answer; then they
//! are seen by that they are sent again and again, and are given up: such a peer meets a RST should it come back.
//!
//! Kernel: sock_diag(7).

use std::time::Duration;

use super::{Connections, DiagFailure, SockDiag, SocketRefusal};
use crate::model::Deadline;
use crate::proc::inet_diag::{CLOSING, Connection, FIN_WAIT1, LAST_ACK, LISTEN, SYN_RECV};

const STATES: [u8; 4] = [SYN_RECV, FIN_WAIT1, CLOSING, LAST_ACK];
/// The same and listeners, whose connections may wait to be accepted.
const STATES_OF_A_MOMENT: [u8; 5] = [SYN_RECV, FIN_WAIT1, CLOSING, LAST_ACK, LISTEN];
/// A client that has not answered a SYN-ACK and its repetition (after a second) does not answer.
const SILENT_HANDSHAKE: u8 = 1;
/// A peer that has not acknowledged so many repetitions (after 0.2, 0.4, 0.8 seconds and more) does not answer.
const SILENT_PEER: u8 = 3;
/// How often it is looked again while the container runs.
const LOOK: Duration = Duration::from_millis(1);

impl SockDiag {
    /// What is unfinished now of the connections that are carried, each a refusal that passes.
    pub fn unfinished(&self, fate: Connections) -> Result<Vec<SocketRefusal>, DiagFailure> {
        let connections = self.connections(&STATES)?;
        let carried = connections.iter().filter(|connection| is_carried(connection, fate));
        Ok(carried.filter_map(name).map(SocketRefusal::transient).collect())
    }

    /// Waits, while the container runs, for a moment in which nothing is unfinished and every connection is accepted, but
    /// not longer than `limit`.
    pub fn await_finish(&self, limit: Duration, fate: Connections) -> Result<(), DiagFailure> {
        let deadline = Deadline::after(limit);
        let waits = |connection: &Connection| is_carried(connection, fate) && is_in_the_way(connection);
        while self.connections(&STATES_OF_A_MOMENT)?.iter().any(waits) && !deadline.passed() {
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// Listeners always are; connections with others may be about to end anyway.
fn is_carried(connection: &Connection, fate: Connections) -> bool {
    let is_inside = |address: std::net::SocketAddr| address.ip().to_canonical().is_loopback();
    fate == Connections::Carry
        || connection.state == LISTEN
        || (is_inside(connection.local) && is_inside(connection.remote))
}

/// True for what a dump would refuse at this instant.
fn is_in_the_way(connection: &Connection) -> bool {
    (connection.state == LISTEN && connection.receive_queue > 0) || name(connection).is_some()
}

/// What to call a connection that is unfinished; `None` for one that is not, or never will be.
fn name(connection: &Connection) -> Option<String> {
    let Connection { state, retransmits, local, remote, receive_queue: _, send_queue, inode } = connection;
    match *state {
        SYN_RECV if *retransmits < SILENT_HANDSHAKE => {
            Some(format!("TCP handshake of {remote} with {local}, which is not complete"))
        }
        FIN_WAIT1 | CLOSING | LAST_ACK if *inode == 0 && *send_queue > 0 && *retransmits < SILENT_PEER => {
            let what = "that its program has closed, with bytes that the peer has not acknowledged";
            Some(format!("TCP connection {local} - {remote} {what}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(state: u8, retransmits: u8, send_queue: u32, inode: u32) -> Connection {
        let (local, remote) = ("10.0.0.1:80".parse().unwrap(), "10.0.0.2:5000".parse().unwrap());
        Connection { state, retransmits, local, remote, receive_queue: 0, send_queue, inode }
    }

    #[test]
    fn a_listener_is_in_the_way_while_connections_wait_for_it() {
        let listener = |receive_queue| Connection { receive_queue, ..connection(LISTEN, 0, 128, 77) };
        assert!(is_in_the_way(&listener(1)) && !is_in_the_way(&listener(0)));
        assert!(!is_in_the_way(&Connection { receive_queue: 9, ..connection(1, 0, 0, 77) }));
        assert!(is_in_the_way(&connection(SYN_RECV, 0, 0, 0)));
    }

    #[test]
    fn connections_that_end_are_in_no_way_but_those_inside_are() {
        let outside = connection(LAST_ACK, 0, 1, 0);
        let inside = Connection {
            local: "127.0.0.1:80".parse().unwrap(),
            remote: "127.0.0.1:5000".parse().unwrap(),
            ..connection(LAST_ACK, 0, 1, 0)
        };
        let carried = |connection, fate| is_carried(connection, fate);
        assert!(!carried(&outside, Connections::Close) && carried(&outside, Connections::Carry));
        assert!(carried(&inside, Connections::Close));
        assert!(carried(&connection(LISTEN, 0, 0, 7), Connections::Close));
    }

    #[test]
    fn what_waits_for_a_living_peer_is_unfinished() {
        assert!(name(&connection(SYN_RECV, 0, 0, 0)).unwrap().contains("handshake of 10.0.0.2:5000"));
        for state in [FIN_WAIT1, CLOSING, LAST_ACK] {
            assert!(name(&connection(state, 2, 1, 0)).unwrap().contains("10.0.0.1:80 - 10.0.0.2:5000"));
            assert_eq!(name(&connection(state, 2, 1, 77)), None, "a descriptor leads to it");
            assert_eq!(name(&connection(state, 0, 0, 0)), None, "everything is acknowledged");
            assert_eq!(name(&connection(state, 3, 1, 0)), None, "the peer is silent");
        }
        assert_eq!(name(&connection(SYN_RECV, 1, 0, 0)), None, "the client is silent");
    }
}
