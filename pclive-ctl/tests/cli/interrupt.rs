//! Ctrl-C.

use pclive_proto::control::Phase;

use crate::ctl::start;
use crate::fake::{Fake, Script, Step};
use crate::sample::*;

const MIGRATE: [&str; 4] = ["migrate", "redis-1", "--to", "host-b"];
const LEFT: &str =
    "the migration goes on; to follow it: pclivectl watch m-1, to end it: pclivectl cancel m-1\n";

#[test]
fn the_first_one_cancels_and_waits_for_the_outcome() {
    let cancelled = error("cancelled", "the migration was cancelled", Phase::PreCopy);
    let watch = vec![phase(0, Phase::PreCopy), Step::AwaitCancel, failed(9, cancelled)];
    let agent = Fake::new(Script { watches: vec![watch], ..Script::default() });
    let mut ctl = start(&agent.socket(), &MIGRATE);
    ctl.wait_for("pre-copy");
    ctl.interrupt();
    let ended = ctl.end();
    assert_eq!((ended.code, agent.seen().cancels()), (1, 1));
    assert!(ended.out.contains("note: asking the agent to cancel, waiting for the outcome"), "{}", ended.out);
    assert!(ended.err.starts_with("error: the migration was cancelled\n"), "{}", ended.err);
    assert!(ended.err.ends_with("redis-1 runs on at the source\n"), "{}", ended.err);
}

#[test]
fn the_second_one_leaves_the_migration_alone() {
    let watch = vec![phase(0, Phase::PreCopy), Step::AwaitCancel, Step::Stay];
    let agent = Fake::new(Script { watches: vec![watch], ..Script::default() });
    let mut ctl = start(&agent.socket(), &MIGRATE);
    ctl.wait_for("pre-copy");
    ctl.interrupt();
    ctl.wait_for("asking the agent to cancel");
    ctl.interrupt();
    let ended = ctl.end();
    assert_eq!((ended.code, ended.err.as_str()), (130, LEFT));
}

#[test]
fn after_commit_the_agent_refuses_and_the_outcome_is_awaited() {
    let refusal = error("too-late", "it is committed", Phase::Committed);
    let mut watch = vec![phase(0, Phase::Committed), Step::AwaitCancel, phase(5, Phase::Done)];
    watch.push(done(6));
    let agent = Fake::new(Script { watches: vec![watch], cancel_error: Some(refusal), ..Script::default() });
    let mut ctl = start(&agent.socket(), &MIGRATE);
    ctl.wait_for("committed");
    ctl.interrupt();
    let ended = ctl.end();
    assert_eq!((ended.code, agent.seen().cancels()), (0, 1));
    assert!(ended.out.contains("redis-1 now runs at host-b\n"), "{}", ended.out);
}

#[test]
fn watch_leaves_at_once_and_cancels_nothing() {
    let watch = vec![phase(0, Phase::PreCopy), Step::Stay];
    let states = vec![migration(Phase::PreCopy)];
    let agent = Fake::new(Script { watches: vec![watch], states, ..Script::default() });
    let mut ctl = start(&agent.socket(), &["watch", "m-1"]);
    ctl.wait_for("pre-copy");
    ctl.interrupt();
    let ended = ctl.end();
    assert_eq!((ended.code, ended.err.as_str(), agent.seen().cancels()), (130, LEFT, 0));
}
