use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::error::ErrorCode;
use crate::journal::tests::record;
use crate::journal::{Asker, Ending, Peer, Reason, Record, Role};

const MOVED: Moved = Moved { bytes: 4096, state_digest: Some(0xab) };

fn audit(most_bytes: u64) -> (tempfile::TempDir, Audit) {
    let directory = tempfile::tempdir().unwrap();
    let audit = Audit::new(directory.path(), most_bytes);
    (directory, audit)
}

fn end(ending: &Ending, at_ms: u64) -> End<'_> {
    End { ending, at_ms, decided_by: None }
}

fn append(audit: &Audit, id: &str, once: bool) {
    let record = Record { id: id.into(), ..record() };
    audit.append(&Line::new("host-a", &record, end(&Ending::Done, 5), Some(MOVED)), once).unwrap();
}

fn ids(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    let id = |line: &str| serde_json::from_str::<Known>(line).ok().map(|known| known.id);
    text.lines().filter_map(id).collect()
}

#[test]
fn a_line_says_who_asked_for_what_and_what_came_of_it() {
    let (_directory, audit) = audit(LEAST_BYTES);
    let here = Record { asked_by: Asker::Local { uid: 0, pid: Some(7) }, ..record() };
    audit.append(&Line::new("host-a", &here, end(&Ending::Done, 5), Some(MOVED)), false).unwrap();
    let there = Record {
        role: Role::Destination,
        peer: Peer { name: "host-a".into(), address: String::new() },
        asked_by: Asker::Agent { names: vec!["host-a".into()] },
        ..record()
    };
    let ending = Ending::Failed(Reason::new(ErrorCode::PeerLost, "the link\nended", ""));
    let operator = Asker::User { name: "kim".into(), role: "operator".into() };
    let decided = End { decided_by: Some(&operator), ..end(&ending, 6) };
    audit.append(&Line::new("host-b", &there, decided, None), false).unwrap();
    let expected = concat!(
        r#"{"id":"7b0a2c0c-96a4-4f52-9d2f-1d2f3c4b5a69","role":"source","container":"web","runtime":"runc","#,
        r#""from":"host-a","to":"host-b","asked_by":{"kind":"local","uid":0,"pid":7},"begun_ms":1,"ended_ms":5,"#,
        r#""strategy":"global","outcome":"done","bytes":4096,"state_digest":"00000000000000ab"}"#,
        "\n",
        r#"{"id":"7b0a2c0c-96a4-4f52-9d2f-1d2f3c4b5a69","role":"destination","container":"web","runtime":"runc","#,
        r#""from":"host-a","to":"host-b","asked_by":{"kind":"agent","names":["host-a"]},"#,
        r#""decided_by":{"kind":"user","name":"kim","role":"operator"},"begun_ms":1,"ended_ms":6,"#,
        r#""strategy":"global","outcome":"peer-lost"}"#,
        "\n",
    );
    assert_eq!(std::fs::read_to_string(&audit.path).unwrap(), expected);
    assert_eq!(std::fs::metadata(&audit.path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_full_file_is_kept_once_and_nothing_grows_beyond_the_limit() {
    const MOST: u64 = 1000;
    let (_directory, audit) = audit(MOST);
    let written: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    written.iter().for_each(|id| append(&audit, id, false));
    let (newer, older) = (ids(&audit.path), ids(&audit.older()));
    let kept: Vec<String> = older.into_iter().chain(newer).collect();
    assert!(kept.len() >= 3, "{kept:?}");
    assert_eq!(kept, written[written.len() - kept.len()..], "the newest, in order");
    for path in [&audit.path, &audit.older()] {
        assert!(std::fs::metadata(path).unwrap().len() <= MOST);
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn a_migration_of_an_earlier_agent_has_one_line_wherever_it_is() {
    let (_directory, audit) = audit(1000);
    append(&audit, "first", true);
    append(&audit, "first", true);
    assert_eq!(ids(&audit.path), ["first"]);
    std::fs::rename(&audit.path, audit.older()).unwrap();
    append(&audit, "first", true);
    append(&audit, "second", true);
    assert_eq!(ids(&audit.path), ["second"]);
}

#[test]
fn half_a_line_of_a_dead_agent_spoils_no_other() {
    let (_directory, audit) = audit(LEAST_BYTES);
    append(&audit, "first", false);
    let mut file = audit.open().unwrap();
    file.write_all(br#"{"id":"torn","#).unwrap();
    append(&audit, "second", true);
    assert_eq!(ids(&audit.path), ["first", "second"]);
}

#[test]
fn what_cannot_be_written_is_told_with_its_file() {
    let (directory, audit) = audit(LEAST_BYTES);
    std::fs::create_dir(directory.path().join("audit.jsonl")).unwrap();
    let error =
        audit.append(&Line::new("host-a", &record(), end(&Ending::Done, 5), None), false).unwrap_err();
    assert!(error.to_string().contains("audit.jsonl"), "{error}");
}
