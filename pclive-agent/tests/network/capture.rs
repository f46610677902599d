use pclive_agent::network::{Error, Kind, Namespace, capture, decode, encode, unmoved};

use crate::site::{BRIDGE, BRIDGE_IP, Container, IP, IP6, Site, run};

#[test]
fn capture_finds_what_was_configured() {
    let site = Site::new();
    let container = site.connected();
    let interfaces = capture(&container.namespace()).unwrap();

    let names: Vec<_> = interfaces.iter().map(|interface| interface.name.as_str()).collect();
    assert_eq!(names, ["lo", "eth0"]);
    let [loopback, eth0] = &interfaces[..] else { panic!("two interfaces") };
    assert!(loopback.is_loopback() && loopback.up);
    assert_eq!(addresses(loopback), ["10.9.9.9/32"]);
    assert_eq!(eth0.kind, Kind::Veth);
    assert_eq!(eth0.mac.unwrap().to_string(), crate::site::MAC);
    assert_eq!(eth0.mtu, 1400);
    assert!(eth0.up && eth0.arp && eth0.ipv6);
    assert_eq!(addresses(eth0), [format!("{IP}/24"), format!("{IP6}/64"), "fe80::77/64".into()].as_slice());
    let routes: Vec<_> = eth0.routes.iter().map(ToString::to_string).collect();
    assert!(routes.contains(&format!("0.0.0.0/0 via {BRIDGE_IP}")), "{routes:?}");
    assert!(routes.contains(&"::/0 via fd77::1".to_owned()), "{routes:?}");
    assert_eq!(routes.len(), 3, "{routes:?}");
    let default = eth0.routes.iter().find(|route| route.prefix == 0 && route.destination.is_ipv4()).unwrap();
    assert_eq!(default.mtu, Some(1300));
}

fn addresses(interface: &pclive_agent::network::Interface) -> Vec<String> {
    let mut texts: Vec<_> = interface.addresses.iter().map(ToString::to_string).collect();
    texts.sort();
    texts
}

#[test]
fn capture_survives_the_wire() {
    let site = Site::new();
    let container = site.connected();
    container.run(&format!("ip neigh add {BRIDGE_IP} lladdr 02:00:00:00:00:01 nud reachable dev eth0"));
    container.run("ip addr add 10.78.0.1 peer 10.78.0.2/32 dev eth0 valid_lft 3600 preferred_lft 1800");
    let interfaces = capture(&container.namespace()).unwrap();
    assert_eq!(decode(&encode(&interfaces)).unwrap(), interfaces);
}

#[test]
fn neighbours_of_the_container_are_captured() {
    let site = Site::new();
    let container = site.connected();
    container.run(&format!("ip neigh add {BRIDGE_IP} lladdr 02:00:00:00:00:01 nud reachable dev eth0"));
    container.run("ip neigh add 10.77.0.99 lladdr 02:00:00:00:00:63 nud permanent dev eth0");
    let interfaces = capture(&container.namespace()).unwrap();
    let known: Vec<_> = interfaces[1]
        .neighbours
        .iter()
        .map(|known| (known.ip.to_string(), known.mac.to_string(), known.permanent))
        .collect();
    let gateway = (BRIDGE_IP.to_owned(), "02:00:00:00:00:01".to_owned(), false);
    assert!(known.contains(&gateway), "{known:?}");
    let fixed = ("10.77.0.99".to_owned(), "02:00:00:00:00:63".to_owned(), true);
    assert!(known.contains(&fixed), "{known:?}");
}

#[test]
fn route_with_two_next_hops_is_refused() {
    let site = Site::new();
    let container = site.connected();
    container.run("ip route add 198.51.100.0/24 nexthop via 10.77.0.1 nexthop via 10.77.0.9");
    let error = capture(&container.namespace()).unwrap_err();
    assert!(matches!(error, Error::UnsupportedRoute { .. }), "{error}");
    assert!(error.hint().is_some());
}

#[test]
fn namespace_of_the_host_is_refused() {
    let _site = Site::new();
    let own = Namespace::own().unwrap();
    assert!(own.is_host().unwrap());
    assert!(matches!(own.refuse_host(), Err(Error::HostNetwork { .. })));
    let container = Container::new();
    assert!(!container.namespace().is_host().unwrap());
    assert!(container.namespace().refuse_host().is_ok());
}

#[test]
fn work_in_a_namespace_leaves_the_caller_where_it_is() {
    let _site = Site::new();
    let container = Container::new();
    let seen = container.namespace().run(|| run("ip -br link")).unwrap();
    assert!(!seen.contains(BRIDGE), "{seen}");
    assert!(run("ip -br link").contains(BRIDGE));
}

#[test]
fn namespace_of_a_process_that_is_gone_is_an_error() {
    let error = Namespace::of(i32::MAX).unwrap_err();
    assert!(matches!(error, Error::OpenNamespace { .. }), "{error}");
}

#[test]
fn processes_that_share_a_namespace_are_found() {
    let _site = Site::new();
    let container = Container::new();
    let namespace = container.namespace();
    assert_eq!(namespace.processes().unwrap(), [container.pid()]);
    let sharer = container.joined();
    let mut both = [container.pid(), sharer.pid()];
    both.sort_unstable();
    let mut found = namespace.processes().unwrap();
    found.sort_unstable();
    assert_eq!(found, both);
}

#[test]
fn malformed_interfaces_of_a_peer_are_refused() {
    let site = Site::new();
    let container = site.connected();
    let good = encode(&capture(&container.namespace()).unwrap());
    let spoil: [fn(&mut pclive_proto::peer::Interface); 7] = [
        |interface| interface.name = "../../etc".to_owned(),
        |interface| interface.name = "x".repeat(16),
        |interface| interface.mac = vec![1, 2, 3].into(),
        |interface| interface.mtu = 0,
        |interface| interface.addresses[0].ip = vec![0; 5].into(),
        |interface| interface.addresses[0].prefix = 129,
        |interface| interface.routes[0].ipv6 = !interface.routes[0].ipv6,
    ];
    for (number, spoil) in spoil.iter().enumerate() {
        let mut bad = good.clone();
        spoil(&mut bad[1]);
        assert!(matches!(decode(&bad), Err(Error::Malformed { .. })), "case {number}");
    }
    assert!(decode(&vec![good[1].clone(); 65]).is_err());
}

#[test]
fn what_stays_behind_is_told() {
    let site = Site::new();
    let container = site.connected();
    assert_eq!(unmoved(&container.namespace()), Vec::<String>::new());
    container.run("ip rule add from 192.0.2.7 lookup 77");
    container.run(&format!("ip route add default via {BRIDGE_IP} table 77"));
    container.run("ip route add local 10.1.0.0/16 dev lo");
    container.run("nft add table inet mesh");
    container.run("nft add table ip mesh");
    container.run("nft add table netdev pclive-of-ours");
    let told = unmoved(&container.namespace());
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("1 rules, 2 routes"), "{told:?}");
    assert!(told[1].contains("(mesh)"), "{told:?}");
}
