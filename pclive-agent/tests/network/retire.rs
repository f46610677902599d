use pclive_agent::network::{
    Applied, HOST_END_PREFIX, Interface, Lock, Namespace, NetworkConfig, Tenure, apply, capture,
    remove_host_ends, retire,
};

use crate::site::{BRIDGE, BRIDGE_IP, Container, IP, Site, answers_arp, host_udp, run, wait_until_passes};

/// The network of a container that is gone, applied to another one by the name `redis-1`.
fn arrived(site: &Site) -> (Container, Vec<Interface>, Applied) {
    let source = site.connected();
    let wanted = capture(&source.namespace()).unwrap();
    run("ip link del network-src");
    let container = Container::new();
    let config = NetworkConfig { bridge: Some(BRIDGE.to_owned()) };
    let applied = apply(container.namespace(), "redis-1", &wanted, &config).unwrap();
    (container, wanted, applied)
}

#[test]
fn retired_container_never_answers_again() {
    let site = Site::new();
    let container = site.connected();
    let namespace = container.namespace();
    let interfaces = capture(&namespace).unwrap();
    wait_until_passes(&host_udp(BRIDGE_IP), &container.udp(IP));
    let mut lock = Lock::prepare(&namespace, "redis-1", &interfaces, Tenure::Agent).unwrap();
    lock.engage().unwrap();
    lock.outlive_agent().unwrap();

    retire(&namespace, "redis-1", &interfaces).unwrap();
    lock.release().unwrap();
    assert!(!answers_arp(IP));
    assert_eq!(container.run("ip -o addr show dev eth0"), "");
    assert!(container.run("ip -o link show dev eth0").contains("state DOWN"));
    // What the agent did not make stays.
    assert!(run("ip -o link").contains("network-src"));
    retire(&namespace, "redis-1", &interfaces).unwrap();
}

#[test]
fn retire_deletes_the_host_end_that_the_agent_had_made() {
    let site = Site::new();
    let (container, wanted, applied) = arrived(&site);
    applied.keep().unwrap();
    assert!(run("ip -o link").contains(HOST_END_PREFIX));

    retire(&container.namespace(), "redis-1", &wanted).unwrap();
    assert!(!run("ip -o link").contains(HOST_END_PREFIX));
    assert!(!container.run("ip -o link").contains("eth0"));
    assert_eq!(remove_host_ends("redis-1").unwrap(), 0);
}

#[test]
fn host_ends_of_another_container_stay() {
    let site = Site::new();
    let (container, _, applied) = arrived(&site);
    applied.keep().unwrap();
    assert_eq!(remove_host_ends("redis-2").unwrap(), 0);
    wait_until_passes(&host_udp(BRIDGE_IP), &container.udp(IP));
    assert_eq!(remove_host_ends("redis-1").unwrap(), 1);
    assert!(!run("ip -o link").contains(HOST_END_PREFIX));
}

#[test]
fn lock_of_host_ends_that_a_dead_agent_left_is_removed_with_them() {
    let site = Site::new();
    run("nft add table netdev network-other");
    let (_container, _, applied) = arrived(&site);
    // As if by SIGKILL: nothing is taken back.
    std::mem::forget(applied);
    assert_eq!(remove_host_ends("redis-2").unwrap(), 0);
    assert!(run("nft list tables").contains("pclive-redis-1"));
    assert_eq!(remove_host_ends("redis-1").unwrap(), 1);
    assert_eq!(run("nft list tables"), "table netdev network-other\n");
}

#[test]
fn retiring_the_host_is_refused() {
    let _site = Site::new();
    assert!(retire(&Namespace::own().unwrap(), "redis-1", &[]).is_err());
}
