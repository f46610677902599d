//! Established connections.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use pclive_engine::capture::sockets::Mode;
use pclive_engine::model::FileId;
use pclive_engine::model::socket::{Socket, SocketKind, TcpConnection, TcpState};
use pclive_engine::sys::socket::{Queue, queue_length};
use pclive_engine::sys::tcp;

use crate::namespace::{Network, SERVER4, SERVER6, silence};

const MEGABYTE: usize = 1 << 20;
/// What a program has written into a full window.
const UNSENT: usize = 50_000;
const PATIENCE: Duration = Duration::from_secs(20);

/// A stream of bytes that does not repeat soon, told by its seed.
struct Pattern(u64);

impl Pattern {
    fn next(&mut self) -> u8 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 56) as u8
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next()).collect()
    }

    fn expect(&mut self, from: &mut TcpStream, length: usize) {
        let mut bytes = vec![0; length];
        from.set_read_timeout(Some(PATIENCE)).unwrap();
        from.read_exact(&mut bytes).expect("the data arrives");
        assert_eq!(bytes.iter().position(|byte| *byte != self.next()), None, "a byte is wrong");
    }
}

/// Both directions at once.
fn exchange(a: &mut TcpStream, b: &mut TcpStream, ab: &mut Pattern, ba: &mut Pattern, length: usize) {
    let (to_b, to_a) = (Pattern(ab.0).take(length), Pattern(ba.0).take(length));
    let (mut a_writer, mut b_writer) = (a.try_clone().unwrap(), b.try_clone().unwrap());
    std::thread::scope(|scope| {
        scope.spawn(move || a_writer.write_all(&to_b).unwrap());
        scope.spawn(move || b_writer.write_all(&to_a).unwrap());
        scope.spawn(|| ab.expect(b, length));
        ba.expect(a, length);
    });
}

/// Writes until the queues are full; how much that was.
fn write_until_full(stream: &mut TcpStream, pattern: &mut Pattern) -> usize {
    let mut total = 0;
    stream.set_nonblocking(true).unwrap();
    loop {
        let bytes = Pattern(pattern.0).take(8 << 10);
        match stream.write(&bytes) {
            Ok(written) => drop((pattern.take(written), total += written)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
        // Let the acknowledgements in, so that the window, not the congestion window, is what fills.
        std::thread::yield_now();
    }
    stream.set_nonblocking(false).unwrap();
    total
}

fn connection(socket: &Socket) -> &TcpConnection {
    match &socket.kind {
        SocketKind::TcpConnection(connection) => connection,
        other => panic!("{other:?}"),
    }
}

fn send_mss(stream: &TcpStream) -> u32 {
    tcp::info(stream.as_fd()).unwrap().send_mss
}

/// `tcpi_rcv_ssthresh`.
fn receive_threshold(stream: &TcpStream) -> u32 {
    let mut info = [0; 104];
    pclive_engine::sys::socket::get_option(stream.as_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)
        .unwrap();
    u32::from_ne_bytes(info[64..68].try_into().unwrap())
}

fn queued(stream: &TcpStream, queue: Queue) -> usize {
    usize::try_from(queue_length(stream.as_fd(), queue).unwrap()).unwrap()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::yield_now();
    }
}

fn survives(address: &str) {
    let network = Network::new();
    let (mut server, mut client, _listener) = network.connect(address);
    let (mut down, mut up) = (Pattern(1), Pattern(2));
    exchange(&mut server, &mut client, &mut down, &mut up, 3 * MEGABYTE);
    // Unread at the server; unread at the client, whose window closes, and unsent at the server.
    client.write_all(&Pattern(up.0).take(40_000)).unwrap();
    let written = write_until_full(&mut server, &mut Pattern(down.0));
    wait_until("the server receives", || queued(&server, Queue::Unread) == 40_000);
    let (mss, threshold) = (send_mss(&server), receive_threshold(&server));

    let dumped = network.server.take(server.into());
    let state = connection(&dumped);
    assert_eq!(state.receive_queue.len(), 40_000);
    assert!(state.unsent > 0 && state.window_scale.is_some() && state.timestamp.is_some() && state.sack);
    let mut server = TcpStream::from(network.server.revive(&dumped));

    assert_eq!(send_mss(&server), mss);
    let after = receive_threshold(&server);
    assert!(after >= threshold / 10 * 9, "the receive window may grow to {after} only, not {threshold}");
    down.expect(&mut client, written);
    up.expect(&mut server, 40_000);
    exchange(&mut server, &mut client, &mut down, &mut up, 5 * MEGABYTE);
    assert_eq!(send_mss(&server), mss);
    assert_eq!(
        network.server.counter("TcpExt:", "PAWSEstab") + network.client.counter("TcpExt:", "PAWSEstab"),
        0
    );
    network.assert_no_reset();
    drop((server, client));
}

#[test]
fn v4_connection_with_full_queues_survives() {
    survives(SERVER4);
}

#[test]
fn v6_connection_with_full_queues_survives() {
    survives(SERVER6);
}

#[test]
fn v4_connection_of_a_v6_socket_survives() {
    let network = Network::new();
    let listener = network.server.run(|| std::net::TcpListener::bind("[::]:7000").unwrap());
    let mut client = network.client.run(|| TcpStream::connect(SERVER4).unwrap());
    let (server, peer) = listener.accept().unwrap();
    assert!(peer.is_ipv6());
    let mut server = TcpStream::from(network.server.again(server.into()));
    exchange(&mut server, &mut client, &mut Pattern(1), &mut Pattern(2), MEGABYTE);
    assert_eq!(server.peer_addr().unwrap(), peer);
    network.assert_no_reset();
}

#[test]
fn dumping_a_connection_ten_times_over_keeps_it() {
    let network = Network::new();
    let (mut server, mut client, _listener) = network.connect(SERVER4);
    let (mut down, mut up) = (Pattern(1), Pattern(2));
    for _ in 0..10 {
        server = TcpStream::from(network.server.again(server.into()));
        exchange(&mut server, &mut client, &mut down, &mut up, 300_000);
    }
    network.assert_no_reset();
}

#[test]
fn dropped_guard_leaves_the_connection_as_it_was() {
    let network = Network::new();
    let (mut server, mut client, _listener) = network.connect(SERVER4);
    let (mut down, mut up) = (Pattern(1), Pattern(2));
    client.write_all(&Pattern(up.0).take(10_000)).unwrap();
    let written = write_until_full(&mut server, &mut Pattern(down.0));
    let captured = network.server.capture(&server, Mode::Dump).unwrap();
    let options = captured.socket.options.clone();
    assert!(captured.socket.reuse_address, "a listener of std sets it, and its connections inherit it");
    drop(captured);
    // A timer of the connection may fall into one of the tries; a probe at the end of repair mode would be in all.
    let sent = || network.server.counter("Tcp:", "OutSegs");
    let silent = |_| {
        let before = sent();
        drop(network.server.capture(&server, Mode::Dump).unwrap());
        sent() == before
    };
    assert!((0..20).any(silent), "the rollback sends something");
    let again = network.server.capture(&server, Mode::Check).unwrap();
    assert_eq!(again.socket.options, options);
    assert!(again.socket.reuse_address, "the kernel resets it with the repair mode");
    down.expect(&mut client, written);
    up.expect(&mut server, 10_000);
    exchange(&mut server, &mut client, &mut down, &mut up, 3 * MEGABYTE);
    network.assert_no_reset();
}

#[test]
fn connection_that_was_read_is_not_mute() {
    let network = Network::new();
    let (mut server, mut client, _listener) = network.connect(SERVER4);
    let captured = network.server.capture(&server, Mode::Dump).unwrap();
    assert!(!tcp::is_in_repair(server.as_fd()).unwrap());
    // As its task would go on if the agent had died: the guard of a dead agent undoes nothing.
    exchange(&mut server, &mut client, &mut Pattern(1), &mut Pattern(2), MEGABYTE);
    captured.guard.as_ref().unwrap().silence().unwrap();
    assert!(tcp::is_in_repair(server.as_fd()).unwrap());
    drop(captured);
    assert!(!tcp::is_in_repair(server.as_fd()).unwrap());
}

#[test]
fn failed_build_leaves_nothing_behind_and_the_next_one_works() {
    let network = Network::new();
    let (server, mut client, _listener) = network.connect(SERVER4);
    let dumped = network.server.take(server.into());
    let mut broken = dumped.clone();
    let SocketKind::TcpConnection(connection) = &mut broken.kind else { panic!() };
    connection.local = "10.77.0.9:7000".parse().unwrap();
    let error = network.server.try_build(&[dumped.clone(), broken]).unwrap_err();
    assert!(error.to_string().contains("no interface of the container has this address"), "{error}");
    let mut server = TcpStream::from(network.server.revive(&dumped));
    exchange(&mut server, &mut client, &mut Pattern(1), &mut Pattern(2), MEGABYTE);
    network.assert_no_reset();
}

/// Loses `length` bytes that the server sends, and rebuilds it. How long until they are at the client.
fn time_to_repeat_lost(length: usize) -> Duration {
    let network = Network::new();
    let (mut server, mut client, _listener) = network.connect(SERVER4);
    let (mut down, mut up) = (Pattern(1), Pattern(2));
    exchange(&mut server, &mut client, &mut down, &mut up, MEGABYTE);
    let hear = network.deafen_client();
    server.write_all(&Pattern(down.0).take(length)).unwrap();
    let dumped = network.server.take(server.into());
    assert!(
        connection(&dumped).send_queue.len() - connection(&dumped).unsent as usize > 0,
        "sent, not acknowledged"
    );
    hear();
    let start = Instant::now();
    let mut server = TcpStream::from(network.server.revive(&dumped));
    down.expect(&mut client, length);
    let elapsed = start.elapsed();
    exchange(&mut server, &mut client, &mut down, &mut up, MEGABYTE);
    network.assert_no_reset();
    elapsed
}

#[test]
fn small_lost_answer_is_repeated_without_a_timeout() {
    let elapsed = time_to_repeat_lost(3_000);
    assert!(elapsed < Duration::from_millis(500), "the kernel's own timeout would be 1 s: {elapsed:?}");
}

#[test]
fn large_lost_answer_is_repeated() {
    time_to_repeat_lost(200_000);
}

/// The client has everything that it was `sent`, and nothing that it says of it has come; more waits, because the window
/// of `window` bytes is full, or the server has `finished`. The copy must get as far as the original had, or it could not
/// make anything of what the client says. How long until both can go on, from the moment in which it is built.
fn time_to_go_on(address: &str, sent: usize, window: u32, finished: bool) -> Duration {
    let network = Network::new();
    network.server.command("echo 0 >/proc/sys/net/ipv4/tcp_slow_start_after_idle");
    let (mut server, mut client, _listener) = network.connect(address);
    let (mut down, mut up) = (Pattern(1), Pattern(2));
    exchange(&mut server, &mut client, &mut down, &mut up, 3 * MEGABYTE);
    wait_until("everything is acknowledged", || queued(&server, Queue::Unacknowledged) == 0);
    let speak = network.mute_client();
    let mut sending = Pattern(down.0);
    server.set_nodelay(true).unwrap();
    server.write_all(&sending.take(sent)).unwrap();
    if finished {
        server.shutdown(Shutdown::Write).unwrap();
    }
    down.expect(&mut client, sent);
    let mut dumped = network.server.take(server.into());
    let SocketKind::TcpConnection(state) = &mut dumped.kind else { panic!("{dumped:?}") };
    assert_eq!((state.send_queue.len(), state.unsent), (sent, 0), "nothing was acknowledged");
    assert_eq!(state.state == TcpState::FinWait1, finished);
    state.window.snd_wnd = window;
    let unsent = if finished { 0 } else { UNSENT };
    // The program goes on writing.
    state.send_queue = [state.send_queue.as_ref(), &sending.take(unsent)].concat().into();
    state.unsent = unsent.try_into().unwrap();
    state.send_sequence = state.send_sequence.wrapping_add(state.unsent);
    speak();
    let start = Instant::now();
    let mut built = network.server.build(std::slice::from_ref(&dumped));
    let mut server = TcpStream::from(built.fds.remove(&FileId(0)).unwrap());
    let open = network.lock_server();
    let (awake, woken) = built.wake();
    woken.unwrap();
    open();
    awake.push();
    client.write_all(&Pattern(up.0).take(1_000)).unwrap();
    up.expect(&mut server, 1_000);
    down.expect(&mut client, unsent);
    let elapsed = start.elapsed();
    if finished {
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    } else {
        exchange(&mut server, &mut client, &mut down, &mut up, MEGABYTE);
    }
    network.assert_no_reset();
    elapsed
}

/// The kernel's own timers come after a second. One of three times has to do, because the machine may be busy.
fn goes_on_without_a_timer(sent: usize, window: u32, finished: bool) {
    let times: Vec<_> = (0..3).map(|_| time_to_go_on(SERVER4, sent, window, finished)).collect();
    assert!(times.iter().any(|time| *time < Duration::from_secs(1)), "it took {times:?}");
}

#[test]
fn connection_goes_on_whose_window_was_full_to_the_last_byte() {
    for address in [SERVER4, SERVER6] {
        // Five full segments go first, half of the congestion window; what the window has left takes no full one.
        time_to_go_on(address, 8_000, 8_000, false);
    }
}

#[test]
fn connection_goes_on_whose_window_was_drawn_back() {
    for address in [SERVER4, SERVER6] {
        time_to_go_on(address, 8_000, 5_000, false);
    }
}

#[test]
fn connection_goes_on_without_a_timer_whose_large_window_was_full() {
    goes_on_without_a_timer(40_000, 40_000, false);
}

#[test]
fn connection_goes_on_without_a_timer_whose_window_was_closed() {
    goes_on_without_a_timer(0, 0, false);
}

#[test]
fn connection_that_has_finished_behind_a_full_window_goes_on_without_a_timer() {
    goes_on_without_a_timer(40_000, 40_000, true);
}

#[test]
fn both_ends_of_a_connection_inside_the_container_survive() {
    let network = Network::new();
    let (listener, client) = network.server.run(|| {
        let listener = std::net::TcpListener::bind("127.0.0.1:7000").unwrap();
        let client = TcpStream::connect("127.0.0.1:7000").unwrap();
        (listener, client)
    });
    let (server, _) = listener.accept().unwrap();
    let diag = network.server.diag();
    let fds: Vec<std::os::fd::OwnedFd> = vec![listener.into(), server.into(), client.into()];
    let captured: Vec<_> = fds
        .iter()
        .map(|fd| {
            let fd = fd.try_clone().unwrap();
            pclive_engine::capture::sockets::capture_socket(fd, &diag, Mode::Dump).unwrap()
        })
        .collect();
    drop(fds);
    let sockets: Vec<Socket> = captured
        .into_iter()
        .map(|captured| {
            captured.guard.into_iter().for_each(silence);
            captured.socket
        })
        .collect();
    let mut built = network.server.build(&sockets);
    let mut take = |id| built.fds.remove(&FileId(id)).unwrap();
    let (listener, mut server, mut client) =
        (std::net::TcpListener::from(take(0)), TcpStream::from(take(1)), TcpStream::from(take(2)));
    built.go().unwrap();
    exchange(&mut server, &mut client, &mut Pattern(1), &mut Pattern(2), 3 * MEGABYTE);
    let (mut client, (mut server, _)) = network.server.run(|| {
        let client = TcpStream::connect("127.0.0.1:7000").unwrap();
        (client, listener.accept().unwrap())
    });
    exchange(&mut server, &mut client, &mut Pattern(1), &mut Pattern(2), MEGABYTE);
    network.assert_no_reset();
}
