//! Options, buffers, owner; and what is refused.

use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};

use pclive_engine::capture::sockets::Mode;
use pclive_engine::model::socket::{Socket, SocketKind, SocketOption};
use pclive_engine::model::socket_options::TABLE;
use pclive_engine::restore::sockets::SocketsError;
use pclive_engine::sys::socket::{get_int, set_int, set_option, socket};

use crate::namespace::{Namespace, Network, SERVER4, SERVER6};

const IP: i32 = libc::IPPROTO_IP;
const IPV6: i32 = libc::IPPROTO_IPV6;
const TCP: i32 = libc::IPPROTO_TCP;
const SOCKET: i32 = libc::SOL_SOCKET;

fn label(option: &SocketOption) -> &'static str {
    TABLE.iter().find(|spec| (spec.level, spec.name) == (option.level, option.name)).unwrap().label
}

fn labels(socket: &Socket) -> Vec<&'static str> {
    socket.options.iter().map(label).collect()
}

#[test]
fn options_of_a_connection_survive() {
    let network = Network::new();
    for address in [SERVER4, SERVER6] {
        let (server, client, _listener) = network.connect(address);
        let fd = OwnedFd::from(server);
        let ints = [
            (SOCKET, libc::SO_KEEPALIVE, 1),
            (SOCKET, libc::SO_OOBINLINE, 1),
            (SOCKET, libc::SO_MARK, 77),
            (SOCKET, libc::SO_RCVLOWAT, 9),
            (SOCKET, libc::SO_TIMESTAMPNS, 1),
            (TCP, libc::TCP_NODELAY, 1),
            (TCP, libc::TCP_KEEPIDLE, 33),
            (TCP, libc::TCP_KEEPINTVL, 7),
            (TCP, libc::TCP_KEEPCNT, 3),
            (TCP, libc::TCP_USER_TIMEOUT, 12_345),
            (TCP, libc::TCP_LINGER2, 17),
            (TCP, libc::TCP_NOTSENT_LOWAT, 5000),
            (IP, libc::IP_TOS, 0x10),
            (IP, libc::IP_TTL, 33),
            (SOCKET, libc::SO_PRIORITY, 3),
        ];
        let sixes = [(IPV6, libc::IPV6_UNICAST_HOPS, 31), (IPV6, libc::IPV6_TCLASS, 0x20)];
        let sixes = if address == SERVER6 { &sixes[..] } else { &[] };
        for (level, name, value) in ints.iter().chain(sixes) {
            set_int(fd.as_fd(), *level, *name, *value).unwrap();
        }
        let linger = [1_i32.to_ne_bytes(), 5_i32.to_ne_bytes()].concat();
        set_option(fd.as_fd(), SOCKET, libc::SO_LINGER, &linger).unwrap();
        let timeout = [2_i64.to_ne_bytes(), 500_000_i64.to_ne_bytes()].concat();
        set_option(fd.as_fd(), SOCKET, libc::SO_RCVTIMEO, &timeout).unwrap();
        set_option(fd.as_fd(), TCP, libc::TCP_CONGESTION, b"reno").unwrap();
        set_int(fd.as_fd(), SOCKET, libc::SO_SNDBUF, 100_000).unwrap();
        let before = network.server.capture(&fd, Mode::Check).unwrap().socket;
        let fd = network.server.again(fd);
        for (level, name, value) in ints.iter().chain(sixes) {
            assert_eq!(get_int(fd.as_fd(), *level, *name), Ok(*value), "option {level} {name}");
        }
        let after = network.server.capture(&fd, Mode::Check).unwrap().socket;
        assert_eq!(labels(&before), labels(&after));
        assert_eq!(before.options, after.options);
        assert_eq!((before.buffers, before.reuse_address), (after.buffers, after.reuse_address));
        assert_eq!(before.buffers.locks, 1, "the application has set the send buffer only");
        drop(client);
    }
}

#[test]
fn sockets_of_every_kind_come_back_with_the_options_they_had() {
    let host = Namespace::new();
    let kinds = [
        (libc::AF_INET, libc::SOCK_STREAM),
        (libc::AF_INET6, libc::SOCK_STREAM),
        (libc::AF_INET, libc::SOCK_DGRAM),
        (libc::AF_INET6, libc::SOCK_DGRAM),
        (libc::AF_UNIX, libc::SOCK_STREAM),
        (libc::AF_UNIX, libc::SOCK_DGRAM),
        (libc::AF_UNIX, libc::SOCK_SEQPACKET),
    ];
    for (family, socket_type) in kinds {
        let fresh = host.run(|| socket(family, socket_type, 0).unwrap());
        let before = host.take(fresh);
        let carried_always = ["TCP_CONGESTION", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"];
        let set: Vec<_> =
            labels(&before).into_iter().filter(|label| !carried_always.contains(label)).collect();
        assert_eq!(set, Vec::<&str>::new(), "a fresh socket of family {family} has no option set");
        let again = host.revive(&before);
        let mut after = host.capture(&again, Mode::Dump).unwrap().socket;
        same_inode(&before, &mut after);
        assert_eq!(before, after);
    }
}

/// The only thing that differs between a unix socket and its copy.
pub(crate) fn same_inode(before: &Socket, after: &mut Socket) {
    if let (SocketKind::UnixSingle { inode: old, .. }, SocketKind::UnixSingle { inode: new, .. }) =
        (&before.kind, &mut after.kind)
    {
        *new = *old;
    }
}

#[test]
fn options_of_listeners_survive() {
    let host = Namespace::new();
    let listeners: Vec<OwnedFd> = host.run(|| {
        let bound = |_| {
            let fd = socket(libc::AF_INET6, libc::SOCK_STREAM, 0).unwrap();
            set_int(fd.as_fd(), SOCKET, libc::SO_REUSEPORT, 1).unwrap();
            set_int(fd.as_fd(), IPV6, libc::IPV6_V6ONLY, 1).unwrap();
            set_int(fd.as_fd(), TCP, libc::TCP_DEFER_ACCEPT, 5).unwrap();
            set_option(fd.as_fd(), SOCKET, libc::SO_BINDTODEVICE, b"lo").unwrap();
            nix::unistd::fchown(&fd, Some(1234.into()), Some(1234.into())).unwrap();
            let address = "[::1]:7000".parse::<std::net::SocketAddr>().unwrap();
            let address = nix::sys::socket::SockaddrStorage::from(address);
            nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &address).unwrap();
            pclive_engine::sys::socket::listen(fd.as_fd(), 11).unwrap();
            fd
        };
        (0..3).map(bound).collect()
    });
    let before: Vec<Socket> =
        listeners.iter().map(|fd| host.capture(fd, Mode::Dump).unwrap().socket).collect();
    drop(listeners);
    let built = host.build(&before);
    let mut ids: Vec<_> = built.fds.keys().copied().collect();
    ids.sort();
    let after: Vec<Socket> =
        ids.iter().map(|id| host.capture(&built.fds[id], Mode::Dump).unwrap().socket).collect();
    assert_eq!(before, after);
    assert_eq!((before[0].uid, before[0].gid, before[0].reuse_address), (1234, 1234, false));
}

#[test]
fn foreign_sockets_are_refused_by_name() {
    let host = Namespace::new();
    let cases = [
        (libc::AF_NETLINK, libc::SOCK_RAW, 0, "netlink socket"),
        (libc::AF_PACKET, libc::SOCK_RAW, 0, "packet socket"),
        (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_UDP, "raw IP socket"),
        (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE, "datagram socket of IP protocol 136"),
    ];
    for (family, socket_type, protocol, name) in cases {
        let fd = match host.run(|| socket(family, socket_type, protocol)) {
            // Not every kernel has it.
            Err(_) if protocol == libc::IPPROTO_UDPLITE => continue,
            fd => fd.unwrap(),
        };
        let refusal = host.capture(fd, Mode::Check).unwrap_err();
        assert!(refusal.what.contains(name) && !refusal.transient && !refusal.hint.is_empty(), "{refusal}");
    }
    let elsewhere = UdpSocket::bind("127.0.0.1:0").unwrap();
    let refusal = host.capture(elsewhere, Mode::Check).unwrap_err();
    assert!(refusal.what.contains("another network namespace"), "{refusal}");
}

#[test]
fn states_beside_the_queues_are_refused() {
    let host = Namespace::new();
    let corked = host.run(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    set_int(corked.as_fd(), libc::IPPROTO_UDP, libc::UDP_CORK, 1).unwrap();
    assert!(host.capture(&corked, Mode::Check).unwrap_err().what.contains("UDP_CORK"));
    let fast = host.run(|| TcpListener::bind("127.0.0.1:0").unwrap());
    set_int(fast.as_fd(), TCP, libc::TCP_FASTOPEN, 16).unwrap();
    assert!(host.capture(&fast, Mode::Check).unwrap_err().what.contains("fast open"));
    let routed = host.run(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    // Record route: type, length, pointer, room for one address, end.
    set_option(routed.as_fd(), IP, libc::IP_OPTIONS, &[7, 7, 4, 0, 0, 0, 0, 0]).unwrap();
    assert!(host.capture(&routed, Mode::Check).unwrap_err().what.contains("IP_OPTIONS"));
    let zero_copy = host.run(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    set_int(zero_copy.as_fd(), SOCKET, libc::SO_ZEROCOPY, 1).unwrap();
    assert!(host.capture(&zero_copy, Mode::Check).unwrap_err().what.contains("MSG_ZEROCOPY"));
}

#[test]
fn impossible_sockets_of_the_peer_are_refused() {
    let host = Namespace::new();
    let fresh = host.run(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    let good = host.take(fresh.into());
    let invalid = |change: &dyn Fn(&mut Socket)| {
        let mut socket = good.clone();
        change(&mut socket);
        match host.try_build(&[socket]) {
            Err(SocketsError::Invalid { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    };
    let option = |level, name, length| SocketOption { level, name, value: vec![0; length] };
    assert_eq!(invalid(&|s| s.options.push(option(1, 26, 16))), "an option that is never carried");
    assert_eq!(invalid(&|s| s.options.push(option(1, 13, 16))), "an option with a wrong length");
    assert_eq!(invalid(&|s| s.options.push(option(6, 1, 4))), "an option of another family");
}

#[test]
fn authenticated_connections_are_refused() {
    let network = Network::new();
    let (server, _client, listener) = network.connect(SERVER4);
    network.server.capture(&listener, Mode::Check).unwrap();
    network.server.capture(&server, Mode::Check).unwrap();
    let keyed = network.server.run(|| TcpListener::bind("10.77.0.1:7001").unwrap());
    // struct tcp_md5sig: the peer's address, flags, prefix, length of the key, interface, key.
    let mut key = vec![0; 216];
    key[..8].copy_from_slice(&[2, 0, 0, 0, 10, 77, 0, 2]);
    key[130..132].copy_from_slice(&4_u16.to_ne_bytes());
    key[136..140].copy_from_slice(b"keys");
    match set_option(keyed.as_fd(), TCP, libc::TCP_MD5SIG, &key) {
        Err(nix::Error::ENOPROTOOPT) => eprintln!("this kernel has no TCP_MD5SIG: nothing to refuse"),
        result => {
            result.unwrap();
            let refusal = network.server.capture(&keyed, Mode::Check).unwrap_err();
            assert!(refusal.what.contains("TCP_MD5SIG"), "{refusal}");
        }
    }
}

#[test]
fn members_of_multicast_groups_are_refused() {
    let network = Network::new();
    let group = "239.1.2.3".parse().unwrap();
    let member = network.server.run(|| UdpSocket::bind("0.0.0.0:7000").unwrap());
    network.server.capture(&member, Mode::Check).unwrap();
    member.join_multicast_v4(&group, &"10.77.0.1".parse().unwrap()).unwrap();
    let refusal = network.server.capture(&member, Mode::Check).unwrap_err();
    assert!(refusal.what.contains("239.1.2.3") && !refusal.transient, "{refusal}");
    let other = network.server.run(|| UdpSocket::bind("10.77.0.1:7001").unwrap());
    network.server.capture(&other, Mode::Check).unwrap();
}
