//! How migrations end, and with which exit code.

use pclive_proto::control::{Error, Phase, StartMigrationRequest};

use crate::ctl::run;
use crate::fake::{Fake, Script};
use crate::sample::*;

const MIGRATE: [&str; 4] = ["migrate", "redis-1", "--to", "host-b"];

#[test]
fn a_migrated_container_ends_with_its_report() {
    let agent = Fake::new(Script { watches: vec![success()], ..Script::default() });
    let ended = run(&agent.socket(), &MIGRATE);
    let expected = "\
redis-1 to host-b, migration m-1
[    0.00 s] negotiating: checks at both ends
[    0.10 s] pre-copy: the container runs on while its memory is copied
[    0.30 s] round 0: 512 KiB of about 1.00 MiB, 1.00 GiB/s
[    0.50 s] round 0: 256 pages, 1.00 MiB in 1.00 ms, 1.00 GiB/s; 12 pages dirty, predicted downtime 5.00 ms
[    1.40 s] frozen: the container is stopped
[    1.50 s] final round: 256 pages, 1.00 MiB in 1.00 ms, 1.00 GiB/s
[    1.55 s] ready: the destination has everything
[    1.56 s] committed: the container goes on at the destination
[    1.60 s] done: it runs at the destination
redis-1 now runs at host-b
  downtime        7.50 ms  (predicted 5.00 ms)
    freeze          400 µs  source
    final scan        0 ns  source
    capture           0 ns  source
    transfer          0 ns  source
    fill              0 ns  destination
    restore           0 ns  destination
    commit            0 ns  source
    resume            0 ns  destination
  restore time    3.00 ms

  round  data pages  zero  dropped     bytes     time        rate  dirty after
  0             256     0        0  1.00 MiB  1.00 ms  1.00 GiB/s           12
  final         256     0        0  1.00 MiB  1.00 ms  1.00 GiB/s            -

  total           2.00 MiB in 1.60 s
  source          0.01 CPU-s, at most 1.00 MiB of extra memory
  destination     0.02 CPU-s, at most 2.00 MiB of extra memory
  rounds ended    predicted downtime below 300 ms
";
    assert_eq!((ended.code, ended.out.as_str(), ended.err.as_str()), (0, expected, ""));
    let request = StartMigrationRequest {
        container: "redis-1".into(),
        destination: "host-b".into(),
        ..StartMigrationRequest::default()
    };
    assert_eq!(agent.seen().starts(), [request]);
}

#[test]
fn json_is_one_object_a_line_from_started_to_done() {
    let agent = Fake::new(Script { watches: vec![success()], ..Script::default() });
    let ended = run(&agent.socket(), &["--json", "migrate", "redis-1", "--to", "host-b"]);
    let lines: Vec<serde_json::Value> =
        ended.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let events: Vec<_> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    let expected = [
        "started", "phase", "phase", "progress", "progress", "round", "phase", "round", "phase", "phase",
        "phase", "done",
    ];
    assert_eq!(events, expected);
    assert!(lines.iter().all(|line| line["migration_id"] == "m-1"), "{}", ended.out);
    assert_eq!(lines[11]["report"]["downtime_ns"], 7_500_000);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
}

#[test]
fn a_failed_migration_lists_its_blockers_and_exits_with_1() {
    let blocked = Error {
        blockers: vec![blocker("io_uring instance"), blocker("fanotify group")],
        ..error("blocked", "redis-1 cannot be migrated", Phase::Negotiating)
    };
    let watch = vec![phase(0, Phase::Negotiating), failed(3, blocked)];
    let agent = Fake::new(Script { watches: vec![watch], ..Script::default() });
    let ended = run(&agent.socket(), &MIGRATE);
    let expected = "\
error: redis-1 cannot be migrated
  at: source, negotiating
  hint: what to do about blocked
  blockers:
    pid 812 (redis-server; 1 in the container), descriptor 9: io_uring instance
      hint: close it
    pid 812 (redis-server; 1 in the container), descriptor 9: fanotify group
      hint: close it
redis-1 runs on at the source
";
    assert_eq!((ended.code, ended.err.as_str()), (1, expected));
}

#[test]
fn a_commit_without_an_answer_exits_with_3() {
    let unknown = error("commit-unknown", "host-b did not answer COMMIT", Phase::Unknown);
    let watch = vec![phase(9, Phase::Committed), phase(10_000, Phase::Unknown), failed(10_000, unknown)];
    let agent = Fake::new(Script { watches: vec![watch], ..Script::default() });
    let ended = run(&agent.socket(), &MIGRATE);
    let expected = "\
error: host-b did not answer COMMIT
  at: source, unknown
  hint: what to do about commit-unknown
it is not known where redis-1 runs: look at both hosts before anything is started by hand
";
    assert_eq!((ended.code, ended.err.as_str()), (3, expected));
}

#[test]
fn a_failure_after_commit_is_believed_only_if_the_state_says_so() {
    let watch =
        vec![phase(9, Phase::Committed), failed(10, error("peer-lost", "the link broke", Phase::Committed))];
    let outcomes = [(Phase::Done, 0), (Phase::Failed, 1), (Phase::Unknown, 3), (Phase::Committed, 3)];
    for (state, code) in outcomes {
        let script =
            Script { watches: vec![watch.clone()], states: vec![migration(state)], ..Script::default() };
        let agent = Fake::new(script);
        assert_eq!(run(&agent.socket(), &MIGRATE).code, code, "{state:?}");
    }
}

#[test]
fn a_refused_start_shows_the_agents_own_error() {
    let refusal = error("container-not-found", "cannot find container redis-1", Phase::Unspecified);
    let agent = Fake::new(Script { start_error: Some(refusal), ..Script::default() });
    let ended = run(&agent.socket(), &MIGRATE);
    let expected = "\
error: cannot find container redis-1
  at: source
  hint: what to do about container-not-found
";
    assert_eq!((ended.code, ended.out.as_str(), ended.err.as_str()), (1, "", expected));
    let ended = run(&agent.socket(), &["migrate", "redis-1", "--to", "host-b", "--json"]);
    let line: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!((&line["event"], &line["error"]["code"]), (&"error".into(), &"container-not-found".into()));
    assert_eq!((ended.code, ended.err.as_str()), (1, ""));
}

#[test]
fn a_detached_migration_prints_its_id_and_is_not_watched() {
    let agent = Fake::new(Script { watches: vec![success()], ..Script::default() });
    let ended = run(&agent.socket(), &["migrate", "redis-1", "--to", "host-b", "--detach"]);
    assert_eq!((ended.code, ended.out.as_str()), (0, "m-1\n"));
    let ended = run(&agent.socket(), &["migrate", "redis-1", "--to", "host-b", "--detach", "--json"]);
    assert_eq!((ended.code, ended.out.as_str()), (0, "{\"migration_id\":\"m-1\"}\n"));
    assert_eq!(agent.seen().watches(), 0);
}

#[test]
fn watching_a_migration_from_its_destination_says_that_it_runs_here() {
    let arriving = pclive_proto::control::Migration {
        role: pclive_proto::control::Role::Destination.into(),
        peer: "host-a".into(),
        ..migration(Phase::PreCopy)
    };
    let agent = Fake::new(Script { watches: vec![success()], states: vec![arriving], ..Script::default() });
    let ended = run(&agent.socket(), &["watch", "m-1"]);
    assert!(ended.out.starts_with("redis-1 from host-a, migration m-1\n"), "{}", ended.out);
    assert!(ended.out.contains("\nredis-1 now runs here\n"), "{}", ended.out);
    assert_eq!(ended.code, 0);
}
