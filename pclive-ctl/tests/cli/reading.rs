//! Commands that only ask.

use pclive_proto::control::*;
use serde_json::Value;

use crate::ctl::run;
use crate::fake::{Fake, Script};
use crate::sample::*;

fn agent() -> Fake {
    Fake::new(Script {
        states: vec![migration(Phase::PreCopy)],
        migrations: vec![migration(Phase::PreCopy)],
        containers: vec![Container {
            id: "redis-1".into(),
            runtime: "runc".into(),
            status: "running".into(),
            pid: 812,
            bundle: "/run/bundles/redis-1".into(),
            migration_id: "m-1".into(),
        }],
        host: Host { agent_name: "host-a".into(), kernel_release: "6.18.0".into(), ..Host::default() },
        ..Script::default()
    })
}

fn json(agent: &Fake, arguments: &[&str]) -> Value {
    let ended = run(&agent.socket(), &[&["--json"], arguments].concat());
    assert_eq!(ended.err, "");
    assert_eq!(ended.out.lines().count(), 1, "{}", ended.out);
    serde_json::from_str(&ended.out).unwrap()
}

#[test]
fn every_reading_command_has_text_and_one_json_document() {
    let agent = agent();
    let cases = [
        (&["list"][..], "m-1  redis-1    to host-b", "/migrations/0/migration_id", "m-1"),
        (&["status", "m-1"], "phase      pre-copy\n", "/phase", "pre_copy"),
        (&["containers"], "redis-1    runc     running  812  m-1", "/containers/0/container", "redis-1"),
        (&["host"], "kernel      6.18.0\n", "/kernel_release", "6.18.0"),
        (&["check", "redis-1"], "redis-1 can be migrated\n", "/container", "redis-1"),
        (&["cancel", "m-1"], "cancelling (phase: pre-copy)", "/phase", "pre_copy"),
    ];
    for (arguments, text, pointer, value) in cases {
        let ended = run(&agent.socket(), arguments);
        assert!(
            ended.code == 0 && ended.out.contains(text) && ended.err.is_empty(),
            "{arguments:?}: {ended:?}"
        );
        assert_eq!(json(&agent, arguments).pointer(pointer), Some(&value.into()), "{arguments:?}");
    }
}

#[test]
fn a_check_with_blockers_exits_with_1_and_asks_the_destination_too() {
    let check = CheckContainerResponse {
        blockers: vec![blocker("io_uring instance"), blocker("fanotify group")],
        warnings: vec!["the clock jumps forward".into()],
    };
    let agent = Fake::new(Script { check, ..Script::default() });
    let ended = run(&agent.socket(), &["check", "redis-1", "--to", "host-b"]);
    assert_eq!((ended.code, ended.err.as_str()), (1, ""));
    assert!(ended.out.starts_with("redis-1 cannot be migrated to host-b: 2 blockers\n"), "{}", ended.out);
    assert!(ended.out.contains("io_uring instance") && ended.out.contains("fanotify group"), "{}", ended.out);
    assert!(ended.out.ends_with("warning: the clock jumps forward\n"), "{}", ended.out);
    assert_eq!(agent.seen().checks()[0].destination, "host-b");
    let document = json(&agent, &["check", "redis-1"]);
    assert_eq!(document["blockers"].as_array().map(Vec::len), Some(2));
}

#[test]
fn the_exit_code_of_status_is_the_state_of_the_migration() {
    for (state, code) in [(Phase::Committed, 0), (Phase::Done, 0), (Phase::Failed, 1), (Phase::Unknown, 3)] {
        let agent = Fake::new(Script { states: vec![migration(state)], ..Script::default() });
        assert_eq!(run(&agent.socket(), &["status", "m-1"]).code, code, "{state:?}");
    }
}

#[test]
fn a_migration_that_does_not_exist_is_an_error_with_a_hint() {
    let agent = Fake::new(Script::default());
    for command in ["status", "watch"] {
        let ended = run(&agent.socket(), &[command, "m-9"]);
        let expected = "\
error: cannot get migration m-9: there is no migration m-9
  hint: pclivectl list shows the migrations, pclivectl containers the containers
";
        assert_eq!((ended.code, ended.err.as_str()), (1, expected), "{command}");
    }
}

#[test]
fn an_original_is_gone_back_to_only_with_yes() {
    let migration = Migration { container: "redis-1".into(), peer: "host-b".into(), ..Migration::default() };
    let kept = Kept { until_ms: 1_795_430_789_000, stopped_ms: 1_795_430_189_000 };
    let agent = Fake::new(Script { states: vec![migration], kept, ..Script::default() });
    let told = run(&agent.socket(), &["undo", "m-1"]);
    assert_eq!(told.code, 0, "{}", told.err);
    assert!(told.out.contains("redis-1 would go back") && told.out.contains("--yes"), "{}", told.out);
    let done = run(&agent.socket(), &["undo", "m-1", "--yes"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.out.contains("redis-1 runs here again"), "{}", done.out);
    let json = run(&agent.socket(), &["--json", "undo", "m-1", "--yes"]);
    assert!(json.out.contains("\"undone\":true"), "{}", json.out);
}

#[test]
fn a_decision_reaches_the_agent_and_its_refusal_the_operator() {
    let decided = ResolveMigrationResponse { phase: Phase::Failed.into(), peer: "host-b: gone".into() };
    let agent = Fake::new(Script { resolve: decided, ..Script::default() });
    let ended = run(&agent.socket(), &["resolve", "m-1", "--run-here"]);
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert!(
        ended.out.contains("it belongs to the source") && ended.out.contains("host-b: gone"),
        "{}",
        ended.out
    );
    let expected = ResolveMigrationRequest {
        migration_id: "m-1".into(),
        resolution: Resolution::RunHere.into(),
        r#override: false,
    };
    assert_eq!(agent.seen().resolves(), [expected]);
    let error = Error { code: "peer-disagrees".into(), hint: "two copies".into(), ..Error::default() };
    let agent = Fake::new(Script { resolve_error: Some(error), ..Script::default() });
    let ended = run(&agent.socket(), &["resolve", "m-1", "--discard-here", "--override"]);
    assert_eq!(ended.code, 1);
    assert!(ended.err.contains("two copies"), "{}", ended.err);
}
