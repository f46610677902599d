use pclive_agent::network::{
    Applied, Error, HOST_END_PREFIX, Interface, NetworkConfig, addresses, apply, capture, native,
};

use crate::site::{
    BRIDGE, BRIDGE_IP, BRIDGE_IP6, Container, IP, IP6, MAC, Site, answers_arp, bridge_mac, host_udp, passes,
    run, wait_until_passes,
};

/// Whether an error is the one that a case expects.
type Expected = fn(&Error) -> bool;

fn on_bridge() -> NetworkConfig {
    NetworkConfig { bridge: Some(BRIDGE.to_owned()) }
}

fn applied(container: &Container, interfaces: &[Interface]) -> Applied {
    apply(container.namespace(), "redis-1", interfaces, &on_bridge()).unwrap()
}

/// What a container of the usual kind has, without the container.
fn moved(site: &Site) -> Vec<Interface> {
    let container = site.connected();
    container.run(&format!("ip neigh add {BRIDGE_IP} lladdr 02:00:00:00:00:01 nud reachable dev eth0"));
    let interfaces = capture(&container.namespace()).unwrap();
    run("ip link del network-src");
    interfaces
}

/// What a runtime does that makes interfaces itself.
fn attach_by_runtime(container: &Container) {
    let pid = container.pid();
    run(&format!("ip link add network-cni type veth peer name eth0 netns {pid}"));
    run(&format!("ip link set network-cni master {BRIDGE} up"));
}

/// Neighbours that the kernel has learned itself are not of interest.
fn comparable(mut interfaces: Vec<Interface>) -> Vec<Interface> {
    for interface in &mut interfaces {
        interface.neighbours.retain(|known| known.ip.to_string() == BRIDGE_IP);
        interface.addresses.sort_by_key(|address| address.ip);
        interface.routes.sort_by_key(|route| (route.destination, route.metric));
    }
    interfaces
}

#[test]
fn empty_namespace_gets_the_same_network() {
    let site = Site::new();
    let wanted = moved(&site);
    let container = Container::new();
    let applied = applied(&container, &wanted);
    assert!(applied.warnings().is_empty(), "{:?}", applied.warnings());
    assert_eq!(comparable(capture(&container.namespace()).unwrap()), comparable(wanted));
    applied.keep().unwrap();
}

#[test]
fn nothing_answers_and_no_switch_learns_before_it_is_opened() {
    let site = Site::new();
    let wanted = moved(&site);
    let container = Container::new();
    let mut applied = applied(&container, &wanted);
    let (outside, inside) = (host_udp(BRIDGE_IP), container.udp(IP));
    assert!(!answers_arp(IP));
    assert!(!passes(&outside, &inside));
    assert!(!passes(&inside, &outside));
    assert!(!run(&format!("bridge fdb show br {BRIDGE}")).contains(MAC));

    applied.open().unwrap();
    assert!(answers_arp(IP));
    wait_until_passes(&outside, &inside);
    wait_until_passes(&host_udp(BRIDGE_IP6), &container.udp(IP6));
    assert!(run(&format!("bridge fdb show br {BRIDGE}")).contains(MAC));
}

/// What the kernel does when it ends the namespace of a copy whose agent has died: the table goes first.
#[test]
fn nothing_passes_when_a_namespace_that_ends_has_lost_its_lock() {
    let site = Site::new();
    let wanted = moved(&site);
    for by_runtime in [false, true] {
        let container = Container::new();
        if by_runtime {
            attach_by_runtime(&container);
        }
        let mut applied = applied(&container, &wanted);
        container.run("nft delete table netdev pclive-redis-1");
        let (outside, inside) = (host_udp(BRIDGE_IP), container.udp(IP));
        assert!(!answers_arp(IP));
        assert!(!passes(&inside, &outside));
        assert!(!run(&format!("bridge fdb show br {BRIDGE}")).contains(MAC));

        applied.open().unwrap();
        wait_until_passes(&outside, &inside);
        assert_eq!(run("nft list tables"), "");
        applied.undo().unwrap();
    }
}

#[test]
fn undo_leaves_no_link_and_no_table() {
    let site = Site::new();
    let wanted = moved(&site);
    let container = Container::new();
    let (host, inside) = (run("ip -o link"), container.run("ip -o link"));
    for open in [false, true] {
        let mut applied = applied(&container, &wanted);
        assert!(run("ip -o link").contains(HOST_END_PREFIX));
        if open {
            applied.open().unwrap();
        }
        applied.undo().unwrap();
        assert!(!run("ip -o link").contains(HOST_END_PREFIX));
        assert_eq!(names(&run("ip -o link")), names(&host));
        assert_eq!(names(&container.run("ip -o link")), names(&inside));
        assert_eq!(container.run("nft list tables"), "");
        assert_eq!(run("nft list tables"), "");
        assert!(!container.run("ip -o addr show dev lo").contains("10.9.9.9"));
        assert!(container.run("ip -o link show dev lo").contains("state DOWN"));
    }
}

fn names(links: &str) -> Vec<&str> {
    links.lines().filter_map(|line| line.split_whitespace().nth(1)).collect()
}

#[test]
fn undo_after_the_interface_is_gone_is_no_error() {
    let site = Site::new();
    let wanted = moved(&site);
    let container = Container::new();
    let made = applied(&container, &wanted);
    container.run("ip link del eth0");
    made.undo().unwrap();

    let pid = container.pid();
    run(&format!("ip link add network-cni type veth peer name eth0 netns {pid}"));
    let completed = applied(&container, &wanted);
    container.run("ip link del eth0");
    completed.undo().unwrap();
}

#[test]
fn kept_network_stays_open_when_the_guard_is_gone() {
    let site = Site::new();
    let wanted = moved(&site);
    let container = Container::new();
    applied(&container, &wanted).keep().unwrap();
    wait_until_passes(&host_udp(BRIDGE_IP), &container.udp(IP));
    assert_eq!(container.run("nft list tables"), "");
    assert_eq!(run("nft list tables"), "");
}

#[test]
fn interface_that_the_runtime_made_is_completed_and_given_back() {
    let site = Site::new();
    let wanted = moved(&site);
    let container = Container::new();
    attach_by_runtime(&container);
    container.run("ip link set lo up");
    container.run("ip link set eth0 addrgenmode none up");
    container.run("ip addr add 10.77.0.200/24 dev eth0");
    let before = capture(&container.namespace()).unwrap();

    let mut guard = applied(&container, &wanted);
    assert!(!answers_arp(IP));
    assert!(!answers_arp("10.77.0.200"));
    guard.open().unwrap();
    assert!(answers_arp(IP));
    let after = capture(&container.namespace()).unwrap();
    let eth0 = after.iter().find(|interface| interface.name == "eth0").unwrap();
    assert_eq!(eth0.mac.unwrap().to_string(), MAC);
    assert_eq!(eth0.mtu, 1400);
    assert_eq!(eth0.routes.len(), 3);
    assert!(eth0.addresses.iter().any(|address| address.ip.to_string() == "10.77.0.200"));
    assert!(!run("ip -o link").contains(HOST_END_PREFIX));

    guard.undo().unwrap();
    let mut given_back = capture(&container.namespace()).unwrap();
    given_back.iter_mut().for_each(|interface| interface.neighbours.clear());
    assert_eq!(given_back, before);
}

#[test]
fn applying_again_changes_nothing_and_undoes_nothing() {
    let site = Site::new();
    let wanted = moved(&site);
    let container = Container::new();
    applied(&container, &wanted).keep().unwrap();
    let once = comparable(capture(&container.namespace()).unwrap());
    applied(&container, &wanted).undo().unwrap();
    assert_eq!(comparable(capture(&container.namespace()).unwrap()), once);
    wait_until_passes(&host_udp(BRIDGE_IP), &container.udp(IP));
}

#[test]
fn leftover_of_a_dead_agent_is_replaced() {
    let site = Site::new();
    let wanted = moved(&site);
    let first = Container::new();
    applied(&first, &wanted).keep().unwrap();
    let second = Container::new();
    applied(&second, &wanted).keep().unwrap();
    wait_until_passes(&host_udp(BRIDGE_IP), &second.udp(IP));
    assert!(!first.run("ip -o link").contains("eth0"));
}

#[test]
fn name_of_a_stranger_is_not_taken() {
    let site = Site::new();
    let wanted = moved(&site);
    let first = Container::new();
    applied(&first, &wanted).keep().unwrap();
    let links = run("ip -o link");
    let own = names(&links).into_iter().find(|name| name.starts_with(HOST_END_PREFIX)).unwrap();
    let own = own.split('@').next().unwrap().to_owned();
    run(&format!("ip link set {own} alias somebody"));
    let refused = apply(Container::new().namespace(), "redis-1", &wanted, &on_bridge());
    assert!(matches!(refused.err(), Some(Error::NameTaken { .. })));
    assert!(run("ip -o link").contains(&own));
}

#[test]
fn missing_interface_needs_a_bridge() {
    let site = Site::new();
    let wanted = moved(&site);
    let container = Container::new();
    let inside = names(&container.run("ip -o link")).len();
    let cases: [(NetworkConfig, Expected); 3] = [
        (NetworkConfig::default(), |error| matches!(error, Error::NoBridge { .. })),
        (NetworkConfig { bridge: Some("network-none".into()) }, |error| {
            matches!(error, Error::BridgeMissing { .. })
        }),
        (NetworkConfig { bridge: Some("lo".into()) }, |error| matches!(error, Error::NotABridge { .. })),
    ];
    for (config, expected) in cases {
        let error = apply(container.namespace(), "redis-1", &wanted, &config).err().unwrap();
        assert!(expected(&error), "{error}");
        assert!(error.hint().is_some(), "{error}");
        assert_eq!(names(&container.run("ip -o link")).len(), inside);
    }
}

#[test]
fn address_in_use_is_a_conflict() {
    let site = Site::new();
    let wanted = moved(&site);
    let container = Container::new();
    run(&format!("ip addr add {IP}/32 dev {BRIDGE}"));
    let error = apply(container.namespace(), "redis-1", &wanted, &on_bridge()).err().unwrap();
    assert!(matches!(error, Error::AddressInUse { .. }), "{error}");
    run(&format!("ip addr del {IP}/32 dev {BRIDGE}"));

    container.run("ip link add other type veth peer name another");
    container.run(&format!("ip addr add {IP6}/64 dev other"));
    let error = apply(container.namespace(), "redis-1", &wanted, &on_bridge()).err().unwrap();
    assert!(matches!(error, Error::AddressInUse { .. }), "{error}");
    assert!(!run("ip -o link").contains(HOST_END_PREFIX));
}

/// A container whose `eth0` the runtime has given this address.
fn given(address: &str) -> Container {
    let container = Container::new();
    container.run("ip link add eth0 type veth peer name other");
    container.run(&format!("ip addr add {address} dev eth0"));
    container.run("ip link set eth0 up");
    container
}

#[test]
fn address_of_another_network_is_refused() {
    let site = Site::new();
    let wanted = moved(&site);
    let container = given("192.0.2.1/24");
    let before = container.run("ip -o addr");
    let error = apply(container.namespace(), "redis-1", &wanted, &on_bridge()).err().unwrap();
    assert!(matches!(error, Error::OtherNetwork { .. }), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("--tcp close")));
    assert_eq!(container.run("ip -o addr"), before);
}

#[test]
fn network_that_the_runtime_has_made_stays_where_connections_end() {
    let site = Site::new();
    let wanted = moved(&site);
    let container = given("192.0.2.1/24");
    let made = native(&container.namespace(), &wanted).unwrap();
    let reached: Vec<String> = addresses(&made).map(|ip| ip.to_string()).collect();
    assert_eq!(reached, ["192.0.2.1"]);
    let before = container.run("ip -o addr show dev eth0");
    applied(&container, &made).keep().unwrap();
    assert_eq!(container.run("ip -o addr show dev eth0"), before);
    assert!(
        container.run("ip -o addr show dev lo").contains("10.9.9.9"),
        "what the runtime left out is made"
    );

    let empty = Container::new();
    let made = native(&empty.namespace(), &wanted).unwrap();
    assert!(
        addresses(&made).eq(addresses(&wanted)),
        "an interface without an address is that of the original"
    );
}

#[test]
fn kind_that_cannot_be_made_is_refused() {
    let site = Site::new();
    let container = site.connected();
    container.run("ip link add br9 type bridge");
    let wanted = capture(&container.namespace()).unwrap();
    run("ip link del network-src");
    let error = apply(Container::new().namespace(), "redis-1", &wanted, &on_bridge()).err().unwrap();
    assert!(matches!(&error, Error::UnsupportedKind { kind, .. } if kind == "bridge"), "{error}");
    assert!(!run("ip -o link").contains(HOST_END_PREFIX));
}

#[test]
fn disabled_ipv6_stays_disabled() {
    let site = Site::new();
    let source = site.connected();
    source.run("sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1");
    let wanted = capture(&source.namespace()).unwrap();
    run("ip link del network-src");
    assert!(!wanted[1].ipv6);
    let container = Container::new();
    let applied = applied(&container, &wanted);
    assert_eq!(comparable(capture(&container.namespace()).unwrap()), comparable(wanted));
    assert_eq!(container.run("ip -6 -o addr show dev eth0"), "");
    applied.keep().unwrap();
}

#[test]
fn bridge_keeps_its_own_mac() {
    let site = Site::new();
    let wanted = moved(&site);
    // A port whose random address is one of the highest.
    run("ip link add network-other address fe:fe:ff:ff:ff:ff type veth peer name network-far");
    run(&format!("ip link set network-other master {BRIDGE} up"));
    let before = bridge_mac();
    assert_eq!(before, "fe:fe:ff:ff:ff:ff");
    let container = Container::new();
    let _applied = applied(&container, &wanted);
    assert_eq!(bridge_mac(), before);
}

#[test]
fn network_of_the_host_is_refused() {
    let _site = Site::new();
    let own = pclive_agent::network::Namespace::own().unwrap();
    let refused = apply(own, "redis-1", &[], &on_bridge());
    assert!(matches!(refused.err(), Some(Error::HostNetwork { .. })));
}
