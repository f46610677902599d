//! The agent is not there, or goes away: what is told then is the truth.

use std::os::unix::net::UnixListener;

use pclive_proto::control::Phase;

use crate::ctl::{Ended, run, start};
use crate::fake::{Fake, Script, Step};
use crate::sample::*;

const MIGRATE: [&str; 6] = ["migrate", "redis-1", "--to", "host-b", "--patience", "300ms"];

fn lines_with<'a>(ended: &'a Ended, text: &str) -> Vec<&'a str> {
    ended.out.lines().filter(|line| line.contains(text)).collect()
}

#[test]
fn an_absent_agent_is_named_with_its_socket_and_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    let ended = run(&socket, &MIGRATE);
    let expected = format!(
        "error: cannot reach the agent at {}: No such file or directory (os error 2)\n  hint: is pclive-agent \
         running? (systemctl status pclive-agent); another socket: --agent or PCLIVE_AGENT\n",
        socket.display()
    );
    assert_eq!((ended.code, ended.out.as_str(), ended.err), (1, "", expected));
}

#[test]
fn a_socket_that_an_agent_left_behind_is_told_from_none() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    drop(UnixListener::bind(&socket).unwrap());
    let ended = run(&socket, &["list"]);
    assert_eq!(ended.code, 1);
    assert!(ended.err.contains("Connection refused"), "{}", ended.err);
    assert!(ended.err.contains("nobody listens there any more"), "{}", ended.err);
}

#[test]
fn a_stream_that_breaks_is_watched_again_and_nothing_is_shown_twice() {
    let mut first = success();
    first.truncate(5);
    first.push(Step::Break);
    let states = vec![migration(Phase::PreCopy)];
    let agent = Fake::new(Script { watches: vec![first, success()], states, ..Script::default() });
    let ended = run(&agent.socket(), &MIGRATE);
    assert_eq!((ended.code, agent.seen().watches()), (0, 2), "{}", ended.out);
    assert_eq!(lines_with(&ended, "pre-copy:").len(), 1, "{}", ended.out);
    assert_eq!(lines_with(&ended, "round 0: 256 pages").len(), 1, "{}", ended.out);
    assert_eq!(
        lines_with(&ended, "note:"),
        [
            "note: cannot watch migration m-1: the connection to the agent broke (the link broke); asking again"
        ]
    );
    assert!(ended.out.contains("redis-1 now runs at host-b\n"), "{}", ended.out);
}

#[test]
fn an_outcome_that_the_stream_did_not_tell_is_asked_for() {
    let unfinished = || vec![phase(0, Phase::Frozen), Step::Break];
    let states = [
        (
            pclive_proto::control::Migration { report: Some(report()), ..migration(Phase::Done) },
            0,
            "now runs at host-b",
        ),
        (
            pclive_proto::control::Migration {
                error: Some(error("cancelled", "it was cancelled", Phase::Frozen)),
                ..migration(Phase::Failed)
            },
            1,
            "redis-1 runs on at the source",
        ),
        (migration(Phase::Unknown), 3, "it is not known where redis-1 runs"),
    ];
    for (state, code, words) in states {
        let agent =
            Fake::new(Script { watches: vec![unfinished()], states: vec![state], ..Script::default() });
        let ended = run(&agent.socket(), &MIGRATE);
        assert_eq!((ended.code, agent.seen().watches()), (code, 1));
        assert!(ended.out.contains(words) || ended.err.contains(words), "{ended:?}");
    }
}

#[test]
fn a_stream_that_ends_early_without_an_error_is_no_outcome() {
    let agent = Fake::new(Script {
        watches: vec![vec![phase(0, Phase::PreCopy)], vec![], success()],
        states: vec![migration(Phase::PreCopy)],
        ..Script::default()
    });
    let ended = run(&agent.socket(), &MIGRATE);
    assert_eq!((ended.code, agent.seen().watches()), (0, 3));
}

#[test]
fn an_agent_that_vanishes_leaves_an_unknown_outcome() {
    let watch = vec![phase(0, Phase::Frozen), Step::Stay];
    let mut agent = Fake::new(Script { watches: vec![watch], ..Script::default() });
    let mut ctl = start(&agent.socket(), &MIGRATE);
    ctl.wait_for("frozen");
    agent.wait();
    agent.vanish();
    let ended = ctl.end();
    assert_eq!(ended.code, 3);
    assert!(ended.err.starts_with("error: cannot learn what became of migration m-1: "), "{}", ended.err);
    assert!(ended.err.contains("\n  at: frozen\n"), "{}", ended.err);
    assert!(ended.err.contains("pclivectl status m-1"), "{}", ended.err);
    assert!(ended.err.ends_with(
        "it is not known where redis-1 runs: look at both hosts before anything is started by hand\n"
    ));
}

#[test]
fn an_agent_that_came_back_and_knows_nothing_leaves_an_unknown_outcome() {
    let watch = vec![phase(0, Phase::PreCopy), Step::Break];
    let agent = Fake::new(Script { watches: vec![watch], ..Script::default() });
    let ended = run(&agent.socket(), &[&MIGRATE[..], &["--json"]].concat());
    let last: serde_json::Value = serde_json::from_str(ended.out.lines().last().unwrap()).unwrap();
    assert_eq!((ended.code, &last["event"]), (3, &"unknown".into()));
    assert_eq!(
        (&last["error"]["code"], &last["error"]["phase"]),
        (&"outcome-unknown".into(), &"pre_copy".into())
    );
}

#[test]
fn a_start_without_an_answer_may_have_started() {
    let mut agent = Fake::new(Script { start_hangs: true, ..Script::default() });
    let ctl = start(&agent.socket(), &MIGRATE);
    agent.wait();
    agent.vanish();
    let ended = ctl.end();
    assert_eq!(ended.code, 3);
    assert!(
        ended.err.starts_with("error: it is not known whether the migration of redis-1 has started: "),
        "{}",
        ended.err
    );
    assert!(ended.err.contains("  hint: see whether it is there: pclivectl list\n"), "{}", ended.err);
}
