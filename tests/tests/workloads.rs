//! The workloads and their clients, without a migration: what they report is true when nothing moves.

use std::time::Duration;

use anyhow::{Context, Result};
use pclive_tests::link::TEN_GIGABIT;
use pclive_tests::workload::verifier::Verifier;
use pclive_tests::workload::{http, memcached, pipeline, redis, states, torture};
use pclive_tests::{Lab, needs};

#[test]
fn redis_clients_lose_nothing_and_the_digest_is_stable() -> Result<()> {
    if !needs::met(&["redis-server"]) {
        return Ok(());
    }
    let lab = Lab::without_agents(TEN_GIGABIT)?;
    let container = lab.start(&redis::bundle("redis"))?;
    let server = redis::Redis::new(&lab.client, container.v4);
    let keys = server.populate(32 << 20)?;
    let digest = server.digest(keys)?;
    let used = server.used_memory()?;
    assert!((24 << 20..64 << 20).contains(&used), "{used} bytes for 32 MiB of keys");
    let clients = server.clients(8, Duration::ZERO)?;
    clients.wait_for_answers(10_000)?;
    server.save_in_background()?;
    server.expire_a_key()?;
    let record = clients.stop()?;
    record.nothing_lost()?;
    assert!(record.longest_gap > Duration::ZERO);
    assert_eq!(server.digest(keys)?, digest);
    server.ask(&["APPEND", "key:7", "x"])?;
    assert_ne!(server.digest(keys)?, digest, "a changed key changes the digest");
    Ok(())
}

#[test]
fn redis_clients_notice_lost_writes_and_lost_connections() -> Result<()> {
    if !needs::met(&["redis-server"]) {
        return Ok(());
    }
    let lab = Lab::without_agents(TEN_GIGABIT)?;
    let container = lab.start(&redis::bundle("redis"))?;
    let server = redis::Redis::new(&lab.client, container.v6);
    let clients = server.clients(2, Duration::from_millis(1))?;
    clients.wait_for_answers(200)?;
    server.ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])?;
    clients.wait_for_ends()?;
    let record = clients.stop()?;
    assert_eq!((record.lost_connections, record.lost_writes), (2, 0), "{record:?}");

    let clients = server.clients(2, Duration::from_millis(1))?;
    clients.wait_for_answers(200)?;
    server.ask(&["FLUSHALL"])?;
    let record = clients.stop()?;
    assert_eq!(record.lost_connections, 0, "{record:?}");
    assert!(record.lost_writes > 0, "{record:?}");
    Ok(())
}

#[test]
fn memcached_and_nginx_answer_their_clients() -> Result<()> {
    if !needs::met(&["memcached", "nginx"]) {
        return Ok(());
    }
    let lab = Lab::without_agents(TEN_GIGABIT)?;
    let cache = lab.start(&memcached::bundle("cache", 4))?;
    let web = lab.start(&http::bundle("web"))?;
    let of_cache = memcached::clients(&lab.client, cache.v4, 4)?;
    let of_web = http::clients(&lab.client, web.v4, 4)?;
    of_cache.wait_for_answers(2000)?;
    of_web.wait_for_answers(500)?;
    of_cache.stop()?.nothing_lost()?;
    of_web.stop()?.nothing_lost()
}

#[test]
fn pipeline_counts_on_in_order() -> Result<()> {
    if !needs::met(&["dash", "busybox"]) {
        return Ok(());
    }
    let lab = Lab::without_agents(TEN_GIGABIT)?;
    let container = lab.start(&pipeline::bundle("pipeline"))?;
    let first = pipeline::wait_beyond(&container, &lab.a, 0)?;
    assert!(pipeline::wait_beyond(&container, &lab.a, first)? > first);
    Ok(())
}

#[test]
fn torture_finds_nothing_wrong_where_nothing_moves() -> Result<()> {
    if !needs::met(&[]) {
        return Ok(());
    }
    let lab = Lab::without_agents(TEN_GIGABIT)?;
    for seed in 1..=3 {
        let container = lab.start(&torture::bundle(&format!("torture-{seed}"), seed, &[]))?;
        let verifier = Verifier::new(&lab.client, container.v4);
        for _ in 0..20 {
            verifier.check()?;
        }
        let stats = verifier.ask("STATS")?;
        assert!(stats.contains("failed=false") && !stats.contains("forks=0 "), "{stats}");
        container.delete(&lab.a)?;
    }
    Ok(())
}

#[test]
fn torture_notices_one_changed_byte() -> Result<()> {
    if !needs::met(&[]) {
        return Ok(());
    }
    let lab = Lab::without_agents(TEN_GIGABIT)?;
    let container = lab.start(&torture::bundle("torture", 7, &["--threads", "1"]))?;
    let verifier = Verifier::new(&lab.client, container.v4);
    verifier.check()?;
    verifier.ask("CORRUPT")?;
    let found = (0..20).find_map(|_| verifier.check().err());
    let text = found.expect("the changed byte is found").to_string();
    assert!(text.starts_with("FAIL thread 0:") && text.contains("1 words differ"), "{text}");
    Ok(())
}

#[test]
fn states_stay_as_they_are_where_nothing_moves() -> Result<()> {
    if !needs::met(&["busybox"]) {
        return Ok(());
    }
    let lab = Lab::without_agents(TEN_GIGABIT)?;
    let container = lab.start(&states::bundle("states", &[]))?;
    let verifier = Verifier::new(&lab.client, container.v4);
    for _ in 0..3 {
        verifier.check().with_context(|| container.log(&lab.a))?;
    }
    Ok(())
}
